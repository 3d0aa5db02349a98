package netns

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// backEnds are those with which every transfer works in every situation, but for the default
// one, which is TestMatrix's. A cthelper whose packets the kernel queues by itself has one queue.
var backEnds = []BackEnd{
	{Helper: "carrier", Queues: 4},
	{Helper: "carrier", Ruleset: "lean", Queues: 1},
	{Helper: "carrier", Ruleset: "lean", Queues: 4},
	{Helper: CTHelper, Queues: 1},
}

// TestBackEnds makes every kind of transfer in every situation with every back end.
func TestBackEnds(t *testing.T) {
	t.Parallel()
	for _, b := range backEnds {
		t.Run(b.String(), func(t *testing.T) {
			t.Parallel()
			if b.Helper == CTHelper {
				needCTHelper(t)
			}
			for _, situation := range Situations {
				for _, family := range Families {
					if testing.Short() && b.Queues > 1 && family == IPv6 {
						continue // the queue is picked by a number without family
					}
					t.Run(fmt.Sprintf("%s/%s", situation, family), func(t *testing.T) {
						t.Parallel()
						tryBackEnd(t, b, situation, family)
					})
				}
			}
		})
	}
}

func tryBackEnd(t *testing.T, b BackEnd, situation Situation, family Family) {
	lab := newLab(t, Config{Situation: situation, Family: family, Helper: Ours, Daemon: Daemon{BackEnd: b}})
	wantSuccesses(t, lab, family, backEndCells(situation, family), func(cell, bool) {})
	for _, r := range lab.Routers {
		wantBackEnd(t, r, family)
	}
	wantAllHelped(t, lab.Routers...)
}

// backEndCells are all transfers of a situation. In short mode, for an emulator in which these take longer than
// everything else, each verb is used once, for one operation after the other, and by curl:
// what is transferred is up to no back end, and lftp's lines are no others than curl's.
func backEndCells(s Situation, f Family) []cell {
	cells := matrixOf(s, f)
	if !testing.Short() {
		return cells
	}
	return slices.DeleteFunc(cells, func(c cell) bool {
		operation := Operations[slices.Index(Verbs, c.verb)%len(Operations)]
		return c.program != Curl || c.operation != operation
	})
}

// wantBackEnd wants all control connections to have the helper that the router's daemon was to
// give them.
func wantBackEnd(t *testing.T, r *Router, family Family) {
	t.Helper()
	ctx, b := testContext(t, 30*time.Second), r.BackEnd()
	entries, err := r.Run(ctx, "", "conntrack", "-L", "-f", strings.ToLower(family.String()), "-p", "tcp", "--orig-port-dst", "21")
	must.Do(t, err)
	helper := b.HelperName
	if helper == "" {
		helper = "sane"
	}
	all := strings.Count(entries, "\n")
	if right := strings.Count(entries, " helper="+helper+" "); all == 0 || right != all {
		t.Errorf("want all %d control connections on the %s to have the helper %s, not %d:\n%s", all, r.Name, helper, right, entries)
	}
	chosen := "using kernel helper " + helper + ";"
	if b.Helper == CTHelper {
		chosen = "using user-space helper " + helper + ";"
	}
	if log := r.DaemonProcess().Output(); !strings.Contains(log, chosen) {
		t.Errorf("the daemon on the %s does not say that it has chosen %s:\n%s", r.Name, chosen, log)
	}
}

// needCTHelper is for tests of user-space conntrack helpers. Debian's kernels have them.
func needCTHelper(t testing.TB) {
	t.Helper()
	err := CheckCTHelper()
	if err == nil {
		return
	}
	var name unix.Utsname
	if unameErr := unix.Uname(&name); unameErr != nil || bytes.Contains(name.Version[:], []byte("Debian")) {
		t.Fatalf("this kernel is Debian's and must have user-space conntrack helpers (CONFIG_NF_CT_NETLINK_HELPER): %v, %v", err, unameErr)
	}
	t.Skipf("this kernel has no user-space conntrack helpers (CONFIG_NF_CT_NETLINK_HELPER): %v", err)
}
