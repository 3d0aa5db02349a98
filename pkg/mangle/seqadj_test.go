package mangle

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// seqadj is the kernel's struct nf_ct_seqadj, with what it does
// (net/netfilter/nf_conntrack_seqadj.c).
type seqadj struct {
	position      Seq
	before, after int32
}

// seq is nf_ct_seq_offset and the sum: the number of the sender's packet that leaves.
func (a seqadj) seq(seq Seq) Seq {
	if a.position.Before(seq) {
		return seq.Add(int(a.after))
	}
	return seq.Add(int(a.before))
}

// ack is what nf_ct_seq_adjust does to the acknowledgements of the receiver.
func (a seqadj) ack(ack Seq) Seq {
	if a.position.Before(ack.Add(int(-a.before))) {
		return ack.Add(int(-a.after))
	}
	return ack.Add(int(-a.before))
}

// window is what tcp_in_window (nf_conntrack_proto_tcp.c) makes of an acknowledgement that it
// compares with what the sender has sent: it calls nf_ct_seq_offset with the receiver's number.
func (a seqadj) window(ack Seq) Seq {
	if a.position.Before(ack - 1) {
		return ack.Add(int(-a.after))
	}
	return ack.Add(int(-a.before))
}

// undo returns the number that a packet must have for the kernel to make seq of it, and false
// if there is none.
func (a seqadj) undo(seq Seq) (Seq, bool) {
	for _, s := range []Seq{seq.Add(int(-a.before)), seq.Add(int(-a.after))} {
		if a.seq(s) == seq {
			return s, true
		}
	}
	return 0, false
}

func adjustment(e *Edits) seqadj {
	position, before, after := e.Adjustment()
	return seqadj{position, before, after}
}

// sender returns the number in w's text that the kernel makes of an acknowledgement of the
// receiver's first n bytes.
func (w *testStream) sender(a seqadj, n int) int {
	return a.ack(w.start.Add(n + int(w.resumed))).Sub(w.start)
}

// checkWindow checks that window tracking takes no acknowledgement for one of bytes that have
// not been sent: at the time of an adjustment, that is all up to the end of its edit.
func checkWindow(t *testing.T, w *testStream, kernel seqadj, edited int) {
	t.Helper()
	for j := edited; j <= len(w.text); j++ {
		for n := range w.image(j) + 1 {
			ack := w.start.Add(n + int(w.resumed))
			if got := kernel.window(ack).Sub(w.start); got > j {
				t.Fatalf("%v: %+v: window tracking takes %d received bytes for %d, of which %d have been sent", w, kernel, n, got, j)
			}
		}
	}
}

// One edit at a time, each acknowledged before the next one, as a client has it that waits for
// its replies: the kernel's rule and Offset are the same from the edit before the last one on,
// and acknowledgements come out exact. That cannot be where a line grows in a stream that has
// shrunk, since window tracking would not have it: there it holds after the edit only.
func TestAdjustmentOneByOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 10))
	for range 60 {
		w := randomStream(rnd, 60, 6)
		changes := w.changes
		w.changes = nil
		var e Edits
		e.Resume(w.resumed)
		kernel := seqadj{before: w.resumed, after: w.resumed}
		from := 0 // end of the edit before
		for _, c := range changes {
			if rnd.IntN(2) == 0 {
				e.Forget(w.start.Add(w.image(from) + int(w.resumed)))
				if e.Len() != 0 {
					t.Fatalf("%v: %d edits after all has been acknowledged", w, e.Len())
				}
			} else { // or another process goes on
				e.Resume(kernel.after)
			}
			w.changes = append(w.changes, c)
			w.add(t, &e, c)
			if c.delta() != 0 { // else the kernel need not know
				was := kernel
				kernel = adjustment(&e)
				before := was.after
				if before < 0 && c.delta() > 0 {
					before = kernel.after
					from = c.end()
				}
				if kernel.before != before || kernel.after != was.after+int32(c.delta()) {
					t.Fatalf("%v: %+v, before that %+v", w, kernel, was)
				}
				checkWindow(t, w, kernel, c.end())
			}
			for i := from; i < len(w.text); i++ {
				for j := i + 1; j <= len(w.text); j++ {
					first, at, payload := w.segment(t, &e, i, j)
					if got, want := kernel.seq(first), first.Add(int(e.Offset(first))); got != want {
						t.Fatalf("%v: %+v: segment %d to %d leaves as %d, want %d", w, kernel, i, j, got, want)
					}
					// An acknowledgement of the segment is one of what vanishes after it, too:
					// the sender has sent that before the edit could be made.
					if got, want := w.sender(kernel, at+len(payload)), w.acked(at+len(payload)); got != want || got < j {
						t.Fatalf("%v: %+v: segment %d to %d is acknowledged up to %d, want %d", w, kernel, i, j, got, want)
					}
				}
			}
			from = c.end()
		}
	}
}

