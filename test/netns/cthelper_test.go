package netns

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// onlyOurHelper is a firewall as the classic howtos have it: of what is related, it lets in what
// the helper of that name has expected, and comes in by that interface.
const onlyOurHelper = `
flush chain inet filter stateful
add rule inet filter stateful ct state invalid counter name "invalid" drop
add rule inet filter stateful ct state established accept
add rule inet filter stateful iifname %q ct state related ct helper %q accept
add rule inet filter stateful ct state new tcp dport @ftp accept
`

// onlyOurHelperToo lets that helper's connections in by one more interface.
const onlyOurHelperToo = `add rule inet filter stateful iifname %q ct state related ct helper %q accept
`

// TestCTHelperInFilter has filter rules that name the helper: they let passive data connections
// through, which the client opens, and active ones not.
func TestCTHelperInFilter(t *testing.T) {
	t.Parallel()
	needCTHelper(t)
	lab := newLab(t, Config{Situation: DNATMasquerade, Family: IPv4, Helper: Ours,
		Daemon: Daemon{BackEnd: BackEnd{Helper: CTHelper}}})
	router, ctx := lab.ServerRouter(), testContext(t, time.Minute)
	site := startSite(t, lab.Server, IPv4, SiteOptions{})
	for _, c := range []struct {
		in, helper string
		works      map[Verb]bool
	}{
		{"eth0", router.BackEnd().HelperName, map[Verb]bool{PASV: true, EPSV: true, PORT: false}},
		{"eth1", router.BackEnd().HelperName, map[Verb]bool{PASV: false, PORT: true, EPRT: true}},
		{"eth0", "somebody-else", map[Verb]bool{PASV: false}},
	} {
		must.Do(t, router.Nft(ctx, fmt.Sprintf(onlyOurHelper, c.in, c.helper)))
		for verb, works := range c.works {
			if outcome := lab.download(t, site, verb, failingTimeout); (outcome.Err == nil) != works {
				t.Errorf("%s with what helper %s expects let in from %s: %v, want it to work: %v\n%s",
					verb, c.helper, c.in, outcome.Err, works, outcome.Transcript)
			}
		}
	}
	wantNothingInvalid(t, router)
}

// TestCTHelperLocal has the ends of the control connection on the router, where the kernel queues
// in other places, and over loopback in two.
func TestCTHelperLocal(t *testing.T) {
	t.Parallel()
	needCTHelper(t)
	b := BackEnd{Helper: CTHelper}
	for _, family := range Families {
		for i, build := range []func(*testing.T, Family, Helper, BackEnd) place{serverOnRouter, clientOnRouter, overLoopback} {
			t.Run(fmt.Sprintf("%s/%s", []string{"server on the router", "client on the router", "loopback"}[i], family), func(t *testing.T) {
				t.Parallel()
				p := build(t, family, Ours, b)
				p.wantSuccesses(t, family)
				counts := stopAndCount(t, p.router)
				if want := len(family.Verbs()) * len(Operations); counts["expected"] != want || counts["failed"] > 0 {
					t.Errorf("want %d data connections expected, got %v", want, counts)
				}
			})
		}
	}
}

// TestCTHelperStays says what becomes of the helper, and of a connection that has it, when the
// daemon ends and comes back.
func TestCTHelperStays(t *testing.T) {
	t.Parallel()
	needCTHelper(t)
	for _, c := range []struct {
		name  string
		flags []string
		end   func(t testing.TB, r *Router) error
		stays bool
	}{
		{"stopped", nil, stopRouter, false},
		{"stopped, to be kept", []string{"--keep-helper"}, stopRouter, true},
		{"killed", nil, func(_ testing.TB, r *Router) error { return r.KillDaemon() }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours,
				Daemon: Daemon{BackEnd: BackEnd{Helper: CTHelper}, Flags: c.flags}})
			router := lab.ServerRouter()
			name := router.BackEnd().HelperName
			t.Cleanup(func() {
				if err := cthelper.Unregister(name); err != nil {
					t.Error(err)
				}
			})
			site := startSite(t, lab.Server, IPv4, SiteOptions{})
			client := lab.login(t)
			wantContent(t, siteFile, client.fetch(siteFile, client.passive(PASV), netip.AddrPort{}), site.Content)

			must.Do(t, c.end(t, router))
			_, there, err := cthelper.Lookup(name)
			if err != nil || there != c.stays {
				t.Errorf("the helper is there: %v, %v; want %v", there, err, c.stays)
			}
			if c.name != "killed" {
				client.do("257", "PWD")
			}
			must.Do(t, router.StartDaemon(testContext(t, 30*time.Second)))
			// An enabled helper that nobody serves makes the kernel leave out its own work, the
			// adjustment of sequence numbers too.
			if c.name == "killed" {
				client = lab.dial(t)
				client.login()
			}
			client.do("257", "PWD")
			if c.stays {
				wantContent(t, siteFile, client.fetch(siteFile, client.passive(PASV), netip.AddrPort{}), site.Content)
			} else if at := client.passive(PASV); at.Addr() != lab.Addresses.Server.Addr() {
				t.Errorf("a connection that has lost its helper was told %s", at)
			}
			if c.name != "killed" { // what came in between was not adjusted
				wantNothingInvalid(t, router)
			}
			if err := stopRouter(t, router); err != nil { // rules hold the helper until then
				t.Fatal(err)
			}
		})
	}
}

