package engine_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// payloads returns what the other side gets of the packets, one after the other.
func payloads(t testing.TB, packets [][]byte) string {
	var s strings.Builder
	for _, p := range packets {
		s.Write(decode(t, p).Payload)
	}
	return s.String()
}

// ids returns whose verdicts they are, and how many of them come with a changed packet.
func ids(verdicts []engine.Verdict) (ids []uint32, changed int) {
	for _, v := range verdicts {
		ids = append(ids, v.ID)
		if v.Packet != nil {
			changed++
		}
	}
	return ids, changed
}

// TestSplit cuts a 227 and a PORT in every place: what arrives is the line as it would be in
// one piece, and no packet waits longer than for the rest of the numbers.
func TestSplit(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"227 Entering Passive Mode (192,168,1,2,145,37).\r\n", "227 Entering Passive Mode (192,0,2,2,145,37).\r\n"},
		{"PORT 203,0,113,101,145,37\r\n", "PORT 192,168,1,1,145,37\r\n"},
		{"EPRT |1|203.0.113.101|37157|\r\n", "EPRT |1|192.168.1.1|37157|\r\n"},
	} {
		for cut := 1; cut < len(c.in); cut++ {
			w := newWorld(t, natOriginal, natReply)
			w.login()
			dir := client
			if c.in[0] == '2' {
				dir = server
				w.say(client, "PASV\r\n")
			}
			first := w.say(dir, c.in[:cut])
			if begun := strings.ContainsAny(c.in[min(cut, 5):cut], "123456789"); begun && c.in[0] != 'E' && first != "" {
				t.Errorf("%q was let go before the rest was there", first)
			}
			if first != "" && first != c.in[:cut] {
				t.Errorf("%q was let go as %q", c.in[:cut], first)
			}
			if got := first + w.say(dir, c.in[cut:]); got != c.out {
				t.Errorf("%q and %q came out as %q", c.in[:cut], c.in[cut:], got)
			}
			if _, waits := w.eng.Deadline(); waits || len(w.ct.Installed) != 1 {
				t.Errorf("cut at %d: %d expectations, packets wait: %v", cut, len(w.ct.Installed), waits)
			}
		}
	}
}

// TestSplitWithoutNAT says that nothing waits where nothing can have to be rewritten.
func TestSplitWithoutNAT(t *testing.T) {
	w := newWorld(t, tuple("192.168.0.2:40000", "198.51.100.9:21"), tuple("198.51.100.9:21", "192.168.0.2:40000"))
	w.login()
	for _, s := range strings.SplitAfter("PORT 192,168,0,2,4,1\r\n", "") {
		if got := w.say(client, s); got != s {
			t.Errorf("%q came out as %q", s, got)
		}
	}
	if len(w.ct.Installed) != 1 {
		t.Errorf("%d expectations", len(w.ct.Installed))
	}
}

// TestGapWithoutNAT says that packets do not wait there either, and are read all the same.
func TestGapWithoutNAT(t *testing.T) {
	w := newWorld(t, tuple("192.168.0.2:40000", "198.51.100.9:21"), tuple("198.51.100.9:21", "192.168.0.2:40000"))
	w.login()
	at := w.next[client]
	lines := []string{"NOOP\r\n", "PORT 192,168,0,2,4,1\r\n", "NOOP\r\n"}
	for _, i := range []int{1, 2, 0} {
		seq := at
		for _, l := range lines[:i] {
			seq += uint32(len(l))
		}
		if got := payloads(t, w.send(client, seq, lines[i])); got != lines[i] {
			t.Errorf("%q came out as %q", lines[i], got)
		}
	}
	if _, waits := w.eng.Deadline(); waits || len(w.ct.Installed) != 1 {
		t.Errorf("%d expectations, packets wait: %v", len(w.ct.Installed), waits)
	}
}

// TestTimeUp says that a packet waits for its time and no longer, that it leaves as it came,
// and that the rest of the line is then left alone.
func TestTimeUp(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.HoldTime = 300 * time.Millisecond })
	w.login()
	w.say(client, "PASV\r\n")
	if got := w.say(server, "227 (192,168,1"); got != "" {
		t.Fatalf("%q did not wait", got)
	}
	deadline, ok := w.eng.Deadline()
	if want := w.now.Add(300 * time.Millisecond); !ok || !deadline.Equal(want) {
		t.Fatalf("the time is up at %v, want %v", deadline, want)
	}
	w.now = deadline.Add(-time.Millisecond)
	if v := w.eng.Expire(nil); len(v) != 0 {
		t.Fatalf("verdicts %v before the time was up", v)
	}
	w.now = deadline
	if of, changed := ids(w.eng.Expire(nil)); len(of) != 1 || changed != 0 {
		t.Fatalf("verdicts for %v, %d of them changed, when the time was up", of, changed)
	}
	rest := ",2,145,37)\r\n"
	if got := w.say(server, rest); got != rest {
		t.Errorf("the rest came out as %q", got)
	}
	if s := w.eng.Stats(); s.GaveUp != 1 || s.Failed != 1 || len(w.ct.Active) != 0 || w.logged("released already") != 1 {
		t.Errorf("counted %+v, still expected %v, log:\n%s", s, w.ct.Active, &w.log)
	}
}

