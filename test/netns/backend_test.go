package netns

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// backEnds are those with which every transfer works in every situation, but for the default
// one, which is TestMatrix's. A cthelper whose packets the kernel queues by itself has one queue.
var backEnds = []BackEnd{
	{Helper: "carrier", Sequence: "kernel", Queues: 4},
	{Helper: "carrier", Sequence: "kernel", Ruleset: "lean", Queues: 1},
	{Helper: "carrier", Sequence: "kernel", Ruleset: "lean", Queues: 4},
	{Helper: "carrier", Sequence: "user", Queues: 1},
	{Helper: "carrier", Sequence: "user", Queues: 4},
	{Helper: CTHelper, Sequence: "kernel", Queues: 1},
	{Helper: CTHelper, Sequence: "user", Queues: 1},
	{Helper: CTHelper, Sequence: "user", Queues: 4},
}

// sequenceBackEnds keep the sequence numbers right in ways that the stream of a control
// connection may feel: the kernel does it, and the daemon.
var sequenceBackEnds = []BackEnd{{}, {Sequence: "user"}}

// forEachSequence runs a test with each of them.
func forEachSequence(t *testing.T, test func(t *testing.T, b BackEnd)) {
	for _, b := range sequenceBackEnds {
		t.Run(b.String(), func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
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
	// Lines that keep their length are enough where no address changes. TestSidecar has
	// addresses that do.
	sameLength := BackEnd{Helper: "carrier", Sequence: "same-length"}
	for _, family := range Families {
		t.Run(fmt.Sprintf("%s/%s/%s", sameLength, Routed, family), func(t *testing.T) {
			t.Parallel()
			tryBackEnd(t, sameLength, Routed, family)
		})
	}
}

// watchKept counts the packets of control connections whose sequence numbers the daemon keeps.
const watchKept = `table inet watch_kept {
	counter kept {
	}
	chain postrouting {
		type filter hook postrouting priority 300;
		ct label 123 counter name "kept"
	}
}
`

func tryBackEnd(t *testing.T, b BackEnd, situation Situation, family Family) {
	lab := newLab(t, Config{Situation: situation, Family: family, Helper: Ours, Daemon: Daemon{BackEnd: b}})
	ctx := testContext(t, 30*time.Second)
	for _, r := range lab.Routers {
		if err := r.Nft(ctx, watchKept); err != nil {
			t.Fatal(err)
		}
	}
	wantSuccesses(t, lab, family, backEndCells(situation, family), func(cell, bool) {})
	for _, r := range lab.Routers {
		wantBackEnd(t, r, situation, family)
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
// give them, and the daemon to have kept sequence numbers if, and only if, it was to.
func wantBackEnd(t *testing.T, r *Router, situation Situation, family Family) {
	t.Helper()
	ctx, b := testContext(t, 30*time.Second), r.BackEnd()
	entries, err := r.Run(ctx, "", "conntrack", "-L", "-f", strings.ToLower(family.String()), "-p", "tcp", "--orig-port-dst", "21")
	if err != nil {
		t.Fatal(err)
	}
	helper := b.HelperName
	if helper == "" {
		helper = "sane"
	}
	all := strings.Count(entries, "\n")
	if right := strings.Count(entries, " helper="+helper+" "); all == 0 || right != all {
		t.Errorf("want all %d control connections on the %s to have the helper %s, not %d:\n%s", all, r.Name, helper, right, entries)
	}
	chosen := fmt.Sprintf("helper=%s helper_name=%s ", b.Helper, helper)
	if log := r.DaemonProcess().Output(); !strings.Contains(log, chosen) || !strings.Contains(log, " sequence="+b.Sequence+" ") {
		t.Errorf("the daemon on the %s does not say that it has chosen %s:\n%s", r.Name, chosen, log)
	}
	kept, err := r.Counter(ctx, "watch_kept", "kept")
	if err != nil {
		t.Fatal(err)
	}
	// Over IPv6 a server's lines have no address, so that DNAT changes no length.
	changes := situation != Routed && family == IPv4
	if b.Sequence == "user" && changes && kept == 0 || b.Sequence != "user" && kept > 0 {
		t.Errorf("with %s, the daemon on the %s kept the sequence numbers of %d packets", b, r.Name, kept)
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
