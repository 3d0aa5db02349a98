package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// TestTrial does on this kernel what the daemon does, and then breaks it.
func TestTrial(t *testing.T) {
	trialWith := func(prepare func(t *probe) error) (made probe) {
		t.Helper()
		err := inNewNamespace(func() error {
			if err := prepare(&made); err != nil {
				return err
			}
			conn, peer, err := connectProbe(21)
			if err != nil {
				return err
			}
			defer conn.Close()
			defer peer.Close()
			return made.try(conn)
		})
		must.Do(t, err)
		return made
	}

	made, err := host{}.probe(backend.Plan{Rules: ftp, Helper: backend.Carrier})
	if err != nil || made.statement == "" || made != (probe{statement: made.statement, helper: "sane", translated: true}) {
		t.Errorf("%+v, %v", made, err)
	}
	// NAT alone: the connection has no helper.
	made = trialWith(func(made *probe) error {
		made.translate = translateProbe()
		return made.translate
	})
	if !errors.Is(made.expect, expect.ErrNoHelper) || !errors.Is(made.adjust, expect.ErrNoSeqAdj) {
		t.Errorf("without our rules: %+v", made)
	}
	f := healthy()
	f.probed = made
	var bad []Finding
	for _, finding := range f.examine(ftp) {
		if finding.Level == Problem {
			bad = append(bad, finding)
		}
	}
	if len(bad) != 2 || bad[0].Check != "expectations" || bad[1].Check != "sequence adjustment" {
		t.Errorf("without our rules:\n%s", text(bad))
	}
	// Our rules alone: the kernel has nothing to adjust.
	made = trialWith(func(*probe) error {
		_, err := rules.Apply(ftp)
		return err
	})
	if made != (probe{helper: "sane"}) {
		t.Errorf("without NAT: %+v", made)
	}
	f.probed = made
	f.wantFinding(t, want{Warning, "sequence adjustment", "not translated", ""})
}