// TestHoldTimeChanges says that another time goes for packets that wait already, that whose time is
// up first stays the first, and that none is left behind at the end.
func TestHoldTimeChanges(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.HoldTime = time.Hour })
	w.login()
	w.say(client, "PASV\r\n")
	if got := w.say(server, "227 (192,168,1"); got != "" {
		t.Fatalf("%q did not wait", got)
	}
	w.eng.Configure(engine.Config{HoldTime: time.Second})
	if deadline, ok := w.eng.Deadline(); !ok || !deadline.Equal(w.now.Add(time.Second)) {
		t.Errorf("after a shorter time the time is up at %v, want a second behind %v", deadline, w.now)
	}
	w.now = w.now.Add(500 * time.Millisecond)
	if got := w.say(client, "PORT 203,0"); got != "" {
		t.Fatalf("%q did not wait", got)
	}
	w.eng.Configure(engine.Config{HoldTime: time.Hour})
	w.now = w.now.Add(500 * time.Millisecond)
	if of, _ := ids(w.eng.Expire(nil)); len(of) != 1 {
		t.Errorf("verdicts for %v after a second", of)
	}
	if got := w.say(server, "x"); got != "x" {
		t.Errorf("the rest came out as %q", got)
	}
	w.eng.Configure(engine.Config{HoldTime: 1<<63 - 1})
	if got := w.say(client, "101,1"); got != "" {
		t.Fatalf("%q did not wait", got)
	}
	if of, _ := ids(w.eng.Flush(nil)); len(of) != 2 {
		t.Errorf("verdicts for %v at the end, want both", of)
	}
}

// TestFewer says that when fewer connections may be tracked, a packet does not wait until all of
// them are forgotten.
func TestFewer(t *testing.T) {
	const many = 1000
	w := newWorld(t, natOriginal, natReply)
	w.restart(quiet, func(c *engine.Config) { c.Conntrack, c.MaxFlows = &generated{}, many })
	packet := w.segment(server, 1, "220 ready\r\n")
	connect := func(i int) {
		packet[18], packet[19] = byte(i>>8), byte(i) // the client's address
		w.eng.Handle(1, packet, nil)
	}
	for i := range many {
		connect(i)
	}
	w.eng.Configure(engine.Config{MaxFlows: 10})
	connect(many)
	if n := w.eng.Tracked(); n < many-100 || n > many {
		t.Errorf("one packet has had %d of %d connections forgotten", many-n, many)
	}
	for i := range many {
		connect(many + 1 + i)
	}
	if n := w.eng.Tracked(); n != 10 {
		t.Errorf("%d connections are tracked, want 10", n)
	}
}

// TestGap says that what lies behind missing bytes waits for them, and goes in order.
func TestGap(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	w.say(client, "PASV\r\n")
	at := w.next[server]
	first, second := "227 (192,168,1,2,145,37)\r\n", "150 go\r\n"
	if got := w.send(server, at+uint32(len(first)), second); len(got) != 0 {
		t.Fatalf("%q did not wait", payloads(t, got))
	}
	if got, want := payloads(t, w.send(server, at, first)), "227 (192,0,2,2,145,37)\r\n"+second; got != want {
		t.Errorf("came out as %q, want %q", got, want)
	}
	if _, waits := w.eng.Deadline(); waits {
		t.Error("a packet still waits")
	}
}

// TestHeldBound says that no more than a bounded number of packets waits, of one connection
// and of all, and that none is forgotten.
func TestHeldBound(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	owed := 0
	for n := range 100 {
		src := fmt.Sprintf("203.0.113.101:%d", 2000+n)
		w.entry = w.ct.Add(tuple(src, "192.0.2.2:21"), tuple("192.168.1.2:21", fmt.Sprintf("192.168.1.1:%d", 2000+n)))
		w.say(server, "220 ready\r\n")
		for i := range 50 {
			w.id++
			packet := w.segment(server, w.next[server]+uint32(10+i), "x")
			owed += 1 - len(w.eng.Handle(w.id, packet, nil))
			if owed > 3072 {
				t.Fatalf("%d packets wait", owed)
			}
		}
	}
	if owed == 0 {
		t.Fatal("nothing waits: the test shows nothing")
	}
	if owed -= len(w.eng.Flush(nil)); owed != 0 {
		t.Errorf("%d packets got no verdict, or one too many", owed)
	}
	if _, waits := w.eng.Deadline(); waits {
		t.Error("a packet still waits")
	}
}

