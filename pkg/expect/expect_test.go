package expect

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func tupleOf(src, dst string) Tuple {
	return Tuple{netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)}
}

// Control connections as `conntrack -L` shows them, the original tuple first, and what must
// be expected of them: the passive transfer (the server listens on 37157) and the active one
// (the client listens on 1025).
var masters = []struct {
	name            string
	original, reply Tuple
	nat             bool
	client, server  string
	passiveSrc      string
	passiveDst      string // endpoint to advertise to the client
	activeSrc       string
	activeDst       string // endpoint to advertise to the server
}{
	{
		name:       "no NAT",
		original:   tupleOf("203.0.113.101:50774", "192.0.2.2:21"),
		reply:      tupleOf("192.0.2.2:21", "203.0.113.101:50774"),
		client:     "203.0.113.101:50774",
		server:     "192.0.2.2:21",
		passiveSrc: "203.0.113.101", passiveDst: "192.0.2.2:37157",
		activeSrc: "192.0.2.2", activeDst: "203.0.113.101:1025",
	},
	{
		name:       "DNAT: this host translates the server",
		original:   tupleOf("203.0.113.101:50774", "192.0.2.2:21"),
		reply:      tupleOf("192.168.1.2:21", "203.0.113.101:50774"),
		nat:        true,
		client:     "203.0.113.101:50774",
		server:     "192.168.1.2:21",
		passiveSrc: "203.0.113.101", passiveDst: "192.0.2.2:37157",
		activeSrc: "192.168.1.2", activeDst: "203.0.113.101:1025",
	},
	{
		name:       "DNAT to another port",
		original:   tupleOf("203.0.113.101:50774", "192.0.2.2:2121"),
		reply:      tupleOf("192.168.1.2:21", "203.0.113.101:50774"),
		nat:        true,
		client:     "203.0.113.101:50774",
		server:     "192.168.1.2:21",
		passiveSrc: "203.0.113.101", passiveDst: "192.0.2.2:37157",
		activeSrc: "192.168.1.2", activeDst: "203.0.113.101:1025",
	},
	{
		name:       "a port redirected on this host",
		original:   tupleOf("203.0.113.101:50774", "192.0.2.2:2121"),
		reply:      tupleOf("192.0.2.2:21", "203.0.113.101:50774"),
		nat:        true,
		client:     "203.0.113.101:50774",
		server:     "192.0.2.2:21",
		passiveSrc: "203.0.113.101", passiveDst: "192.0.2.2:37157",
		activeSrc: "192.0.2.2", activeDst: "203.0.113.101:1025",
	},
	{
		name:       "SNAT: this host translates the client",
		original:   tupleOf("10.0.0.2:50774", "198.51.100.9:21"),
		reply:      tupleOf("198.51.100.9:21", "192.0.2.2:50774"),
		nat:        true,
		client:     "10.0.0.2:50774",
		server:     "198.51.100.9:21",
		passiveSrc: "10.0.0.2", passiveDst: "198.51.100.9:37157",
		activeSrc: "198.51.100.9", activeDst: "192.0.2.2:1025",
	},
	{
		name:       "SNAT of the port alone",
		original:   tupleOf("192.0.2.2:50774", "198.51.100.9:21"),
		reply:      tupleOf("198.51.100.9:21", "192.0.2.2:61001"),
		nat:        true,
		client:     "192.0.2.2:50774",
		server:     "198.51.100.9:21",
		passiveSrc: "192.0.2.2", passiveDst: "198.51.100.9:37157",
		activeSrc: "198.51.100.9", activeDst: "192.0.2.2:1025",
	},
	{
		name:       "DNAT and masquerade: the server has no route to the client",
		original:   tupleOf("203.0.113.101:50774", "192.0.2.2:21"),
		reply:      tupleOf("192.168.1.2:21", "192.168.1.1:50774"),
		nat:        true,
		client:     "203.0.113.101:50774",
		server:     "192.168.1.2:21",
		passiveSrc: "203.0.113.101", passiveDst: "192.0.2.2:37157",
		activeSrc: "192.168.1.2", activeDst: "192.168.1.1:1025",
	},
	{
		name:       "IPv6, no NAT",
		original:   tupleOf("[2001:db8::101]:50774", "[2001:db8:1::2]:21"),
		reply:      tupleOf("[2001:db8:1::2]:21", "[2001:db8::101]:50774"),
		client:     "[2001:db8::101]:50774",
		server:     "[2001:db8:1::2]:21",
		passiveSrc: "2001:db8::101", passiveDst: "[2001:db8:1::2]:37157",
		activeSrc: "2001:db8:1::2", activeDst: "[2001:db8::101]:1025",
	},
	{
		name:       "IPv6, DNAT",
		original:   tupleOf("[2001:db8::101]:50774", "[2001:db8:1::2]:21"),
		reply:      tupleOf("[fd00::2]:21", "[2001:db8::101]:50774"),
		nat:        true,
		client:     "[2001:db8::101]:50774",
		server:     "[fd00::2]:21",
		passiveSrc: "2001:db8::101", passiveDst: "[2001:db8:1::2]:37157",
		activeSrc: "fd00::2", activeDst: "[2001:db8::101]:1025",
	},
	{
		name:       "IPv6, SNAT",
		original:   tupleOf("[fd01::2]:50774", "[2001:db8:9::9]:21"),
		reply:      tupleOf("[2001:db8:9::9]:21", "[2001:db8:1::2]:50774"),
		nat:        true,
		client:     "[fd01::2]:50774",
		server:     "[2001:db8:9::9]:21",
		passiveSrc: "fd01::2", passiveDst: "[2001:db8:9::9]:37157",
		activeSrc: "2001:db8:9::9", activeDst: "[2001:db8:1::2]:1025",
	},
	{
		name:       "IPv6, DNAT and masquerade",
		original:   tupleOf("[2001:db8::101]:50774", "[2001:db8:1::2]:21"),
		reply:      tupleOf("[fd00::2]:21", "[fd00::1]:50774"),
		nat:        true,
		client:     "[2001:db8::101]:50774",
		server:     "[fd00::2]:21",
		passiveSrc: "2001:db8::101", passiveDst: "[2001:db8:1::2]:37157",
		activeSrc: "fd00::2", activeDst: "[fd00::1]:1025",
	},
}

