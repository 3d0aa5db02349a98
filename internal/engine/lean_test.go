package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect/memory"
)

var askedLabel, editedLabel, opaqueLabel = allLabels.ReplyDue, allLabels.Rewritten, allLabels.Ignore

func lean(c *engine.Config) {
	c.Mode = engine.Lean(allLabels)
}

// queued passes a segment through the engine as the lean rules do: a 227 or 229 as one that is
// sent again where none is due, and not at all where none has been rewritten.
func (w *world) queued(dir expect.Direction, seq uint32, text string) string {
	w.t.Helper()
	due := w.entry.Label(askedLabel)
	if dir == client || due || !strings.HasPrefix(text, "227") && !strings.HasPrefix(text, "229") {
		return payloads(w.t, w.send(dir, seq, text))
	}
	if !w.entry.Label(editedLabel) {
		return text
	}
	w.id++
	w.sent[w.id] = w.segment(dir, seq, text)
	return payloads(w.t, w.leave(w.eng.HandleRetransmit(w.id, w.sent[w.id], nil)))
}

// unseen says what the lean rules do not queue.
func (w *world) unseen(dir expect.Direction, text string) {
	w.next[dir] += uint32(len(text))
	w.acked[dir] = w.entry.Seq(dir, w.next[dir])
	if dir == client && strings.HasPrefix(text, "PASV") || strings.HasPrefix(text, "EPSV") {
		w.entry.Apply(expect.Update{SetLabel: askedLabel})
	}
}

// TestLean has transfers of which the engine sees one line each, the first one in the middle of the
// connection.
func TestLean(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, lean)
	for i := range 200 {
		if i == 100 {
			w.restart(lean)
		}
		for _, c := range []struct {
			dir     expect.Direction
			in, out string
		}{
			{server, "227 (192,168,1,2,145,37)\r\n", "227 (192,0,2,2,145,37)\r\n"},
			{server, "229 ok (|||37158|)\r\n", "229 ok (|||37158|)\r\n"},
			{client, "PORT 203,0,113,101,4,1\r\n", "PORT 192,168,1,1,4,1\r\n"},
			{client, "eprt |1|203.0.113.101|51202|\r\n", "eprt |1|192.168.1.1|51202|\r\n"},
		} {
			if c.dir == server {
				w.unseen(client, "PASV\r\n")
			}
			installed, start := len(w.ct.Installed), w.next[c.dir]
			if got := w.say(c.dir, c.in); got != c.out || len(w.ct.Installed) != installed+1 {
				t.Fatalf("%d: %q came out as %q, want %q, %d expected", i, c.in, got, c.out, len(w.ct.Installed)-installed)
			}
			if w.entry.Label(askedLabel) {
				t.Fatalf("%d: %q is still asked for", i, c.in)
			}
			// Sent again, and once more together with what follows.
			for _, more := range []string{"", "150 here it comes\r\n"} {
				if c.dir == client {
					more = ""
				}
				if got := w.queued(c.dir, start, c.in+more); got != c.out+more {
					t.Fatalf("%d: %q came again as %q", i, c.in+more, got)
				}
			}
			if len(w.ct.Installed) != installed+1 {
				t.Fatalf("%d: %q is expected twice", i, c.in)
			}
			w.now = w.now.Add(engine.DefaultHoldTime)
			w.unseen(server, "150 here it comes\r\n226 done\r\n")
			w.unseen(client, "NOOP\r\n")
		}
	}
	if !w.entry.Label(editedLabel) {
		t.Errorf("labels %v", labels(w.entry))
	}
	if n := w.eng.Stats().Held; n != 0 {
		t.Errorf("%d packets were held", n)
	}
}

// TestLeanWithinSegment has lines that do not begin their segment: they keep their length, since the rules queue no
// retransmission of such a segment, and TCP would take what is left of it for new bytes.
func TestLeanWithinSegment(t *testing.T) {
	for _, segments := range [][]string{
		{"22", "7 Entering Passive Mode (192,168,1,2,145,37)\r\n"},
		{"200 ok\r\n227 Entering Passive Mode (192,168,1,2,145,37)\r\n"},
	} {
		w := newWorld(t, natOriginal, natReply, lean)
		w.unseen(client, "PASV\r\n")
		for _, s := range segments {
			if got := w.say(server, s); got != s {
				t.Errorf("%q: %q came out as %q, want it unchanged", segments, s, got)
			}
		}
		if failed := w.eng.Stats().Failed; failed != 1 {
			t.Errorf("%q: %d announcements failed, want 1", segments, failed)
		}
	}
}