// TestHog has one client take all places for held packets, with one connection or many: a neighbour's line that comes in
// pieces is helped all the same.
func TestHog(t *testing.T) {
	translated := func(i int) [2]expect.Tuple {
		at := fmt.Sprintf(":%d", 2000+i)
		return [2]expect.Tuple{tuple("203.0.113.102"+at, "192.0.2.2:21"), tuple("192.168.1.2:21", "192.168.1.1"+at)}
	}
	routed := func(i int) [2]expect.Tuple {
		at := fmt.Sprintf(":%d", 2000+i)
		return [2]expect.Tuple{tuple("203.0.113.102"+at, "192.168.1.2:21"), tuple("192.168.1.2:21", "203.0.113.102"+at)}
	}
	for name, c := range map[string]struct {
		tuples          func(int) [2]expect.Tuple
		connections, of int
		released        bool
	}{
		"few connections":             {tuples: translated, connections: 6, of: 512},
		"many connections":            {tuples: translated, connections: 7000, of: 1},
		"packets that have a verdict": {tuples: routed, connections: 6, of: 512, released: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply)
			w.login()
			entry, next, acked := w.entry, w.next, w.acked
			hog := func() {
				for i := range c.connections {
					nat := c.tuples(i)
					w.entry = w.ct.Add(nat[0], nat[1])
					w.next, w.acked = [2]uint32{1000, 500_000}, [2]uint32{1000, 500_000}
					w.open()
					for j := range c.of {
						w.id++
						packet := w.segment(client, w.next[client]+uint32(10+j), "x")
						w.sent[w.id] = packet
						w.leave(w.eng.Handle(w.id, packet, nil))
						if len(w.sent) > 3072 {
							t.Fatalf("%d packets wait", len(w.sent))
						}
					}
				}
				w.entry, w.next, w.acked = entry, next, acked
			}
			hog()
			if !c.released && len(w.sent) < 2000 {
				t.Fatalf("%d packets wait: the test shows nothing", len(w.sent))
			}
			say := func(text string) string { return strings.TrimLeft(w.say(client, text), "x") }
			for i := range 3 {
				if got := say("PORT 203,0,113,"); i == 0 && got != "" {
					t.Fatalf("the beginning of a line came out as %q", got)
				}
				next, acked = w.next, w.acked
				hog()
				if got, want := say("101,200,1\r\n"), portAfter; got != want {
					t.Errorf("PORT came out as %q, want %q", got, want)
				}
				w.say(server, "200 ok\r\n")
			}
			w.eng.Flush(nil)
			if _, waits := w.eng.Deadline(); waits {
				t.Error("a packet still waits")
			}
		})
	}
}

// TestHeldEviction says that a connection's packets do not wait for ever when it is forgotten.
func TestHeldEviction(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.MaxFlows = 1 })
	w.login()
	w.say(client, "PASV\r\n")
	w.say(server, "227 (192,168,1")
	held := w.id
	w.entry = w.ct.Add(tuple("203.0.113.101:2000", "192.0.2.2:21"), tuple("192.168.1.2:21", "192.168.1.1:2000"))
	w.id++
	of, _ := ids(w.eng.Handle(w.id, w.segment(server, 1, "220 ready\r\n"), nil))
	if len(of) != 2 || of[0] != held || of[1] != w.id {
		t.Errorf("verdicts for %v, want %d and %d", of, held, w.id)
	}
	w.now = w.now.Add(time.Hour)
	if v := w.eng.Expire(nil); len(v) != 0 {
		t.Errorf("more verdicts: %v", v)
	}
}