// TestNothingChanges examines a host with a helper's rules and wants to find it as it was.
func TestNothingChanges(t *testing.T) {
	h := netns.NewTestHost(t, "host")
	applyRules(t, h)
	state := func() string {
		var all string
		for _, command := range [][]string{{"nft", "list", "ruleset"}, {"conntrack", "-L"}, {"conntrack", "-L", "expect"}} {
			out, err := h.Run(t.Context(), "", command[0], command[1:]...)
			must.Do(t, err)
			all += out
		}
		return all
	}
	before := state()
	var here, after string
	do(t, h, func() (err error) {
		here, err = os.Readlink("/proc/thread-self/ns/net")
		Examine(backend.Request{Rules: ftp}, "")
		after, _ = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if now := state(); now != before || here != after {
		t.Errorf("before\n%s\nafter\n%s\nin %s, then in %s", before, now, here, after)
	}
}

// TestReady says that something can be helped here, and why nothing can.
func TestReady(t *testing.T) {
	ready := func() error {
		_, err := Ready(backend.Request{Rules: ftp})
		return err
	}
	do(t, netns.NewTestHost(t, "host"), ready)
	unprivileged(t, func() {
		if err := ready(); err == nil || err.Error() != "privileges: CAP_NET_ADMIN is missing (rules, queues and conntrack can be neither read nor used without it)" {
			t.Error(err)
		}
	})
}

// TestNotPermitted examines the host as somebody who may not.
func TestNotPermitted(t *testing.T) {
	unprivileged(t, func() {
		some := slices.DeleteFunc(slices.Clone(checks), func(c check) bool {
			return c.name != "privileges" && c.name != "rules" && c.name != "related"
		})
		findings := examine(newExamination(host{}, backend.Request{Rules: ftp}), some)
		if len(findings) != 2 || findings[0].Level != Problem || findings[1].What != "rules, related" {
			t.Error(text(findings))
		}
	})
}

// unprivileged runs f on a thread that has not got CAP_NET_ADMIN, and ends with it.
func unprivileged(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		err := unix.Capget(&header, &sets[0])
		if err == nil {
			sets[0].Effective &^= 1 << unix.CAP_NET_ADMIN
			err = unix.Capset(&header, &sets[0])
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	must.Do(t, <-done)
}

// entries makes connections from successive addresses, without a packet.
func entries(t *testing.T, c *conntrack.Conn, count int, helper string) []conntrack.Tuple {
	t.Helper()
	var made []conntrack.Tuple
	for i := range count {
		tuple := conntrack.Tuple{
			IP: conntrack.IPTuple{
				SourceAddress:      netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
				DestinationAddress: netip.AddrFrom4([4]byte{192, 0, 2, 1}),
			},
			Proto: conntrack.ProtoTuple{Protocol: unix.IPPROTO_TCP, SourcePort: 1024, DestinationPort: 21},
		}
		reply := tuple
		reply.IP.SourceAddress, reply.IP.DestinationAddress = tuple.IP.DestinationAddress, tuple.IP.SourceAddress
		reply.Proto.SourcePort, reply.Proto.DestinationPort = 21, 1024
		f := conntrack.Flow{TupleOrig: tuple, TupleReply: reply, Timeout: 600, Status: conntrack.StatusConfirmed}
		f.Helper.Name = helper
		if helper != "" {
			f.Helper.Name += "\x00"
		}
		if err := c.Create(f); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		made = append(made, tuple)
	}
	return made
}

func sysctl(t *testing.T, name string) int {
	t.Helper()
	data, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	must.Do(t, err)
	n, err := strconv.Atoi(string(bytes.TrimSpace(data)))
	must.Do(t, err)
	return n
}

// dialConntrack opens conntrack on the host.
func dialConntrack(t *testing.T, h *netns.Host) *conntrack.Conn {
	t.Helper()
	var c *conntrack.Conn
	do(t, h, func() (err error) {
		c, err = conntrack.Dial(nil)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// TestFullConntrackTable fills it to four fifths.
func TestFullConntrackTable(t *testing.T) {
	t.Parallel()
	h := netns.NewTestHost(t, "host")
	limit := sysctl(t, conntrackMax)
	begin := time.Now()
	entries(t, dialConntrack(t, h), limit*8/10+1, "")
	t.Logf("it took %s", time.Since(begin))
	wantFinding(t, among(t, h, ftp, "conntrack table"), want{Warning, "conntrack table",
		fmt.Sprintf(" of %d connections", limit), fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*limit)})
}

// TestFullExpectationTable fills it to four fifths, from as many connections.
func TestFullExpectationTable(t *testing.T) {
	t.Parallel()
	h := netns.NewTestHost(t, "host")
	applyRules(t, h) // so that the helper is there
	c := dialConntrack(t, h)
	limit := sysctl(t, expectMax)
	count := limit*8/10 + 1
	for i, master := range entries(t, c, count, "sane") {
		tuple, mask := master, master
		tuple.Proto.SourcePort, tuple.Proto.DestinationPort = 0, 40000
		mask.IP.SourceAddress, mask.IP.DestinationAddress = netip.AddrFrom4([4]byte{255, 255, 255, 255}), netip.AddrFrom4([4]byte{})
		mask.Proto.SourcePort, mask.Proto.DestinationPort = 0, 65535
		if err := c.CreateExpect(conntrack.Expect{TupleMaster: master, Tuple: tuple, Mask: mask}); err != nil {
			t.Fatalf("expectation %d: %v", i, err)
		}
	}
	wantFinding(t, among(t, h, ftp, "expectation table"), want{Warning, "expectation table",
		fmt.Sprintf("%d of %d expectations", count, limit), fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_expect_max=%d", 2*limit)})
}

// TestAddresses leaves out loopback.
func TestAddresses(t *testing.T) {
	h := netns.NewTestHost(t, "host")
	do(t, h, func() error {
		found, err := host{}.addresses()
		if err != nil || len(found) != 0 {
			t.Errorf("%v, %v", found, err)
		}
		return nil
	})
}
