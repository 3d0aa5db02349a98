package engine_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine/conntracktest"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

const (
	keptLabel    = 123
	shiftedLabel = 124
)

// kept has the engine keep the sequence numbers.
func kept(c *engine.Config) {
	c.Sequence, c.KeptLabel, c.ShiftedLabel, c.Early = engine.User, keptLabel, shiftedLabel, conntracktest.Early{}
}

// TestUser follows the numbers of one connection whose numbers the engine keeps: when it begins
// to, what the other side sees, and what is left behind.
func TestUser(t *testing.T) {
	early := conntracktest.Early{}
	w := newWorld(t, natOriginal, natReply, kept, func(c *engine.Config) { c.Early, c.OpaqueLabel = early, 122 })
	w.login()
	if len(early)+len(labels(w.entry)) != 0 {
		t.Errorf("before any data connection: early %v, labels %v", early, labels(w.entry))
	}
	w.say(client, "PASV\r\n")
	if fmt.Sprint(labels(w.entry)) != fmt.Sprint([]int{keptLabel}) || !early[natReply] {
		t.Errorf("after PASV: early %v, labels %v", early, labels(w.entry))
	}
	const in, out = "227 ok (192,168,1,2,145,37).\r\n", "227 ok (192,0,2,2,145,37).\r\n"
	start := w.next[server]
	if got := w.say(server, in); got != out {
		t.Errorf("%q came out as %q", in, got)
	}
	if !w.entry.Label(shiftedLabel) {
		t.Errorf("after 227: labels %v", labels(w.entry))
	}
	if w.ct.Adjustments != 0 || len(w.ct.Active) != 1 {
		t.Errorf("%d adjustments, %d expectations", w.ct.Adjustments, len(w.ct.Active))
	}
	// The client has all of it, and says so without payload.
	w.acked[server] = start + uint32(len(out))
	if tcp := decode(t, w.send(client, w.next[client], "")[0]); tcp.Ack != w.next[server] {
		t.Errorf("acknowledgement %d became %d, want %d", w.acked[server], tcp.Ack, w.next[server])
	}
	for _, payload := range []string{"", "226 done\r\n"} {
		if tcp := decode(t, w.send(server, w.next[server], payload)[0]); tcp.Seq != start+uint32(len(out)) {
			t.Errorf("%q has number %d, want %d", payload, tcp.Seq, start+uint32(len(out)))
		}
	}
	w.next[server] += uint32(len("226 done\r\n"))

	// The connection stays queued when it is encrypted: its numbers still are off.
	w.say(client, "AUTH TLS\r\n")
	w.say(server, "234 ok\r\n")
	w.say(client, "\x16\x03\x01")
	if len(labels(w.entry)) != 2 || !early[natReply] {
		t.Errorf("encrypted: early %v, labels %v", early, labels(w.entry))
	}

	// Another daemon can't know what this one knew.
	w.restart(kept)
	if got := w.say(client, "PASV\r\n"); got != "PASV\r\n" || w.logged("is lost") != 1 {
		t.Errorf("after a restart PASV came out as %q, log:\n%s", got, &w.log)
	}
}

// TestUserRestart has another daemon go on with a connection whose numbers are not off yet.
func TestUserRestart(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, kept)
	w.login()
	w.say(client, "PASV\r\n")
	w.restart(kept)
	w.say(client, "NOOP\r\n")
	w.say(client, "PASV\r\n")
	if got, want := w.say(server, "227 (192,168,1,2,145,37).\r\n"), "227 (192,0,2,2,145,37).\r\n"; got != want {
		t.Errorf("227 came out as %q, want %q", got, want)
	}
}

// TestUserEnds says that nothing stays queued early for a connection that the engine has forgotten.
func TestUserEnds(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"encrypted without a change": func(w *world) {
			w.say(client, "AUTH TLS\r\n")
			w.say(server, "234 ok\r\n")
		},
		"the ports are used again": func(w *world) {
			w.id++
			w.entry.Labels = [16]byte{} // another entry
			syn := w.segment(server, 99, "")
			syn[33] |= 2
			if v := w.eng.Handle(w.id, syn, nil); len(v) != 1 || v[0].Packet != nil {
				t.Errorf("verdicts %v", v)
			}
		},
		"evicted": func(w *world) {
			other := expect.Tuple{Src: natOriginal.Src, Dst: netip.MustParseAddrPort("192.0.2.3:21")}
			w.entry = w.ct.Add(other, expect.Tuple{Src: other.Dst, Dst: other.Src})
			w.say(server, "220 ready\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			early := conntracktest.Early{}
			w := newWorld(t, natOriginal, natReply, kept, func(c *engine.Config) { c.Early, c.MaxFlows = early, 1 })
			w.login()
			w.say(client, "PASV\r\n")
			if len(early) != 1 {
				t.Fatalf("early %v", early)
			}
			end(w)
			if len(early) != 0 {
				t.Errorf("early %v", early)
			}
		})
	}
}

