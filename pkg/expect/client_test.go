package expect_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// lab is a host that talks to itself through its own NAT: who dials a public address reaches
// 127.0.0.1 or ::1.
type lab struct {
	t      testing.TB
	host   *netns.Host
	client *expect.Client
	reader *conntrack.Conn // another implementation, to read the kernel's state
}

const nat = `table inet nat {
	chain output {
		type nat hook output priority -100;
		ip daddr 192.0.2.2 tcp dport 21 dnat ip to 127.0.0.1
		ip6 daddr 2001:db8::2 tcp dport 21 dnat ip6 to ::1
	}
}
`

// What the rules do for control connections.
const (
	nothing    = ""
	helperOnly = `table inet attach {
	ct helper carrier { type "sane" protocol tcp; l3proto inet; }
	chain output { type filter hook output priority -150; tcp dport 21 ct helper set "carrier"; }
}
`
	labelOnly = `table inet attach {
	chain output { type filter hook output priority -150; tcp dport 21 ct label set 121; }
}
`
	ours = "ours" // rules.Full: helper and label
)

func newLab(t testing.TB, ruleset string) *lab {
	t.Helper()
	host := netns.NewTestHost(t, "host")
	l := &lab{t: t, host: host}
	for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		must.Do(t, host.AddAddress("lo", netip.MustParsePrefix(a)))
	}
	must.Do(t, host.Nft(t.Context(), nat+strings.TrimPrefix(ruleset, ours)))
	l.do(func() error {
		if ruleset == ours {
			if _, err := rules.Apply(rules.Config{Ports: []rules.PortRange{{First: 21, Last: 21}}}); err != nil {
				return err
			}
		}
		var err error
		if l.reader, err = conntrack.Dial(nil); err != nil {
			return err
		}
		l.client, err = expect.Dial()
		return err
	})
	must.CloseAtEnd(t, l.reader)
	must.CloseAtEnd(t, l.client)
	return l
}

func (l *lab) do(f func() error) {
	l.t.Helper()
	must.Do(l.t, l.host.Do(f))
}

// connect opens a control connection from local to remote, both of which may be zero in part,
// and returns what conntrack has of it.
func (l *lab) connect(local, remote, listen string) *expect.Master {
	l.t.Helper()
	listener, err := l.host.Listen(l.t.Context(), netip.MustParseAddrPort(listen))
	must.Do(l.t, err)
	defer listener.Close()
	conn, err := l.host.Dial(l.t.Context(), netip.AddrPortFrom(netip.MustParseAddr(local), 0), netip.MustParseAddrPort(remote))
	must.Do(l.t, err)
	peer, err := listener.Accept()
	must.Do(l.t, err)
	l.t.Cleanup(func() { conn.Close(); peer.Close() })
	tuple := expect.Tuple{Src: conn.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: netip.MustParseAddrPort(remote)}
	m, dir, err := l.client.Lookup(tuple)
	if err != nil || dir != expect.Original || m.Tuples[expect.Original] != tuple {
		l.t.Fatalf("look-up of %v: %+v, %v, %v", tuple, m, dir, err)
	}
	// By its other tuple it is the same.
	reply, dir, err := l.client.Lookup(m.Tuples[expect.Reply])
	if err != nil || dir != expect.Reply || *reply != *m {
		l.t.Fatalf("look-up of %v: %+v, %v, %v", m.Tuples[expect.Reply], reply, dir, err)
	}
	return m
}

func conntrackTuple(t expect.Tuple) conntrack.Tuple {
	return conntrack.Tuple{
		IP:    conntrack.IPTuple{SourceAddress: t.Src.Addr(), DestinationAddress: t.Dst.Addr()},
		Proto: conntrack.ProtoTuple{Protocol: unix.IPPROTO_TCP, SourcePort: t.Src.Port(), DestinationPort: t.Dst.Port()},
	}
}

