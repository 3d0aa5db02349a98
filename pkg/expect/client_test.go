package expect_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// lab is a host that talks to itself through its own NAT: who dials a public address reaches
// 127.0.0.1 or ::1.
type lab struct {
	t      *testing.T
	host   *netns.Host
	client *expect.Client
}

const nat = `table inet nat {
	chain output {
		type nat hook output priority -100;
		ip daddr 192.0.2.2 tcp dport 21 dnat ip to 127.0.0.1
		ip6 daddr 2001:db8::2 tcp dport 21 dnat ip6 to ::1
	}
}
`

func newLab(t *testing.T, withHelper bool) *lab {
	t.Helper()
	host, err := netns.NewHost("host")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, host: host}
	for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		if err := host.AddAddress("lo", netip.MustParsePrefix(a)); err != nil {
			t.Fatal(err)
		}
	}
	if err := host.Nft(t.Context(), nat); err != nil {
		t.Fatal(err)
	}
	l.do(func() error {
		if withHelper {
			if _, err := rules.Apply(rules.Config{Ports: []rules.PortRange{{First: 21, Last: 21}}}); err != nil {
				return err
			}
		}
		l.client, err = expect.Dial()
		return err
	})
	t.Cleanup(func() {
		if err := errors.Join(l.client.Close(), host.Close()); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *lab) do(f func() error) {
	l.t.Helper()
	if err := l.host.Do(f); err != nil {
		l.t.Fatal(err)
	}
}

// connect opens a control connection from local to remote, both of which may be zero in part,
// and returns what conntrack has of it.
func (l *lab) connect(local, remote, listen string) *expect.Master {
	l.t.Helper()
	listener, err := l.host.Listen(l.t.Context(), netip.MustParseAddrPort(listen))
	if err != nil {
		l.t.Fatal(err)
	}
	defer listener.Close()
	conn, err := l.host.Dial(l.t.Context(), netip.AddrPortFrom(netip.MustParseAddr(local), 0), netip.MustParseAddrPort(remote))
	if err != nil {
		l.t.Fatal(err)
	}
	peer, err := listener.Accept()
	if err != nil {
		l.t.Fatal(err)
	}
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

// listed returns the expectations of both families, as conntrack(8) lists them.
func (l *lab) listed() string {
	l.t.Helper()
	var all string
	for _, family := range []string{"ipv4", "ipv6"} {
		out, err := l.host.Run(l.t.Context(), "", "conntrack", "-L", "expect", "-f", family)
		if err != nil {
			l.t.Fatal(err)
		}
		all += out
	}
	return all
}

var families = []struct{ local, public, own string }{
	{"192.0.2.1", "192.0.2.2:21", "127.0.0.1:21"},
	{"2001:db8::1", "[2001:db8::2]:21", "[::1]:21"},
}

func TestLookup(t *testing.T) {
	l := newLab(t, true)
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

// TestExpect installs expectations and reads them with conntrack(8).
func TestExpect(t *testing.T) {
	l := newLab(t, true)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		want := expect.For(m, expect.Reply, 40000)
		got, err := l.client.Expect(want)
		if err != nil || got != want {
			t.Fatalf("installed %+v, %v, want %+v", got, err, want)
		}
		line := fmt.Sprintf("src=%s dst=%s sport=0 dport=40000", m.Client().Addr(), want.Dst.Addr())
		if s := l.listed(); strings.Count(s, line) != 1 || strings.Count(s, "helper=sane") != 1 {
			t.Errorf("conntrack lists\n%swant %s", s, line)
		}
		// The same again replaces it; another one as well, as the helper allows one.
		if got, err := l.client.Expect(want); err != nil || got != want {
			t.Errorf("installed %+v, %v the second time", got, err)
		}
		next := expect.For(m, expect.Original, 40001)
		if got, err := l.client.Expect(next); err != nil || got != next {
			t.Errorf("installed %+v, %v", got, err)
		}
		if s := l.listed(); strings.Count(s, "helper=sane") != 1 || !strings.Contains(s, "dport=40001") {
			t.Errorf("conntrack lists\n%swant port 40001 alone", s)
		}
		for range 2 { // that it is gone already is no error
			if err := l.client.Unexpect(next); err != nil {
				t.Error(err)
			}
		}
		if s := l.listed(); strings.Contains(s, "helper=sane") {
			t.Errorf("conntrack still lists\n%s", s)
		}
	}
}

// TestExpectTaken has two control connections announce the same port: the second one gets
// another port where there is NAT, and an error where there is none.
func TestExpectTaken(t *testing.T) {
	l := newLab(t, true)
	for _, f := range families {
		first, second := l.connect(f.local, f.public, f.own), l.connect(f.local, f.public, f.own)
		one := expect.For(first, expect.Reply, 40000)
		if _, err := l.client.Expect(one); err != nil {
			t.Fatal(err)
		}
		two := expect.For(second, expect.Reply, 40000)
		got, err := l.client.Expect(two)
		if err != nil || got.Dst.Port() == 40000 || got.Dst.Port() < 1024 || got.Port != 40000 {
			t.Errorf("installed %+v, %v", got, err)
		}
		if s := l.listed(); strings.Count(s, "helper=sane") != 2 {
			t.Errorf("conntrack lists\n%s", s)
		}
		two.NAT = false
		if _, err := l.client.Expect(two); !errors.Is(err, expect.ErrPortTaken) {
			t.Errorf("without NAT: %v", err)
		}
		for _, x := range []expect.Expectation{one, got} {
			if err := l.client.Unexpect(x); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestAdjust sets adjustments of both directions; the kernel takes them where it translates
// the connection, and only there.
func TestAdjust(t *testing.T) {
	l := newLab(t, true)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		for _, a := range []expect.SeqAdj{{Position: 1000, Before: 0, After: -2}, {Position: 5000, Before: -2, After: 9}} {
			for _, dir := range []expect.Direction{expect.Original, expect.Reply} {
				if err := l.client.Adjust(m, dir, a); err != nil {
					t.Fatal(err)
				}
			}
			now, _, err := l.client.Lookup(m.Tuples[expect.Original])
			if err != nil || now.SeqAdj != [2]expect.SeqAdj{a, a} || now.SeqAdj != m.SeqAdj {
				t.Errorf("the kernel has %+v, %v, want %+v", now.SeqAdj, err, a)
			}
		}
		plain := l.connect(f.local, f.own, f.own)
		if err := l.client.Adjust(plain, expect.Reply, expect.SeqAdj{Position: 1000, After: -2}); !errors.Is(err, expect.ErrNoSeqAdj) {
			t.Errorf("without NAT: %v", err)
		}
	}
}

// TestNoHelper says what the kernel says of connections that have no helper, or are none.
func TestNoHelper(t *testing.T) {
	l := newLab(t, false)
	m := l.connect("192.0.2.1", "192.0.2.2:21", "127.0.0.1:21")
	if m.Helper != "" {
		t.Fatalf("helper %q", m.Helper)
	}
	if _, err := l.client.Expect(expect.For(m, expect.Reply, 40000)); !errors.Is(err, expect.ErrNoHelper) {
		t.Errorf("expectation: %v", err)
	}
	m.Tuples[expect.Original].Src = netip.MustParseAddrPort("192.0.2.1:1")
	if _, err := l.client.Expect(expect.For(m, expect.Reply, 40000)); !errors.Is(err, expect.ErrNoEntry) {
		t.Errorf("expectation of no master: %v", err)
	}
	if err := l.client.Adjust(m, expect.Reply, expect.SeqAdj{}); !errors.Is(err, expect.ErrNoEntry) {
		t.Errorf("adjustment of nothing: %v", err)
	}
}