// TestChoice says who keeps the numbers of which connection.
func TestChoice(t *testing.T) {
	routed := [2]expect.Tuple{tuple("198.51.100.1:40000", "10.0.0.3:21"), tuple("10.0.0.3:21", "198.51.100.1:40000")}
	translated := [2]expect.Tuple{tuple("198.51.100.1:40000", "192.0.2.2:21"), tuple("10.0.0.3:21", "198.51.100.1:40000")}
	const (
		in         = "227 (10,0,0,3,145,37).\r\n"
		grown      = "227 (203,0,113,55,145,37).\r\n"
		sameLength = "227 text (10,0,0,3,145,37).\r\n"
		fitted     = "227  (203,0,113,55,145,37).\r\n"
	)
	for _, c := range []struct {
		name     string
		sequence engine.Sequence
		early    conntracktest.Early
		nat      [2]expect.Tuple
		noSeqAdj bool
		in, out  string
		keeper   engine.Sequence // Auto: it fails
	}{
		{"auto, translated", engine.Auto, conntracktest.Early{}, translated, false, in, grown, engine.Kernel},
		{"auto, not translated", engine.Auto, conntracktest.Early{}, routed, true, in, grown, engine.User},
		{"auto, not translated, without rules", engine.Auto, nil, routed, true, sameLength, fitted, engine.SameLength},
		{"auto, no room, without rules", engine.Auto, nil, routed, true, in, in, engine.Auto},
		{"kernel", engine.Kernel, nil, translated, false, in, grown, engine.Kernel},
		{"kernel, which can't", engine.Kernel, conntracktest.Early{}, routed, true, sameLength, sameLength, engine.Auto},
		{"same length", engine.SameLength, conntracktest.Early{}, translated, false, sameLength, fitted, engine.SameLength},
		{"user", engine.User, conntracktest.Early{}, translated, false, in, grown, engine.User},
		{"user, without rules", engine.User, conntracktest.Early(nil), translated, false, sameLength, fitted, engine.SameLength},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.nat[client], c.nat[server], func(config *engine.Config) {
				config.Sequence, config.KeptLabel = c.sequence, keptLabel
				if c.early != nil || c.sequence == engine.User {
					config.Early = c.early
				}
				config.Advertise.Addr4 = netip.MustParseAddr("203.0.113.55")
			})
			w.entry.NoSeqAdj = c.noSeqAdj
			w.login()
			w.say(client, "PASV\r\n")
			if got := w.say(server, c.in); got != c.out {
				t.Errorf("%q came out as %q, want %q", c.in, got, c.out)
			}
			keeper := engine.Auto
			switch {
			case w.ct.Adjustments > 0:
				keeper = engine.Kernel
			case len(c.early) > 0:
				keeper = engine.User
			case len(w.ct.Active) > 0:
				keeper = engine.SameLength
			}
			if keeper != c.keeper {
				t.Errorf("%s keeps the numbers, want %s", keeper, c.keeper)
			}
		})
	}
}

// TestLateHelper has connections whose helper was attached after NAT, so that the kernel has no
// room to adjust: the engine takes over, from the first command that needs it.
func TestLateHelper(t *testing.T) {
	early := conntracktest.Early{}
	w := newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.KeptLabel, c.Early = keptLabel, early })
	w.entry.NoSeqAdj = true
	w.login()
	w.say(client, "PASV\r\n")
	const in = "227 ok (192,168,1,2,145,37).\r\n"
	// Conntrack has seen the first reply already.
	if got, want := w.say(server, in), "227   ok (192,0,2,2,145,37).\r\n"; got != want {
		t.Errorf("the first reply came out as %q, want %q", got, want)
	}
	w.say(client, "PASV\r\n")
	if got, want := w.say(server, in), "227 ok (192,0,2,2,145,37).\r\n"; got != want || !early[natReply] {
		t.Errorf("the second reply came out as %q, want %q; early %v", got, want, early)
	}

	w = newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.KeptLabel, c.Early = keptLabel, conntracktest.Early{} })
	w.entry.NoSeqAdj = true
	w.login()
	if got, want := w.say(client, "PORT 203,0,113,101,4,1\r\n"), "PORT 192,168,1,1,4,1\r\n"; got != want {
		t.Errorf("PORT came out as %q, want %q", got, want)
	}
}