// entry is what may change of a connection, as package conntrack reads it.
type entry struct {
	seqAdj [2]expect.SeqAdj
	labels [16]byte
}

func (l *lab) entry(m *expect.Master) (e entry) {
	l.t.Helper()
	flow, err := l.reader.Get(conntrack.Flow{TupleOrig: conntrackTuple(m.Tuples[expect.Original])})
	must.Do(l.t, err)
	for dir, a := range []conntrack.SequenceAdjust{flow.SeqAdjOrig, flow.SeqAdjReply} {
		e.seqAdj[dir] = expect.SeqAdj{Position: a.Position, Before: int32(a.OffsetBefore), After: int32(a.OffsetAfter)}
	}
	copy(e.labels[:], flow.Labels)
	return e
}

// wantEntry checks that conntrack has of m what m says.
func (l *lab) wantEntry(m *expect.Master) {
	l.t.Helper()
	if got, want := l.entry(m), (entry{m.SeqAdj, m.Labels}); got != want {
		l.t.Errorf("conntrack has %+v, want %+v", got, want)
	}
}

// wantExpectations checks, with package conntrack, that there are these expectations and no other.
func (l *lab) wantExpectations(want ...expect.Expectation) {
	l.t.Helper()
	all, err := l.reader.DumpExpect()
	must.Do(l.t, err)
	if len(all) != len(want) {
		l.t.Errorf("%d expectations, want %d: %+v", len(all), len(want), all)
	}
	for _, w := range want {
		found := false
		for _, x := range all {
			at := netip.AddrPortFrom(x.Tuple.IP.DestinationAddress, x.Tuple.Proto.DestinationPort)
			found = found || x.TupleMaster == conntrackTuple(w.Master) && x.Tuple.IP.SourceAddress == w.Src && at == w.Dst &&
				x.Function == map[bool]string{true: "nat-follow-master"}[w.NAT] &&
				(!w.NAT || x.NAT.Tuple.Proto.SourcePort == w.Port && x.NAT.Direction == (w.Dir == expect.Reply))
		}
		if !found {
			l.t.Errorf("no %+v among %+v", w, all)
		}
	}
}

// listed returns the expectations of both families, as conntrack(8) lists them.
func (l *lab) listed() string {
	l.t.Helper()
	var all string
	for _, family := range []string{"ipv4", "ipv6"} {
		out, err := l.host.Run(l.t.Context(), "", "conntrack", "-L", "expect", "-f", family)
		must.Do(l.t, err)
		all += out
	}
	return all
}

var families = []struct{ local, public, own string }{
	{"192.0.2.1", "192.0.2.2:21", "127.0.0.1:21"},
	{"2001:db8::1", "[2001:db8::2]:21", "[::1]:21"},
}

func TestLookup(t *testing.T) {
	l := newLab(t, ours)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		if m.Helper != "sane" || !m.NAT() || m.Server() != netip.MustParseAddrPort(f.own) {
			t.Errorf("%+v", m)
		}
		none := m.Tuples[expect.Original]
		none.Src = netip.AddrPortFrom(none.Src.Addr(), 1)
		if _, _, err := l.client.Lookup(none); !errors.Is(err, expect.ErrNoEntry) {
			t.Errorf("look-up of nothing: %v", err)
		}
	}
}

