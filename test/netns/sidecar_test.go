package netns

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestSidecar has the daemon beside the server, in a pod: no NAT there, but one hop further, which
// maps the control port and the passive ports to the pod one to one. Clients outside are told the
// address that the node has for them, those inside the server's own.
func TestSidecar(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{"pasv_address=192.168.1.2", "pasv_address=192.0.2.2"} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			trySidecar(t, setting)
		})
	}
}

func trySidecar(t *testing.T, setting string) {
	const passiveMin, passiveMax = 30000, 30009
	ports := []uint16{21}
	for p := passiveMin; p <= passiveMax; p++ {
		ports = append(ports, uint16(p))
	}
	// The node's firewall knows nothing of FTP: it lets those ports in.
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: None, Ports: ports})
	node, own := lab.ServerRouter(), lab.Addresses.Server.Addr()

	ctx := testContext(t, 2*time.Minute)
	pod := &Router{Host: lab.Server}
	must.Do(t, pod.LoadFirewall(ctx, []uint16{21}))
	d := daemon(t, BackEnd{})
	d.Flags = []string{"--advertise", lab.ServerAddress.String(), "--advertise-except", "192.168.1.0/24"}
	must.Do(t, pod.StartHelper(ctx, Ours, d))
	settings := []string{setting, fmt.Sprintf("pasv_min_port=%d", passiveMin), fmt.Sprintf("pasv_max_port=%d", passiveMax)}
	site := startSite(t, lab.Server, IPv4, SiteOptions{Settings: settings})

	for _, c := range []struct {
		from *Host
		told string // in the 227
	}{
		{lab.Client, "192,0,2,2,"},
		{node.Host, "192,168,1,2,"},
	} {
		server := own
		if c.from == lab.Client {
			server = lab.ServerAddress
		}
		// The node's firewall stops active transfers.
		for _, verb := range []Verb{PASV, EPSV} {
			for _, operation := range Operations {
				outcome := Transfer{Program: Curl, Verb: verb, Operation: operation, Server: server, Site: site, Timeout: workingTimeout}.Run(ctx, c.from)
				if outcome.Err != nil {
					t.Errorf("%s, %s from the %s: %v\n%s", verb, operation, c.from.Name, outcome.Err, outcome.Transcript)
				}
				if verb == PASV && !strings.Contains(outcome.Transcript, "("+c.told) {
					t.Errorf("the %s was not told %s:\n%s", c.from.Name, c.told, outcome.Transcript)
				}
				if verb == PASV && outcome.Err == nil {
					wantSameLength(t, passiveReply.FindString(outcome.Transcript), lastReply(site))
				}
			}
		}
	}
	wantNothingInvalid(t, pod)
}

var passiveReply = regexp.MustCompile(`227 [^\r\n"]*`)

// lastReply is the last 227 that a server has sent, as it was sent.
func lastReply(site *Site) string {
	replies := passiveReply.FindAllString(site.Log(), -1)
	return replies[len(replies)-1]
}

// wantSameLength wants a 227 to keep its length, since this host does not translate it.
func wantSameLength(t *testing.T, got, sent string) {
	t.Helper()
	if len(got) != len(sent) {
		t.Errorf("%q, which was sent, arrived with another length: %q", sent, got)
	}
}