func TestFor(t *testing.T) {
	for _, tt := range masters {
		t.Run(tt.name, func(t *testing.T) {
			m := &Master{Tuples: [2]Tuple{tt.original, tt.reply}}
			if m.NAT() != tt.nat {
				t.Errorf("NAT %v, want %v", m.NAT(), tt.nat)
			}
			if c, s := m.Client().String(), m.Server().String(); c != tt.client || s != tt.server {
				t.Errorf("client %s, server %s; want %s, %s", c, s, tt.client, tt.server)
			}
			for _, want := range []struct {
				announced Direction
				Expectation
			}{
				{Reply, Expectation{
					Master: tt.original, NAT: tt.nat, Port: 37157, Dir: Original,
					Src: netip.MustParseAddr(tt.passiveSrc), Dst: netip.MustParseAddrPort(tt.passiveDst),
				}},
				{Original, Expectation{
					Master: tt.original, NAT: tt.nat, Port: 1025, Dir: Reply,
					Src: netip.MustParseAddr(tt.activeSrc), Dst: netip.MustParseAddrPort(tt.activeDst),
				}},
			} {
				got := For(m, want.announced, want.Port)
				if got != want.Expectation {
					t.Errorf("announced in the %v direction: %+v\nwant %+v", want.announced, got, want.Expectation)
				}
				// Another port to advertise; the port listened on stays.
				other := want.Expectation
				other.Dst = netip.AddrPortFrom(other.Dst.Addr(), 40000)
				if moved := got.WithPort(40000); moved != other {
					t.Errorf("with another port: %+v, want %+v", moved, other)
				}
				if got != want.Expectation {
					t.Error("WithPort has changed its receiver")
				}
			}
		})
	}
}