// TestAnnounce installs expectations and reads them with conntrack(8).
func TestAnnounce(t *testing.T) {
	l := newLab(t, ours)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		one := expect.For(m, expect.Reply, 40000)
		must.Do(t, l.client.Announce(m, one, expect.Update{}))
		line := fmt.Sprintf("src=%s dst=%s sport=0 dport=40000", m.Client().Addr(), one.Dst.Addr())
		if s := l.listed(); strings.Count(s, line) != 1 || strings.Count(s, "helper=sane") != 1 {
			t.Errorf("conntrack lists\n%swant %s", s, line)
		}
		l.wantExpectations(one)
		l.wantEntry(m)

		// Another place replaces it, as the helper allows one. With everything at once:
		next := expect.For(m, expect.Original, 40001)
		u := expect.Update{Dir: expect.Original, Adjust: &expect.SeqAdj{Position: 7, After: 3}, SetLabel: 127, ClearLabel: 121}
		must.Do(t, l.client.Announce(m, next, u))
		if s := l.listed(); strings.Count(s, "helper=sane") != 1 || !strings.Contains(s, "dport=40001") {
			t.Errorf("conntrack lists\n%swant port 40001 alone", s)
		}
		wantUpdated(t, m, u)
		l.wantExpectations(next)
		l.wantEntry(m)

		// The same place again replaces it as well, and where it leads to.
		next.Port, next.NAT = 40002, true
		u = expect.Update{Dir: expect.Reply, Adjust: &expect.SeqAdj{Position: 8, After: -4}, SetLabel: 1}
		must.Do(t, l.client.Announce(m, next, u))
		wantUpdated(t, m, u)
		l.wantExpectations(next)
		l.wantEntry(m)

		for range 2 { // removing it twice is not an error
			must.Do(t, l.client.Unexpect(next))
		}
		l.wantExpectations()
	}
}

// wantUpdated checks that m says that u is done.
func wantUpdated(t testing.TB, m *expect.Master, u expect.Update) {
	t.Helper()
	if u.Adjust != nil && m.SeqAdj[u.Dir] != *u.Adjust || u.SetLabel != 0 && !m.Label(u.SetLabel) || u.ClearLabel != 0 && m.Label(u.ClearLabel) {
		t.Errorf("after %+v: %+v", u, m)
	}
}

// TestUpdate sets adjustments of both directions, and labels with them, alone, or not.
func TestUpdate(t *testing.T) {
	l := newLab(t, ours)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		for i, u := range []expect.Update{
			{},
			{Dir: expect.Original, Adjust: &expect.SeqAdj{Position: 1000, Before: 0, After: -2}},
			{Dir: expect.Reply, Adjust: &expect.SeqAdj{Position: 1<<32 - 1, Before: 0, After: 9}, SetLabel: 127},
			{Dir: expect.Reply, Adjust: &expect.SeqAdj{Position: 5000, Before: 9, After: -9}, SetLabel: 1, ClearLabel: 127},
			{Dir: expect.Original, Adjust: &expect.SeqAdj{Position: 5000, Before: -2, After: 0}, ClearLabel: 121},
			{SetLabel: 64},
			{ClearLabel: 1},
			{SetLabel: 63, ClearLabel: 64},
			{Dir: expect.Original, Adjust: &expect.SeqAdj{}},
		} {
			want := *m
			if u.Adjust != nil {
				want.SeqAdj[u.Dir] = *u.Adjust
			}
			if err := l.client.Update(m, u); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			wantUpdated(t, m, u)
			if m.SeqAdj != want.SeqAdj {
				t.Errorf("%d: %+v, want %+v", i, m.SeqAdj, want.SeqAdj)
			}
			l.wantEntry(m)
			for bit := range 128 {
				if bit != u.SetLabel && bit != u.ClearLabel && m.Label(bit) != want.Label(bit) {
					t.Errorf("%d: label %d is changed", i, bit)
				}
			}
		}
	}
}

// refused is what must not have left a trace.
type refused struct {
	name string
	m    *expect.Master
	e    expect.Expectation
	u    expect.Update
	want error
	left []expect.Expectation // before and after
}

