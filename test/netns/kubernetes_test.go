package netns

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

func newKubeNode(t *testing.T, mode string, family Family, helper Helper) *KubeNode {
	t.Helper()
	ctx := testContext(t, 30*time.Second)
	n, err := NewKubeNode(ctx, mode, family)
	must.Do(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(n.Node.Logs())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	must.Do(t, n.Node.Nft(ctx, watch))
	var d Daemon
	if helper == Ours {
		d = daemon(t, BackEnd{})
	}
	must.Do(t, n.Node.StartHelper(ctx, helper, d))
	return n
}

// TestKubernetesNode has the server in a pod, behind a Service as kube-proxy makes it, and the
// daemon in the node's own namespace. Only the control port is a port of the Service.
func TestKubernetesNode(t *testing.T) {
	t.Parallel()
	for _, mode := range KubeProxyModes {
		for _, family := range Families {
			t.Run(fmt.Sprintf("%s/%s/None", mode, family), func(t *testing.T) {
				t.Parallel()
				n := newKubeNode(t, mode, family, None)
				site := startSite(t, n.Pod, family, SiteOptions{})
				for _, c := range n.Clients() {
					t.Run("from the "+c.Name, func(t *testing.T) {
						t.Parallel()
						ctx := testContext(t, time.Minute)
						wantNoData(t, family, func(verb Verb) Outcome {
							return c.transfer(site, verb, Download, failingTimeout).Run(ctx, c.Host)
						})
					})
				}
			})
			t.Run(fmt.Sprintf("%s/%s/Ours", mode, family), func(t *testing.T) {
				t.Parallel()
				n := newKubeNode(t, mode, family, Ours)
				site := startSite(t, n.Pod, family, SiteOptions{})
				for _, c := range n.Clients() {
					c.wantSuccesses(t, site, family)
				}
				ctx := testContext(t, 20*time.Second)
				invalid, err := n.Node.Counter(ctx, "watch", "invalid")
				if err != nil || invalid > 0 {
					t.Errorf("conntrack found %d packets of control connections invalid, %v", invalid, err)
				}
				wantNothingInvalid(t, n.Node)
				wantAllHelped(t, n.Node)
			})
		}
	}
}

func (c KubeClient) transfer(site *Site, verb Verb, operation Operation, timeout time.Duration) Transfer {
	return Transfer{Program: Curl, Verb: verb, Operation: operation, Server: c.At, Site: site, Timeout: timeout}
}

func (c KubeClient) wantSuccesses(t *testing.T, site *Site, family Family) {
	t.Helper()
	ctx := testContext(t, 2*time.Minute)
	before := len(site.Log())
	for _, verb := range family.Verbs() {
		for _, operation := range Operations {
			outcome := c.transfer(site, verb, operation, workingTimeout).Run(ctx, c.Host)
			if outcome.Err != nil {
				t.Errorf("%s, %s from the %s: %v\n%s", verb, operation, c.Name, outcome.Err, outcome.Transcript)
			}
		}
	}
	log := site.Log()[before:]
	if all, right := strings.Count(log, `Client "`), strings.Count(log, fmt.Sprintf(`Client "%s"`, c.SeenAs)); all == 0 || right != all {
		t.Errorf("want the server to see the %s as %s in %d lines, not %d:\n%s", c.Name, c.SeenAs, all, right, log)
	}
}