// TestLeanUnasked says that an answer counts once for each time that the client asks.
func TestLeanUnasked(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, lean)
	answer := func(text string) string {
		got := w.queued(server, w.next[server], text)
		w.next[server] += uint32(len(text))
		return got
	}
	unasked := func(text string) {
		t.Helper()
		before := len(w.ct.Installed)
		if got := answer(text); got != text || len(w.ct.Installed) != before {
			t.Errorf("%q came out as %q, expected %v", text, got, w.expectations())
		}
	}
	unasked("227 (192,168,1,2,145,37)\r\n")
	w.unseen(client, "PASV\r\n")
	unasked("227 (192,168,1,7,145,37)\r\n") // another host's: PASV is not answered yet
	if got, want := answer("227 (192,168,1,2,145,37)\r\n"), "227 (192,0,2,2,145,37)\r\n"; got != want {
		t.Errorf("227 came out as %q, want %q", got, want)
	}
	unasked("227 (192,168,1,2,145,38)\r\n")
	unasked("229 ok (|||37158|)\r\n")
	unasked("234 ok\r\n227 (192,168,1,2,145,38)\r\n")
}

// TestLeanSplit lets the beginning of a line pass: it is too late for the rest.
func TestLeanSplit(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, lean)
	w.unseen(client, "PASV\r\n")
	w.harmless(server, "227 (192,168,1,2,")
	if _, waits := w.eng.Deadline(); waits {
		t.Error("a packet waits")
	}
	w.harmless(server, "145,37)\r\n")
	if w.logged("kind=failed") != 1 {
		t.Errorf("log:\n%s", &w.log)
	}
	w.unseen(client, "PASV\r\n")
	if got, want := w.say(server, "227 (192,168,1,2,145,37)\r\n"), "227 (192,0,2,2,145,37)\r\n"; got != want {
		t.Errorf("the next 227 came out as %q, want %q", got, want)
	}
}

// TestLeanWithoutEnd has the end of a line in the next segment, as the kernel's helper reads it.
func TestLeanWithoutEnd(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, lean)
	for _, u := range []struct{ before, in, out string }{
		{"", "PORT 203,0,113,101,200,1\r", "PORT 192,168,1,1,200,1\r"},
		{"PASV\r\n", "227 (192,168,1,2,145,37)", "227 (192,0,2,2,145,37)"},
		{"EPSV\r\n", "229 ok (|||37158|)", "229 ok (|||37158|)"},
	} {
		dir := client
		if u.before != "" {
			w.unseen(client, u.before)
			dir = server
		}
		if got := w.say(dir, u.in); got != u.out {
			t.Errorf("%q came out as %q", u.in, got)
		}
		w.harmless(dir, "\r\n")
	}
	if len(w.ct.Installed) != 3 {
		t.Errorf("expected %v", w.expectations())
	}
}

// TestLeanBetween has a reply between two that are rewritten: the kernel numbers it right while the second one waits.
func TestLeanBetween(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, lean)
	for range 3 {
		w.unseen(client, "PASV\r\n")
		between := w.next[server]
		want := w.entry.Seq(server, between)
		w.harmless(server, "226 done\r\n")
		w.say(server, "227 (192,168,1,2,145,37)\r\n")
		if got := w.entry.Seq(server, between); got != want {
			t.Errorf("the kernel gives what was sent before the 227 the number %d, want %d", got, want)
		}
	}
}

// TestLeanActive has the rules queue what follows a PORT until the engine has read that, whatever it makes of it.
func TestLeanActive(t *testing.T) {
	for name, in := range map[string]string{"helped": port, "refused": "PORT 1,2,3,4,5,6\r\n", "unreadable": "EPRT x\r\n"} {
		w := newWorld(t, natOriginal, natReply, lean)
		for range 2 { // a retransmission, too
			w.entry.Apply(expect.Update{SetLabel: allLabels.Active})
			w.send(client, 1000, in)
			if w.entry.Label(allLabels.Active) {
				t.Errorf("%s: labels %v", name, labels(w.entry))
			}
		}
	}
}