// wantRefused announces and updates in vain.
func (l *lab) wantRefused(r refused) {
	l.t.Helper()
	before := *r.m
	entryBefore := l.entry(r.m)
	l.wantExpectations(r.left...)
	if err := l.client.Announce(r.m, r.e, r.u); !errors.Is(err, r.want) {
		l.t.Errorf("%s: %v, want %v", r.name, err, r.want)
	}
	if r.m.SeqAdj != before.SeqAdj || r.m.Labels != before.Labels {
		l.t.Errorf("%s: %+v, want still %+v", r.name, r.m, before)
	}
	if now := l.entry(r.m); now != entryBefore {
		l.t.Errorf("%s: conntrack has %+v, want still %+v", r.name, now, entryBefore)
	}
	l.wantExpectations(r.left...)
	if l.t.Failed() {
		l.t.FailNow()
	}
}

// wantUpdateRefused updates in vain.
func (l *lab) wantUpdateRefused(m *expect.Master, u expect.Update, want error) {
	l.t.Helper()
	before := l.entry(m)
	if err := l.client.Update(m, u); !errors.Is(err, want) {
		l.t.Errorf("update %+v: %v, want %v", u, err, want)
	}
	if now := l.entry(m); now != before {
		l.t.Errorf("update %+v: conntrack has %+v, want still %+v", u, now, before)
	}
}

// updates are all kinds of them.
func updates(dir expect.Direction) []expect.Update {
	adjust := &expect.SeqAdj{Position: 2000, Before: 4, After: 5}
	return []expect.Update{
		{},
		{Dir: dir, Adjust: adjust},
		{Dir: dir, Adjust: adjust, SetLabel: 5, ClearLabel: 121},
		{Dir: dir, Adjust: adjust, SetLabel: 121, ClearLabel: 5},
		{SetLabel: 5},
		{ClearLabel: 121},
	}
}

// TestPortTaken has two control connections announce the same port.
func TestPortTaken(t *testing.T) {
	l := newLab(t, ours)
	for _, f := range families {
		first, second := l.connect(f.local, f.public, f.own), l.connect(f.local, f.public, f.own)
		one := expect.For(first, expect.Reply, 40000)
		must.Do(t, l.client.Announce(first, one, expect.Update{}))
		two := expect.For(second, expect.Reply, 40000)
		for range 2 { // the second time with something to put back
			for _, dir := range []expect.Direction{expect.Original, expect.Reply} {
				for _, u := range updates(dir) {
					l.wantRefused(refused{"taken", second, two, u, expect.ErrPortTaken, []expect.Expectation{one}})
				}
				must.Do(t, l.client.Update(second, expect.Update{Dir: dir, Adjust: &expect.SeqAdj{Position: 1000, After: 4}, SetLabel: 6}))
			}
		}
		two = two.WithPort(40001)
		must.Do(t, l.client.Announce(second, two, expect.Update{}))
		l.wantExpectations(one, two)
		must.Do(t, errors.Join(l.client.Unexpect(one), l.client.Unexpect(two)))
	}
}

// TestNoSeqAdj adjusts connections that the kernel does not translate.
func TestNoSeqAdj(t *testing.T) {
	l := newLab(t, ours)
	for _, f := range families {
		m := l.connect(f.local, f.own, f.own)
		e := expect.For(m, expect.Reply, 40000)
		var left []expect.Expectation
		for range 2 { // the second time the same master's is there already
			for _, u := range updates(expect.Reply) {
				if u.Adjust == nil {
					continue
				}
				l.wantRefused(refused{"not translated", m, e, u, expect.ErrNoSeqAdj, left})
				l.wantUpdateRefused(m, u, expect.ErrNoSeqAdj)
				l.wantEntry(m)
			}
			if err := l.client.Announce(m, e, expect.Update{SetLabel: 9}); err != nil || !m.Label(9) {
				t.Errorf("without an adjustment: %v", err)
			}
			left = []expect.Expectation{e}
		}
		must.Do(t, l.client.Unexpect(e))
	}
}

