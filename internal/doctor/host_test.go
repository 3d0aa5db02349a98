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

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// TestProbe does on this kernel what the daemon does, then without a helper, then without NAT.
func TestProbe(t *testing.T) {
	probeWith := func(prepare func(t *probe) error) (made probe) {
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
		t.Errorf("got %+v, %v, want the helper sane, NAT and no error", made, err)
	}
	// NAT alone: the connection has no helper.
	made = probeWith(func(made *probe) error {
		made.translate = translateProbe()
		return made.translate
	})
	if !errors.Is(made.expect, expect.ErrNoHelper) || !errors.Is(made.adjust, expect.ErrNoSeqAdj) {
		t.Errorf("without our rules: got %+v, want ErrNoHelper and ErrNoSeqAdj", made)
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
		t.Errorf("without our rules: want two problems, got\n%s", text(bad))
	}
	// Our rules alone: the kernel has nothing to adjust.
	made = probeWith(func(*probe) error {
		_, err := rules.Apply(ftp)
		return err
	})
	if made != (probe{helper: "sane"}) {
		t.Errorf("without NAT: got %+v, want the helper sane and no NAT", made)
	}
	f.probed = made
	f.wantFinding(t, want{Warning, "sequence adjustment", "not translated", ""})
}

func TestReadyNeedsCapNetAdmin(t *testing.T) {
	ready := func() error {
		_, err := Ready(backend.Request{Rules: ftp})
		return err
	}
	do(t, netns.NewTestHost(t, "host"), ready)
	unprivileged(t, func() {
		if err := ready(); err == nil || err.Error() != "privileges: needs CAP_NET_ADMIN: run as root (rules, queues and conntrack cannot be read without it)" {
			t.Errorf("got %v, want that CAP_NET_ADMIN is needed", err)
		}
	})
}

func TestPrivilegedChecksAreSkipped(t *testing.T) {
	unprivileged(t, func() {
		some := slices.DeleteFunc(slices.Clone(checks), func(c check) bool {
			return c.name != "privileges" && c.name != "rules" && c.name != "related"
		})
		findings := examine(newExamination(host{}, backend.Request{Rules: ftp}), some)
		if len(findings) != 2 || findings[0].Level != Problem || findings[1].What != "rules, related" {
			t.Errorf("want a problem and the skipped checks rules and related, got\n%s", text(findings))
		}
	})
}

// unprivileged runs f on a thread without CAP_NET_ADMIN.
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

// entries creates connections from successive addresses, without packets.
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

func TestFullConntrackTable(t *testing.T) {
	t.Parallel()
	h := netns.NewTestHost(t, "host")
	limit := sysctl(t, conntrackMax)
	entries(t, dialConntrack(t, h), limit*8/10+1, "")
	wantFinding(t, among(t, h, ftp, "conntrack table"), want{Warning, "conntrack table",
		fmt.Sprintf(" of %d connections", limit), fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*limit)})
}

func TestFullExpectationTable(t *testing.T) {
	t.Parallel()
	h := netns.NewTestHost(t, "host")
	applyRules(t, h) // loads the helper
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

func TestAddressesOmitLoopback(t *testing.T) {
	h := netns.NewTestHost(t, "host")
	do(t, h, func() error {
		found, err := host{}.addresses()
		if err != nil || len(found) != 0 {
			t.Errorf("got %v, %v, want none", found, err)
		}
		return nil
	})
}
