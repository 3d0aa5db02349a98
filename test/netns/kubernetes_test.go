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
	closeWithLogs(t, n, n.Node.Logs)
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
						wantNoData(t, family, func(verb Verb) Outcome { return download(t, c.Host, c.At, site, verb, failingTimeout) })
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

func (c KubeClient) wantSuccesses(t *testing.T, site *Site, family Family) {
	t.Helper()
	before := len(site.Log())
	wantTransfers(t, c.Host, c.At, site, family)
	log := site.Log()[before:]
	if all, right := strings.Count(log, `Client "`), strings.Count(log, fmt.Sprintf(`Client "%s"`, c.SeenAs)); all == 0 || right != all {
		t.Errorf("want the server to see the %s as %s in %d lines, not %d:\n%s", c.Name, c.SeenAs, all, right, log)
	}
}