// TestNoLabels sets labels where no rule does: the kernel refuses that after it has taken the
// adjustment of the same message.
func TestNoLabels(t *testing.T) {
	l := newLab(t, helperOnly)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		e := expect.For(m, expect.Reply, 40000)
		for range 2 {
			for _, u := range updates(expect.Reply) {
				if u.SetLabel == 0 {
					continue
				}
				l.wantRefused(refused{"no room for labels", m, e, u, unix.ENOSPC, nil})
				l.wantUpdateRefused(m, u, unix.ENOSPC)
				l.wantEntry(m)
			}
			must.Do(t, l.client.Update(m, expect.Update{Dir: expect.Reply, Adjust: &expect.SeqAdj{Position: 1, Before: 2, After: 3}}))
		}
	}
}

// TestNoHelper announces on connections that have no helper.
func TestNoHelper(t *testing.T) {
	for _, ruleset := range []string{nothing, labelOnly} {
		l := newLab(t, ruleset)
		for _, f := range families {
			m := l.connect(f.local, f.public, f.own)
			if m.Helper != "" {
				t.Fatalf("helper %q", m.Helper)
			}
			for _, u := range updates(expect.Reply) {
				l.wantRefused(refused{"no helper", m, expect.For(m, expect.Reply, 40000), u, expect.ErrNoHelper, nil})
			}
		}
	}
}

// TestAnswersLost has the kernel do everything and its answers get lost.
func TestAnswersLost(t *testing.T) {
	l := newLab(t, ours)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		e := expect.For(m, expect.Reply, 40000)
		for range 2 {
			for _, u := range updates(expect.Reply) {
				expect.LoseAnswers(t, l.client)
				l.wantRefused(refused{"answers lost", m, e, u, unix.ENOBUFS, nil})
				if u == (expect.Update{}) {
					continue
				}
				expect.LoseAnswers(t, l.client)
				l.wantUpdateRefused(m, u, unix.ENOBUFS)
			}
			must.Do(t, l.client.Update(m, expect.Update{Dir: expect.Reply, Adjust: &expect.SeqAdj{Position: 1, Before: 2, After: 3}, SetLabel: 6}))
		}
	}
}

// TestNoEntry announces and updates what is not there.
func TestNoEntry(t *testing.T) {
	l := newLab(t, ours)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		removed := *m
		removed.Tuples[expect.Original].Src = netip.AddrPortFrom(m.Client().Addr(), 1)
		for i, u := range updates(expect.Reply) {
			if err := l.client.Announce(&removed, expect.For(&removed, expect.Reply, 40000), u); !errors.Is(err, expect.ErrNoEntry) {
				t.Errorf("announce %d: %v", i, err)
			}
			if err := l.client.Update(&removed, u); u != (expect.Update{}) && !errors.Is(err, expect.ErrNoEntry) {
				t.Errorf("update %d: %v", i, err)
			}
		}
		l.wantExpectations()
		l.wantEntry(m)
	}
}

// TestFull fills the table of expectations.
func TestFull(t *testing.T) {
	const sysctl = "/proc/sys/net/netfilter/nf_conntrack_expect_max"
	text, err := os.ReadFile(sysctl)
	must.Do(t, err)
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must.Do(t, err)
	l := newLab(t, ours)
	m := l.connect("192.0.2.1", "192.0.2.2:21", "127.0.0.1:21")
	for i := range limit {
		master := expect.Tuple{
			Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), uint16(1024+i>>16)),
			Dst: netip.MustParseAddrPort("198.51.100.1:21"),
		}
		other := &expect.Master{Tuples: [2]expect.Tuple{master, {Src: master.Dst, Dst: master.Src}}}
		must.Do(t, l.reader.Create(conntrack.Flow{
			TupleOrig: conntrackTuple(master), TupleReply: conntrackTuple(other.Tuples[expect.Reply]),
			Timeout: 600, Helper: conntrack.Helper{Name: "sane\x00"},
		}))
		if err := l.client.Announce(other, expect.For(other, expect.Reply, 40000), expect.Update{}); err != nil {
			t.Fatalf("expectation %d of %d: %v", i+1, limit, err)
		}
	}
	for _, u := range updates(expect.Reply) {
		before := l.entry(m)
		err := l.client.Announce(m, expect.For(m, expect.Reply, 40000), u)
		if !errors.Is(err, expect.ErrFull) || l.entry(m) != before {
			t.Errorf("%v, conntrack has %+v", err, l.entry(m))
		}
	}
	l.wantEntry(m)
}

