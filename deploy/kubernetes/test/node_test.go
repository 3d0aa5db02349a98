package kubernetes

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// TestNode runs the DaemonSet's pod on a node with kube-proxy's rules.
func TestNode(t *testing.T) {
	t.Parallel()
	for _, mode := range netns.KubeProxyModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tryNode(t, mode)
		})
	}
}

func tryNode(t *testing.T, mode string) {
	ctx := testContext(t, 2*time.Minute)
	n, err := netns.NewKubeNode(ctx, mode, netns.IPv4)
	must.Do(t, err)
	must.CloseAtEnd(t, n)
	site, err := netns.StartSite(ctx, n.Pod, netns.IPv4, netns.SiteOptions{})
	must.Do(t, err)
	must.CloseAtEnd(t, site)
	transfer := func(from netns.KubeClient, verb netns.Verb, timeout time.Duration) netns.Outcome {
		return netns.Transfer{Program: netns.Curl, Verb: verb, Operation: netns.Download,
			Server: from.At, Site: site, Timeout: timeout}.Run(ctx, from.Host)
	}
	if outcome := transfer(n.Clients()[0], netns.PASV, time.Second); outcome.Err == nil || !outcome.LoggedIn {
		t.Errorf("without the pod, a transfer does not fail as it should: %v\n%s", outcome.Err, outcome.Transcript)
	}

	m := newMachine(t, n.Node.Host)
	m.buildImage(t)
	all := render(t, overlay("node"))
	pod := m.play(t, all)
	_, c := all.helped(t)
	// The firewall of the lab lets in new connections to these ports only, from the node itself, too.
	must.Do(t, n.Node.Nft(ctx, "add element inet filter ftp { 9921 }"))
	probe(t, n.Node.Host, c, netip.Addr{})
	for _, from := range n.Clients() {
		for _, verb := range netns.Verbs {
			if outcome := transfer(from, verb, 10*time.Second); outcome.Err != nil {
				t.Errorf("%s from the %s: %v\n%s", verb, from.Name, outcome.Err, outcome.Transcript)
			}
		}
	}
	if invalid, err := n.Node.Invalid(ctx); err != nil || invalid > 0 {
		t.Errorf("conntrack found %d packets invalid, %v", invalid, err)
	}
	pod.wantConfined(t)

	// The image has no shell, but this. It tries nothing, for want of a network namespace.
	doctor, err := m.podman(ctx, "exec", pod.name, "nfq-ftphelper", "doctor")
	if err != nil || strings.Contains(doctor, "problem") || !strings.Contains(doctor, "run it with CAP_SYS_ADMIN") {
		t.Errorf("doctor says, %v:\n%s", err, doctor)
	}

	// The control socket lies on a volume.
	flows, err := m.podman(ctx, "exec", pod.name, "nfq-ftphelper", "flows", "--all")
	if err != nil || !strings.Contains(flows, ":21") {
		t.Errorf("flows says, %v:\n%s", err, flows)
	}

	if _, err := m.podman(ctx, "pod", "stop", "--all", "--time", "10"); err != nil {
		t.Fatal(err)
	}
	if tables, err := n.Node.Run(ctx, "", "nft", "list", "tables"); err != nil || strings.Contains(tables, "nfq_ftphelper") {
		t.Errorf("the rules outlast the pod, %v: %s", err, tables)
	}
}

// probe does what the kubelet of a host does. Where a probe names no host it goes to the pod's address.
func probe(t *testing.T, host *netns.Host, c corev1.Container, pod netip.Addr) {
	t.Helper()
	ctx := testContext(t, 20*time.Second)
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			return host.Dial(ctx, netip.AddrPort{}, netip.MustParseAddrPort(address))
		},
	}}
	for name, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if p == nil {
			continue
		}
		at := p.HTTPGet.Host
		if at == "" {
			at = pod.String()
		}
		url := fmt.Sprintf("http://%s:%d%s", at, portOf(c, p.HTTPGet.Port), p.HTTPGet.Path)
		response, err := client.Get(url)
		if err != nil {
			t.Errorf("the %s probe: %v", name, err)
			continue
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("the %s probe: %s: %s", name, response.Status, body)
		}
	}
}