// TestLeanActiveLeft has a PORT pass while no daemon runs: what follows is not queued for ever.
func TestLeanActiveLeft(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, lean)
	w.entry.Apply(expect.Update{SetLabel: allLabels.Active})
	w.harmless(client, "RETR x\r\n")
	if w.entry.Label(allLabels.Active) {
		t.Errorf("labels %v", labels(w.entry))
	}
}

// TestLeanEncrypted has the connection taken out of the queue.
func TestLeanEncrypted(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, lean)
	w.say(server, "234 nobody has asked\r\n")
	if len(labels(w.entry)) != 0 {
		t.Errorf("without AUTH: labels %v", labels(w.entry))
	}
	w.say(client, "AUTH TLS\r\n")
	w.say(server, "234 ok\r\n")
	if !w.entry.Label(opaqueLabel) {
		t.Errorf("labels %v", labels(w.entry))
	}
}

// TestPortTaken has another connection expect a data connection at the same place.
func TestPortTaken(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	other := w.ct.Add(tuple("203.0.113.101:50775", "192.0.2.2:21"), tuple("192.168.1.2:21", "192.168.1.1:50775"))
	taken := expect.For(&other.Master, server, 37157)
	if err := w.ct.Announce(&other.Master, taken, expect.Update{}); err != nil {
		t.Fatal(err)
	}
	w.login()
	w.say(client, "PASV\r\n")
	got := w.say(server, "227 ok (192,168,1,2,145,37)\r\n")
	x := w.ct.Installed[len(w.ct.Installed)-1]
	if !strings.HasPrefix(got, "227 ok (192,0,2,2,") || got == "227 ok (192,0,2,2,145,37)\r\n" || x.Dst == taken.Dst || x.Port != 37157 {
		t.Errorf("227 came out as %q, expected %+v", got, x)
	}
	if want := x.Dst.Port(); !strings.Contains(got, fmt.Sprintf(",%d,%d)", want>>8, want&255)) {
		t.Errorf("227 came out as %q, expected is port %d", got, want)
	}
}

// TestLeanReused has the client's port used again for a connection that NAT sends to another server.
func TestLeanReused(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, lean)
	w.unseen(client, "PASV\r\n")
	w.say(server, "227 (192,168,1,2,145,37)\r\n")
	w.entry.Master = expect.Master{Tuples: [2]expect.Tuple{natOriginal, tuple("192.168.1.3:21", "192.168.1.1:50774")}, Helper: "sane"}
	w.entry.Labels = [16]byte{}
	w.next = [2]uint32{0x40000000, 0x50000000}
	w.acked = w.next
	w.say(client, "PORT 203,0,113,101,4,1\r\n")
	if got := w.expectations(); got[len(got)-1] != "192.168.1.3>192.168.1.1:1025" {
		t.Errorf("expected %v", got)
	}
}

// announcer sees what the engine takes an entry for when it asks to have it changed: that is what is put
// back if the kernel does a part of it only.
type announcer struct {
	*memory.Conntrack
	t     *testing.T
	entry *memory.Entry
	set   []int
}

func (a *announcer) Announce(m *expect.Master, x expect.Expectation, u expect.Update) error {
	for _, bit := range []int{u.SetLabel, u.ClearLabel} {
		if bit != 0 && m.Label(bit) != a.entry.Label(bit) {
			a.t.Errorf("label %d is %v, and the engine does not know", bit, a.entry.Label(bit))
		}
	}
	if u.SetLabel != 0 {
		a.set = append(a.set, u.SetLabel)
	}
	return a.Conntrack.Announce(m, x, u)
}

// TestLeanLabels wants the engine to know the labels that it changes, also those of a connection that has
// been at rest, and to set none twice.
func TestLeanLabels(t *testing.T) {
	a := &announcer{t: t}
	w := newWorld(t, natOriginal, natReply)
	a.Conntrack, a.entry = w.ct, w.entry
	w.restart(lean, func(c *engine.Config) { c.Conntrack = a })
	for range 3 {
		w.unseen(client, "PASV\r\n")
		w.say(server, "227 (192,168,1,2,145,37)\r\n")
	}
	if !slices.Equal(a.set, []int{editedLabel}) {
		t.Errorf("labels %v were set", a.set)
	}
}