// TestPostNAT has packets come from behind NAT: with the addresses that the other side sees.
func TestPostNAT(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.PostNAT = true })
	behind := *w.entry
	behind.Tuples = [2]expect.Tuple{
		{Src: natReply.Dst, Dst: natReply.Src},
		{Src: natOriginal.Dst, Dst: natOriginal.Src},
	}
	w.entry = &behind
	w.login()
	w.say(client, "PASV\r\n")
	if got, want := w.say(server, "227 ok (192,168,1,2,145,37).\r\n"), "227 ok (192,0,2,2,145,37).\r\n"; got != want {
		t.Errorf("227 came out as %q, want %q", got, want)
	}
	if got, want := w.say(client, "PORT 203,0,113,101,4,1\r\n"), "PORT 192,168,1,1,4,1\r\n"; got != want {
		t.Errorf("PORT came out as %q, want %q", got, want)
	}
	if got, want := fmt.Sprint(w.expectations()), "[203.0.113.101>192.0.2.2:37157 192.168.1.2>192.168.1.1:1025]"; got != want {
		t.Errorf("expected %s, want %s", got, want)
	}
}

// TestForged has packets on the tuple of a connection whose numbers the engine keeps that are not
// its own. In front of conntrack nobody has looked at their numbers.
func TestForged(t *testing.T) {
	for name, forge := range map[string]func(w *world) []byte{
		"data":           func(w *world) []byte { return w.segment(server, 0x77777777, "x") },
		"another dialog": func(w *world) []byte { return w.segment(server, 0x77777777, "220 ready\r\n") },
		"SYN": func(w *world) []byte {
			syn := w.segment(server, 99, "")
			syn[33] |= 2
			return syn
		},
		"acknowledgement": func(w *world) []byte {
			packet := w.segment(client, 0x77777777, "")
			binary.BigEndian.PutUint32(packet[28:], w.next[server]+1000)
			return packet
		},
	} {
		t.Run(name, func(t *testing.T) {
			early := conntracktest.Early{}
			w := newWorld(t, natOriginal, natReply, kept, func(c *engine.Config) { c.Early = early })
			w.login()
			w.say(client, "PASV\r\n")
			const in, out = "227 ok (192,168,1,2,145,37).\r\n", "227 ok (192,0,2,2,145,37).\r\n"
			start := w.next[server]
			w.say(server, in)
			w.id++
			if v := w.eng.Handle(w.id, forge(w), nil); len(v) != 1 {
				t.Errorf("verdicts %v", v)
			}
			if got := payloads(t, w.send(server, start, in)); got != out {
				t.Errorf("sent again, 227 came out as %q", got)
			}
			if tcp := decode(t, w.send(server, w.next[server], "226 done\r\n")[0]); tcp.Seq != start+uint32(len(out)) || len(early) != 1 {
				t.Errorf("the next line has number %d, want %d; early %v", tcp.Seq, start+uint32(len(out)), early)
			}
		})
	}
}

// TestUserRestartActive has another daemon see the server's replies at once, so that it believes a
// PORT.
func TestUserRestartActive(t *testing.T) {
	early := conntracktest.Early{}
	w := newWorld(t, natOriginal, natReply, kept, func(c *engine.Config) { c.Early = early })
	w.login()
	w.say(client, "EPSV\r\n")
	w.say(server, "229 ok (|||37158|)\r\n")
	clear(early)
	w.restart(kept, func(c *engine.Config) { c.Early = early })
	w.say(client, "TYPE I\r\n")
	if !early[natReply] {
		t.Errorf("early %v", early)
	}
	w.say(server, "200 ok\r\n")
	if got, want := w.say(client, "PORT 203,0,113,101,4,1\r\n"), "PORT 192,168,1,1,4,1\r\n"; got != want {
		t.Errorf("PORT came out as %q, want %q", got, want)
	}
}