// TestTimeUpBehindAnother lets a long line go when its time is up, after a packet of another kind: of
// the other family, or none at all.
func TestTimeUpBehindAnother(t *testing.T) {
	ip6 := make([]byte, 61)
	ip6[0], ip6[5], ip6[6], ip6[52] = 0x60, 21, 6, 0x50
	for name, other := range map[string][]byte{"nothing": nil, "half a header": {0x60}, "zeros": make([]byte, 60), "IPv6": ip6} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tuple("10.0.0.5:50774", "192.0.2.2:21"), tuple("192.0.2.2:21", "198.51.100.101:50774"))
			w.login()
			w.next[client] += 5
			w.say(client, "x\r\nPORT 10,0,0,5,4,1\r\n"+strings.Repeat("NOOP\r\n", 215))
			w.now = w.now.Add(engine.DefaultHoldTime)
			w.eng.Handle(99, other, nil)
			out := payloads(t, w.leave(w.eng.Expire(nil)))
			if !strings.HasPrefix(out, "x\r\nPORT 198,51,100,101,4,1\r\n") {
				t.Errorf("it came out as %.40q, log:\n%s", out, &w.log)
			}
		})
	}
}

// miss has text of dir pass where the engine does not see it.
func (w *world) miss(dir expect.Direction, text string) {
	w.next[dir] += uint32(len(text))
	w.acked[dir] = w.entry.Seq(dir, w.next[dir])
}

// TestPassedUnread wants nobody to wait for what passed where the engine did not see it, as soon as the
// other side has said that it has it. What comes directly behind is not read, as it may be the rest of
// a line; all that follows is.
func TestPassedUnread(t *testing.T) {
	const (
		pasv, in, out   = "PASV\r\n", "227 (192,168,1,2,4,1)\r\n", "227 (192,0,2,2,4,1)\r\n"
		port, rewritten = "PORT 203,0,113,101,200,1\r\n", "PORT 192,168,1,1,200,1\r\n"
	)
	start := func(t *testing.T) *world {
		w := newWorld(t, natOriginal, natReply)
		w.login()
		return w
	}
	say := func(t *testing.T, w *world, dir expect.Direction, text, want string) {
		t.Helper()
		if got := w.say(dir, text); got != want {
			t.Errorf("%q came out as %q, want %q", text, got, want)
		}
	}
	held := func(t *testing.T, w *world, want uint64) {
		t.Helper()
		if s := w.eng.Stats(); s.Held != want || s.GaveUp != 0 {
			t.Errorf("%d packets were held, %d times in vain, want %d", s.Held, s.GaveUp, want)
		}
	}
	t.Run("reply", func(t *testing.T) {
		w := start(t)
		for range 3 { // with the numbers off by then
			w.miss(server, "200 ok\r\n")
			w.say(client, pasv)
			say(t, w, server, in, in)
			w.say(client, pasv)
			say(t, w, server, in, out)
		}
		held(t, w, 0)
	})
	t.Run("replies, with others behind them already", func(t *testing.T) {
		w := start(t)
		w.say(client, pasv)
		before := w.acked[server]
		for range 2 {
			w.miss(server, "200 ok\r\n")
			say(t, w, server, "200 next\r\n", "")
		}
		say(t, w, server, in, "")
		had := w.acked[server]
		w.acked[server] = before
		say(t, w, client, "NOOP\r\n", "NOOP\r\n") // it has not said so yet
		w.acked[server] = had
		say(t, w, client, "NOOP\r\n", "200 next\r\n200 next\r\n"+out+"NOOP\r\n")
		held(t, w, 3)
	})
	t.Run("command", func(t *testing.T) {
		w := start(t)
		w.miss(client, "TYPE I\r\n")
		w.say(server, "200 ok\r\n")
		say(t, w, client, port, port)
		w.say(server, "200 ok\r\n")
		say(t, w, client, port, rewritten)
		held(t, w, 0)
	})
}

// TestEchoBehindGap has a client make a server say what looks like a reply in the middle of one, lose
// the piece before that, and acknowledge it (VU#328867).
func TestEchoBehindGap(t *testing.T) {
	const piece = "227 Entering Passive Mode (192,168,1,2,31,144)\r\n"
	for name, attack := range map[string]func(w *world){
		"acknowledged first": func(w *world) {
			w.miss(server, "550 aaaa")
			w.say(client, "NOOP\r\n")
			w.say(server, piece)
		},
		"held first": func(w *world) {
			before := w.acked[server]
			w.miss(server, "550 aaaa")
			missed := w.acked[server]
			w.acked[server] = before
			w.say(server, piece)
			w.acked[server] = missed
			w.say(client, "NOOP\r\n")
		},
		"within a reply of several lines": func(w *world) {
			w.say(server, "213-status\r\n")
			w.miss(client, "NOOP\r\n")
			w.say(server, "files:\r\n")
			w.say(client, "NOOP\r\n")
			w.say(server, piece)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply)
			w.login()
			w.say(client, "PASV\r\n")
			attack(w)
			if w.ct.Installed != nil {
				t.Errorf("expected %v", w.expectations())
			}
		})
	}
}