// Several edits that may all be on their way. The kernel remembers one change only, so it
// cannot be right for what lies between them, as the first check shows. But every segment can
// be given a number that comes out right; no acknowledgement is taken for more than it is; and
// after the last change all is exact.
func TestAdjustmentSeveral(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	wrong := 0
	for range 150 {
		w := randomStream(rnd, 60, 1+rnd.IntN(6))
		n := len(w.changes)
		for n > 0 && w.changes[n-1].delta() == 0 { // the kernel does not need these
			n--
		}
		if n == 0 {
			continue
		}
		whole := w.changes
		w.changes = whole[:n]
		kernel := adjustment(w.edits(t))
		w.changes = whole
		e := w.edits(t)
		last := w.image(whole[n-1].end())
		checkWindow(t, w, kernel, whole[n-1].end())
		for i := range w.text {
			for j := i + 1; j <= len(w.text); j++ {
				first, at, payload := w.segment(t, e, i, j)
				want := first.Add(int(e.Offset(first)))
				if kernel.seq(first) != want {
					wrong++
					if i >= whole[n-1].end() {
						t.Fatalf("%v: %+v: segment %d to %d, after all changes, leaves as %d, want %d",
							w, kernel, i, j, kernel.seq(first), want)
					}
				}
				if s, ok := kernel.undo(want); !ok {
					t.Fatalf("%v: %+v: no number for segment %d to %d comes out as %d", w, kernel, i, j, want)
				} else if kernel.seq(s) != want {
					t.Fatalf("%v: %+v: %d comes out as %d, want %d", w, kernel, s, kernel.seq(s), want)
				}
				got, want2 := w.sender(kernel, at+len(payload)), w.acked(at+len(payload))
				if got > want2 || at+len(payload) >= last && got != want2 {
					t.Fatalf("%v: %+v: segment %d to %d is acknowledged up to %d, want %d", w, kernel, i, j, got, want2)
				}
			}
		}
		// Not for parts of segments either.
		for k := range len(w.received()) + 1 {
			if got, want := w.sender(kernel, k), w.acked(k); got > want || k >= last && got != want {
				t.Fatalf("%v: %+v: %d bytes are acknowledged as %d, want %d", w, kernel, k, got, want)
			}
		}
	}
	if wrong == 0 {
		t.Error("the kernel was right everywhere, so there is nothing to make up for")
	}
}

