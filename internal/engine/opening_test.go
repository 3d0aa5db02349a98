package engine_test

import (
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// TestOpening says which connections are seen from their beginning: their first line may be a PORT.
func TestOpening(t *testing.T) {
	const (
		port  = "USER me\r\nPORT 203,0,113,101,200,1\r\n"
		greet = "220 ready\r\n"
	)
	// again opens another connection between the same ports, whose numbers are n bytes further on.
	again := func(w *world, n uint32) {
		w.next[client] += n
		w.next[server] += n
		w.open()
	}
	const nothing = engine.Reason(255) // is done or said
	for name, c := range map[string]struct {
		open    func(*world)
		refused engine.Reason // 0 for helped
	}{
		"SYN-ACK":                    {func(w *world) { w.open() }, 0},
		"no SYN-ACK":                 {func(w *world) { w.acked[client] = w.next[client] }, engine.Midstream},
		"SYN-ACK sent twice":         {func(w *world) { w.open(); w.open() }, 0},
		"another one, near":          {func(w *world) { w.login(); w.say(client, "AUTH TLS\r\n"); w.say(server, "234 go\r\n"); again(w, 10) }, 0},
		"another one, right behind":  {func(w *world) { w.login(); w.say(client, "GET /\r\n"); again(w, 1) }, 0},
		"another one, far":           {func(w *world) { w.login(); again(w, 1<<30) }, 0},
		"another one, within a line": {func(w *world) { w.login(); w.say(client, "PORT 203,0,"); again(w, 1) }, 0},
		"another one, without SYN-ACK": {func(w *world) {
			w.login()
			w.entry.Labels = [16]byte{}
			w.next[client] += 1 << 30
			w.next[server] += 1 << 30
			w.acked = w.next
		}, engine.Midstream},
		"SYN-ACK in the middle": {func(w *world) {
			// A server moves the beginning of its client's stream to where an upload holds a PORT.
			w.open()
			w.say(server, greet)
			w.say(client, "POST / HTTP/1.1\r\n")
			w.synAck()
		}, nothing},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply)
			c.open(w)
			before := w.eng.Stats()
			w.say(server, greet)
			w.say(client, port)
			after := w.eng.Stats()
			helped := after.Expectations - before.Expectations
			if c.refused == 0 && helped != 1 {
				t.Errorf("the first line is not helped:\n%s", &w.log)
			}
			if c.refused == nothing && (helped != 0 || after.Refused != before.Refused) {
				t.Errorf("the first line is read:\n%s", &w.log)
			}
			if c.refused != 0 && c.refused != nothing && (helped != 0 || after.Refused[c.refused] != before.Refused[c.refused]+1) {
				t.Errorf("the first line is not refused as %q:\n%s", c.refused, &w.log)
			}
		})
	}
}

// TestSynproxy has the sequence numbers of the server adjusted by a large offset after the engine has looked
// the connection up, as SYNPROXY does: acknowledgements are compared after translation.
func TestSynproxy(t *testing.T) {
	for _, offset := range []int32{1 << 30, -1 << 31, 1<<31 - 2, 5 << 20} {
		for _, later := range []bool{true, false} {
			w := newWorld(t, natOriginal, natReply)
			w.entry.Apply(expect.Update{SetLabel: proxiedLabel})
			adjust := func() { w.entry.SeqAdj[server] = expect.SeqAdj{After: offset, Before: offset} }
			if !later {
				adjust()
			}
			w.acked[client] = w.next[client]
			w.say(server, "220 ready\r\n")
			adjust()
			w.acked[server] = w.entry.Seq(server, w.next[server])
			w.say(client, "USER me\r\n")
			w.say(server, "230 in\r\n")
			for range 3 {
				if got, want := w.say(client, "PORT 203,0,113,101,200,1\r\n"), "PORT 192,168,1,1,200,1\r\n"; got != want {
					t.Errorf("offset %d: PORT came out as %q, want %q\n%s", offset, got, want, &w.log)
				}
				w.say(server, "200 ok\r\n")
				w.say(client, "PASV\r\n")
				if got, want := w.say(server, "227 (192,168,1,2,4,1)\r\n"), "227 (192,0,2,2,4,1)\r\n"; got != want {
					t.Errorf("offset %d: 227 came out as %q, want %q", offset, got, want)
				}
			}
			if lookups := w.ct.Lookups; lookups > 2 {
				t.Errorf("offset %d: %d look-ups", offset, lookups)
			}
		}
	}
}