func stopRouter(t testing.TB, r *Router) error { return r.StopDaemon(testContext(t, 20*time.Second)) }

// TestCTHelperCalledFTP takes the name of the kernel's own helper, which is possible only where
// that is not loaded. Nothing else may run: names are the machine's.
func TestCTHelperCalledFTP(t *testing.T) {
	needCTHelper(t)
	needKernelHelper(t)
	router := newRouter(t, "router", None, 21)
	ctx := testContext(t, time.Minute)
	path := daemon(t, BackEnd{}).Binary

	must.Do(t, loadModule(ctx, router.Host, "nf_conntrack_ftp"))
	output, err := router.Run(ctx, "", path, "run", "--config", "none", "--rules", "--helper", "cthelper", "--control", "")
	if err == nil || !strings.Contains(err.Error(), "the name is taken for IPv4 by a helper of the kernel: unload its module") {
		t.Errorf("with the kernel's own: %v\n%s", err, output)
	}
	wantNoRules(t, router.Host)

	for _, module := range []string{"nf_nat_ftp", "nf_conntrack_ftp"} {
		if _, err := os.Stat("/sys/module/" + module); err != nil {
			continue
		}
		// A namespace that has just gone may still hold it.
		for try := 0; ; try++ {
			_, err := router.Run(ctx, "", "rmmod", module)
			if err == nil {
				break
			}
			if try == 50 {
				t.Fatal(err)
			}
			time.Sleep(Scale(20 * time.Millisecond))
		}
	}
	// Rules alone would make the kernel load its own again.
	output, err = router.Run(ctx, "", path, "rules", "apply", "--helper", "cthelper")
	if err == nil || !strings.Contains(err.Error(), `the conntrack helper "ftp" is not registered: start the daemon first`) {
		t.Errorf("rules without a daemon: %v\n%s", err, output)
	}
	if _, err := os.Stat("/sys/module/nf_conntrack_ftp"); err == nil {
		t.Error("the kernel has loaded its own helper")
	}
	lab := newLab(t, Config{Situation: DNATMasquerade, Family: IPv4, Helper: Ours,
		Daemon: Daemon{BackEnd: BackEnd{Helper: CTHelper, HelperName: "ftp"}}})
	router = lab.ServerRouter()
	must.Do(t, router.Nft(ctx, fmt.Sprintf(onlyOurHelper, "eth0", "ftp")))
	examine := func() (string, int) {
		t.Helper()
		return doctor(t, router, "--helper", "cthelper", "--queue", strconv.Itoa(int(daemon(t, router.BackEnd()).Queue)))
	}
	if report, code := examine(); code != 1 || !strings.Contains(report, "chain forward (eth1 to eth0) drops, and has no rule that accepts related") {
		t.Errorf("doctor, where active FTP fails: exit code %d\n%s", code, report)
	}
	must.Do(t, router.Nft(ctx, fmt.Sprintf(onlyOurHelperToo, "eth1", "ftp")))
	site := startSite(t, lab.Server, IPv4, SiteOptions{})
	lab.wantDownloads(t, site, PASV)
	report, code := examine()
	// A copy of the host can't have the helper, so the one warning is that no test transfer was made.
	if code != 0 || !strings.Contains(report, "cthelper ftp") || strings.Count(report, "warning") != 1 ||
		!strings.Contains(report, "its rules match the helper ftp, which a copy cannot have") {
		t.Errorf("doctor: exit code %d\n%s", code, report)
	}
}