func TestAdjustment(t *testing.T) {
	type seg = struct {
		at  Seq
		old int
		new string
	}
	for _, tt := range []struct {
		name    string
		resumed int32
		edits   []seg
		want    seqadj
	}{
		{"longer", 0, []seg{{100, 5, "12345678"}}, seqadj{104, 0, 3}},
		{"shorter", 0, []seg{{100, 5, "12"}}, seqadj{101, 0, -3}},
		{"longer in a stream that has grown", 10, []seg{{100, 5, "12345678"}}, seqadj{104, 10, 13}},
		{"shorter in a stream that has shrunk", -10, []seg{{100, 5, "12"}}, seqadj{101, -10, -13}},
		{"longer in a stream that has shrunk: no change for window tracking to be wrong about", -10,
			[]seg{{100, 5, "12345678"}}, seqadj{104, -7, -7}},
		{"over the wrap-around", 0, []seg{{1<<32 - 2, 5, "12345678"}}, seqadj{2, 0, 3}},
		{"same length before", 0, []seg{{50, 1, "x"}, {100, 5, "12"}}, seqadj{101, 0, -3}},
		{"two that grow: what lies between them is exact", 0, []seg{{100, 5, "12345678"}, {200, 5, "123456"}}, seqadj{204, 3, 4}},
		// Nothing before the second may be taken for more than it is: the offset before is
		// that of what lies before the first.
		{"two that shrink", 0, []seg{{100, 5, "12"}, {200, 5, "123"}}, seqadj{199, 0, -5}},
		{"first example of Adjustment", 0, []seg{{100, 4, "123456"}, {200, 10, "12345"}}, seqadj{204, 2, -3}},
		{"second example of Adjustment", -5, []seg{{200, 4, "123456"}}, seqadj{203, -3, -3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var e Edits
			e.Resume(tt.resumed)
			for _, d := range tt.edits {
				must.Do(t, e.Add(d.at, make([]byte, d.old), []byte(d.new)))
			}
			if got := adjustment(&e); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// Forgetting changes no offset and no byte that the receiver may still lack. Of what it has
// acknowledged, a copy that is sent again (its acknowledgement got lost on the way to the
// sender) may hold the bytes as they were, in places that the receiver has filled.
func TestForget(t *testing.T) {
	rnd := rand.New(rand.NewPCG(13, 14))
	forgotten := 0
	for range 40 {
		w := randomStream(rnd, 40, 5)
		want := w.received()
		for n := range len(want) + 1 {
			ack := w.start.Add(n + int(w.resumed))
			e := w.edits(t)
			e.Forget(ack)
			e.Forget(ack.Add(-1)) // an older one
			kept := 0
			for _, c := range w.changes {
				if w.image(c.end()) > n {
					kept++
				}
			}
			if e.Len() != kept {
				t.Fatalf("%v: %d edits after %d bytes, want %d", w, e.Len(), n, kept)
			}
			forgotten += len(w.changes) - kept
			before := w.edits(t)
			for i := range w.text {
				for j := i + 1; j <= len(w.text); j++ {
					_, _, all := w.segment(t, before, i, j)
					first, payload, changed := e.Render(nil, w.start.Add(i), w.text[i:j])
					if !changed {
						payload = w.text[i:j]
					}
					at := first.Add(int(e.Offset(first))).Sub(w.start.Add(int(w.resumed)))
					end := w.image(j)
					if end <= n {
						// All of it has been acknowledged: no byte may lie beyond that.
						if at+len(payload) > n {
							t.Fatalf("%v: after %d bytes segment %d to %d is %q at %d", w, n, i, j, payload, at)
						}
						continue
					}
					// The part that has not been acknowledged.
					if at+len(payload) != end || !bytesFrom(payload, at, n, want) {
						t.Fatalf("%v: after %d bytes segment %d to %d is %q at %d, not %q", w, n, i, j, payload, at, all)
					}
				}
			}
			// Edits that follow find the offset as it was.
			if got, want := e.Offset(w.start.Add(len(w.text))), before.Offset(w.start.Add(len(w.text))); got != want {
				t.Fatalf("%v: offset %d, want %d", w, got, want)
			}
		}
	}
	if forgotten == 0 {
		t.Error("nothing was ever forgotten")
	}
}

// bytesFrom reports whether payload, which begins at index at, is what want has from n on.
func bytesFrom(payload []byte, at, n int, want []byte) bool {
	from := max(at, n)
	return slices.Equal(payload[from-at:], want[from:at+len(payload)])
}

// A long connection has no more edits in memory than are on their way.
func TestForgetBoundsMemory(t *testing.T) {
	var e Edits
	seq, off := Seq(1<<32-500), 0
	for i := range 10_000 {
		text := []byte("1234567890"[:1+i%10])
		must.Do(t, e.Add(seq, make([]byte, 5), text))
		off += len(text) - 5
		seq = seq.Add(1 << 20) // farther than numbers can be compared, all in all
		if got := e.Offset(seq); got != int32(off) {
			t.Fatalf("edit %d: offset %d, want %d", i, got, off)
		}
		e.Forget(seq.Add(off))
		if e.Len() != 0 || e.list != nil {
			t.Fatalf("edit %d: %d in memory", i, e.Len())
		}
	}
}