// TestNotPermitted does all without CAP_NET_ADMIN.
func TestNotPermitted(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			done <- err
			return
		}
		c, err := expect.Dial()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		at := netip.MustParseAddrPort("192.0.2.1:1")
		m := &expect.Master{Tuples: [2]expect.Tuple{{Src: at, Dst: at}, {Src: at, Dst: at}}}
		for i, u := range updates(expect.Reply) {
			if err := c.Announce(m, expect.For(m, expect.Reply, 40000), u); !errors.Is(err, unix.EPERM) {
				done <- fmt.Errorf("announce %d: %w", i, err)
				return
			}
		}
		done <- nil
	}()
	must.Do(t, <-done)
}

// operations are what a data connection costs; each is called with a counter.
func (l *lab) operations(m *expect.Master) []operation {
	e := expect.For(m, expect.Reply, 40000)
	var a expect.SeqAdj // one variable, as only a pointer to it is handed on
	adjust := func(i int) *expect.SeqAdj {
		a = expect.SeqAdj{Position: uint32(i), Before: int32(i), After: int32(i + 1)}
		return &a
	}
	port := func(i int) expect.Expectation { return e.WithPort(uint16(40000 + i%1000)) }
	return []operation{
		{"Lookup", 1, func(int) error { _, _, err := l.client.Lookup(m.Tuples[expect.Reply]); return err }},
		{"Update/adjust", 0, func(i int) error {
			return l.client.Update(m, expect.Update{Dir: expect.Reply, Adjust: adjust(i)})
		}},
		{"Update/label", 0, func(i int) error { return l.client.Update(m, expect.Update{SetLabel: 5}) }},
		{"Update/both", 0, func(i int) error {
			return l.client.Update(m, expect.Update{Dir: expect.Reply, Adjust: adjust(i), SetLabel: 5, ClearLabel: 121})
		}},
		{"Announce", 0, func(i int) error { return l.client.Announce(m, port(i), expect.Update{}) }},
		{"Announce/adjust", 0, func(i int) error {
			return l.client.Announce(m, port(i), expect.Update{Dir: expect.Reply, Adjust: adjust(i)})
		}},
		{"Announce/both", 0, func(i int) error {
			return l.client.Announce(m, port(i), expect.Update{Dir: expect.Reply, Adjust: adjust(i), SetLabel: 5, ClearLabel: 121})
		}},
	}
}

type operation struct {
	name   string
	allocs float64
	do     func(i int) error
}

func TestAllocations(t *testing.T) {
	l := newLab(t, ours)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		for _, o := range l.operations(m) {
			i := 0
			n := testing.AllocsPerRun(100, func() {
				i++
				must.Do(t, o.do(i))
			})
			if n != o.allocs {
				t.Errorf("%s allocates %v times, want %v", o.name, n, o.allocs)
			}
		}
		// The first time the entry is read back.
		if n := testing.AllocsPerRun(100, func() {
			first := expect.Master{Tuples: m.Tuples, Helper: m.Helper}
			must.Do(t, l.client.Update(&first, expect.Update{Dir: expect.Reply, Adjust: &expect.SeqAdj{Position: 1, After: 2}}))
		}); n != 0 {
			t.Errorf("the first adjustment allocates %v times", n)
		}
	}
}

func BenchmarkClient(b *testing.B) {
	l := newLab(b, ours)
	m := l.connect(families[0].local, families[0].public, families[0].own)
	for _, o := range l.operations(m) {
		b.Run(o.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				must.Do(b, o.do(i))
			}
		})
	}
}