// An address that is neither side's own: the one who connects to it is still the other side,
// and nothing ties the connection to the translation of the master.
func TestForAddress(t *testing.T) {
	for _, tt := range masters {
		t.Run(tt.name, func(t *testing.T) {
			m := &Master{Tuples: [2]Tuple{tt.original, tt.reply}}
			at := netip.MustParseAddrPort("198.51.100.77:2000")
			for dir, src := range []string{Original: tt.activeSrc, Reply: tt.passiveSrc} {
				dir := Direction(dir)
				want := Expectation{Master: tt.original, Src: netip.MustParseAddr(src), Dst: at, Port: 2000, Dir: dir.Other()}
				if got := ForAddress(m, dir, at); got != want {
					t.Errorf("announced in the %v direction: %+v\nwant %+v", dir, got, want)
				}
			}
		})
	}
}

func TestIsOwnAddress(t *testing.T) {
	for _, tt := range masters {
		t.Run(tt.name, func(t *testing.T) {
			m := &Master{Tuples: [2]Tuple{tt.original, tt.reply}}
			client, server := netip.MustParseAddrPort(tt.client).Addr(), netip.MustParseAddrPort(tt.server).Addr()
			// The addresses by which the other side knows them.
			clientOutside := netip.MustParseAddrPort(tt.activeDst).Addr()
			serverOutside := netip.MustParseAddrPort(tt.passiveDst).Addr()
			for _, a := range []netip.Addr{
				client, server, clientOutside, serverOutside,
				netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("198.51.100.77"),
				netip.MustParseAddr("::1"), netip.MustParseAddr("2001:db8:bad::1"), {},
				netip.AddrFrom16(client.As16()), // IPv4 written as IPv6 is another address
			} {
				if got, want := m.IsOwnAddress(Original, a), a == client || a == clientOutside; got != want {
					t.Errorf("%v from the client: %v, want %v", a, got, want)
				}
				if got, want := m.IsOwnAddress(Reply, a), a == server || a == serverOutside; got != want {
					t.Errorf("%v from the server: %v, want %v", a, got, want)
				}
			}
		})
	}
}

func TestDirection(t *testing.T) {
	if Original.Other() != Reply || Reply.Other() != Original {
		t.Error("the other direction is not the other one")
	}
	if Original.String() != "original" || Reply.String() != "reply" {
		t.Errorf("%q and %q", Original, Reply)
	}
}

func TestSeqAdjOffset(t *testing.T) {
	for _, tt := range []struct {
		position uint32
		seq      uint32
		after    bool
	}{
		{1000, 1000, false}, // the position itself is not after it
		{1000, 1001, true},
		{1000, 999, false},
		{1000, 1000 + 1<<31 - 1, true},
		{1000, 1000 + 1<<31 + 1, false},
		{1<<32 - 1, 0, true},
		{0, 1<<32 - 1, false},
		{1<<31 - 1, 1 << 31, true},
	} {
		a := SeqAdj{Position: tt.position, Before: -3, After: 7}
		want := int32(-3)
		if tt.after {
			want = 7
		}
		if got := a.Offset(tt.seq); got != want {
			t.Errorf("position %d: offset of %d is %d, want %d", tt.position, tt.seq, got, want)
		}
	}
}

// What leaves as a number is given by ToSender again, or another number that leaves as that one:
// where the stream gets shorter there are two.
func TestSeqAdjToSender(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		a := SeqAdj{Position: rnd.Uint32(), Before: rnd.Int32N(41) - 20, After: rnd.Int32N(41) - 20}
		if rnd.IntN(2) == 0 {
			a.Position = uint32(rnd.Int32N(41) - 20)
		}
		for d := range uint32(201) {
			seq := a.Position + d - 100
			leaves := seq + uint32(a.Offset(seq))
			back := a.ToSender(leaves)
			if got := back + uint32(a.Offset(back)); got != leaves {
				t.Fatalf("%+v: %d leaves as %d, which is undone to %d, which leaves as %d", a, seq, leaves, back, got)
			}
			if a.Before <= a.After && back != seq {
				t.Fatalf("%+v: %d leaves as %d, which is undone to %d", a, seq, leaves, back)
			}
		}
	}
}
