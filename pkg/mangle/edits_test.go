package mangle

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// change is an edit by its place in the stream instead of its sequence number.
type change struct {
	at, old int
	new     string
}

func (c change) end() int   { return c.at + c.old }
func (c change) delta() int { return len(c.new) - c.old }

// testStream is one direction of a connection with all that is known of it: what the sender sends
// and what the receiver must get.
type testStream struct {
	start   Seq   // of the sender's stream
	resumed int32 // offset from before the stream
	text    []byte
	changes []change // in order, none over another
}

func (w *testStream) String() string {
	return fmt.Sprintf("start %d, offset %d, text %q, changes %+v", w.start, w.resumed, w.text, w.changes)
}

// received is the receiver's stream: the text with the changes spliced in.
func (w *testStream) received() []byte {
	var b []byte
	from := 0
	for _, c := range w.changes {
		b = append(append(b, w.text[from:c.at]...), c.new...)
		from = c.end()
	}
	return append(b, w.text[from:]...)
}

func (w *testStream) add(t testing.TB, e *Edits, c change) {
	t.Helper()
	if err := e.Add(w.start.Add(c.at), w.text[c.at:c.end()], []byte(c.new)); err != nil {
		t.Fatalf("%v: change %+v: %v", w, c, err)
	}
}

func (w *testStream) edits(t testing.TB) *Edits {
	var e Edits
	e.Resume(w.resumed)
	for _, c := range w.changes {
		w.add(t, &e, c)
	}
	return &e
}

// segment renders text[i:j] and returns where that stands in the receiver's stream.
func (w *testStream) segment(t testing.TB, e *Edits, i, j int) (first Seq, at int, payload []byte) {
	t.Helper()
	seq := w.start.Add(i)
	first, payload, changed := e.Render([]byte("before"), seq, w.text[i:j])
	if !bytes.HasPrefix(payload, []byte("before")) {
		t.Fatalf("%v: segment %d to %d: dst was overwritten: %q", w, i, j, payload)
	}
	payload = payload[len("before"):]
	if !changed {
		if len(payload) != 0 || first != seq {
			t.Fatalf("%v: segment %d to %d is unchanged, but is %q at %d", w, i, j, payload, first)
		}
		payload = w.text[i:j]
	}
	if n := i + w.covered(i, j); first != seq && first != w.start.Add(n) {
		t.Fatalf("%v: segment %d to %d begins at %d", w, i, j, first)
	}
	return first, first.Add(int(e.Offset(first))).Sub(w.start.Add(int(w.resumed))), payload
}

// covered returns how many bytes from text[i] on vanish.
func (w *testStream) covered(i, j int) int {
	for _, c := range w.changes {
		if c.at+len(c.new) <= i && i < c.end() {
			return c.end() - i
		}
	}
	return 0
}

// image returns how many bytes the receiver has when it has got all of text[:i].
func (w *testStream) image(i int) int {
	n := i
	for _, c := range w.changes {
		switch {
		case c.end() <= i:
			n += c.delta()
		case c.at < i:
			n += min(i-c.at, len(c.new)) - (i - c.at)
		}
	}
	return n
}

// acked returns how many bytes of the text the receiver has when it has n bytes: the most that
// it may acknowledge. What vanishes is acked together with the byte before it.
func (w *testStream) acked(n int) int {
	i := 0
	for i < len(w.text) && w.image(i+1) <= n {
		i++
	}
	return i
}

// randomStream has a stream of size bytes with up to n changes, near the wrap-around as often
// as not.
func randomStream(rnd *rand.Rand, size, n int) *testStream {
	w := &testStream{start: Seq(rnd.Uint32()), text: make([]byte, size)}
	switch rnd.IntN(3) {
	case 0: // the numbers wrap somewhere in the stream
		w.start = -Seq(rnd.IntN(size + 10))
	case 1: // they change their sign
		w.start = 1<<31 - Seq(rnd.IntN(size+10))
	}
	if rnd.IntN(2) == 0 {
		w.resumed = rnd.Int32N(41) - 20
	}
	for i := range w.text {
		w.text[i] = 'a' + byte(rnd.IntN(26))
	}
	at := 0
	for range n {
		if rnd.IntN(3) > 0 { // else adjacent
			at += rnd.IntN(1 + size/(n+1))
		}
		c := change{at: at, old: 1 + rnd.IntN(7)}
		size := 1 + rnd.IntN(9)
		if rnd.IntN(4) == 0 {
			size = c.old
		}
		for range size {
			c.new += string(rune('A' + rnd.IntN(26)))
		}
		if at = c.end(); at > len(w.text) {
			break
		}
		w.changes = append(w.changes, c)
	}
	return w
}

// checkAllSegments renders every segment that there can be. Wherever it begins and ends, its
// bytes must be those of the spliced stream; so any segments in any order, however often they
// are sent, give that stream. Together they must leave nothing out.
func checkAllSegments(t *testing.T, w *testStream, e *Edits) {
	t.Helper()
	want := w.received()
	for i := range w.text {
		for j := i + 1; j <= len(w.text); j++ {
			_, at, payload := w.segment(t, e, i, j)
			if at < 0 || at+len(payload) > len(want) || !bytes.Equal(payload, want[at:at+len(payload)]) {
				t.Fatalf("%v:\nsegment %d to %d is %q at %d of %q", w, i, j, payload, at, want)
			}
			// Nothing is left out between this segment and its neighbours.
			if from, to := w.image(i), w.image(j); at != from || at+len(payload) != to {
				t.Fatalf("%v:\nsegment %d to %d covers %d to %d, want %d to %d", w, i, j, at, at+len(payload), from, to)
			}
		}
	}
}

func TestRenderAllSegments(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		w := randomStream(rnd, 40, rnd.IntN(6))
		checkAllSegments(t, w, w.edits(t))
	}
}

// The same as a receiver would see it: segments cut at random, sent any number of times in any
// order, overlapping, are put together.
func TestRenderReassembly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		w := randomStream(rnd, 200, rnd.IntN(20))
		e := w.edits(t)
		want := w.received()
		got := make([]byte, len(want))
		have := make([]bool, len(want))
		type cut struct{ i, j int }
		var cuts []cut
		for i := 0; i < len(w.text); { // all of it once
			j := min(i+1+rnd.IntN(30), len(w.text))
			cuts = append(cuts, cut{i, j})
			i = j
		}
		for range rnd.IntN(30) { // and more
			i := rnd.IntN(len(w.text))
			cuts = append(cuts, cut{i, i + 1 + rnd.IntN(len(w.text)-i)})
		}
		rnd.Shuffle(len(cuts), func(i, j int) { cuts[i], cuts[j] = cuts[j], cuts[i] })
		for _, c := range cuts {
			_, at, payload := w.segment(t, e, c.i, c.j)
			for k, b := range payload {
				if have[at+k] && got[at+k] != b {
					t.Fatalf("%v: segment %d to %d: byte %d was %q, is %q", w, c.i, c.j, at+k, got[at+k], b)
				}
				got[at+k], have[at+k] = b, true
			}
		}
		if slices.Contains(have, false) || !bytes.Equal(got, want) {
			t.Fatalf("%v:\nreceived %q\nwant     %q", w, got, want)
		}
	}
}

func TestRender(t *testing.T) {
	const line = "227 Entering Passive Mode (192,168,1,2,4,1).\r\n"
	const start = Seq(1<<32 - 30) // the span lies over the wrap-around
	span := change{27, len("192,168,1,2,4,1"), ""}
	for _, tt := range []struct {
		name    string
		new     string
		i, j    int // of the line
		first   int
		payload string // "" where unchanged
		offset  int32  // of first
	}{
		{"longer", "203,0,113,101,4,1", 0, len(line), 0, "227 Entering Passive Mode (203,0,113,101,4,1).\r\n", 0},
		{"longer, before the span", "203,0,113,101,4,1", 0, 27, 0, "", 0},
		{"longer, cut in the span", "203,0,113,101,4,1", 0, 30, 0, "227 Entering Passive Mode (203", 0},
		{"longer, the rest", "203,0,113,101,4,1", 30, len(line), 30, ",0,113,101,4,1).\r\n", 0},
		{"longer, one byte of the span", "203,0,113,101,4,1", 30, 31, 30, ",", 0},
		{"longer, its last byte", "203,0,113,101,4,1", 41, 42, 41, "4,1", 0},
		{"longer, after the span", "203,0,113,101,4,1", 42, len(line), 42, "", 2},
		{"shorter", "10,0,0,1,4,1", 0, len(line), 0, "227 Entering Passive Mode (10,0,0,1,4,1).\r\n", 0},
		{"shorter, cut where bytes vanish", "10,0,0,1,4,1", 0, 40, 0, "227 Entering Passive Mode (10,0,0,1,4,1", 0},
		{"shorter, the rest", "10,0,0,1,4,1", 40, len(line), 42, ").\r\n", -3},
		{"shorter, from the first byte that vanishes", "10,0,0,1,4,1", 39, len(line), 42, ").\r\n", -3},
		{"shorter, from the byte before that", "10,0,0,1,4,1", 38, len(line), 38, "1).\r\n", 0},
		{"shorter, after the span", "10,0,0,1,4,1", 42, len(line), 42, "", -3},
		{"same length", "192,0,2,111,4,1", 0, len(line), 0, "227 Entering Passive Mode (192,0,2,111,4,1).\r\n", 0},
		{"same length, the rest", "192,0,2,111,4,1", 30, len(line), 30, ",0,2,111,4,1).\r\n", 0},
		{"same length, after the span", "192,0,2,111,4,1", 42, len(line), 42, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var e Edits
			must.Do(t, e.Add(start.Add(span.at), []byte(line[span.at:span.at+span.old]), []byte(tt.new)))
			first, payload, changed := e.Render(nil, start.Add(tt.i), []byte(line[tt.i:tt.j]))
			if first != start.Add(tt.first) || string(payload) != tt.payload || changed != (tt.payload != "") {
				t.Errorf("%q at %d, %v; want %q at %d", payload, first.Sub(start), changed, tt.payload, tt.first)
			}
			if got := e.Offset(first); got != tt.offset {
				t.Errorf("offset %d, want %d", got, tt.offset)
			}
		})
	}
}

// A segment of bytes all of which vanish is still sent, empty, so that its acknowledgement and
// flags arrive.
func TestRenderNothingLeft(t *testing.T) {
	var e Edits
	must.Do(t, e.Add(100, make([]byte, 10), []byte("xyz")))
	first, payload, changed := e.Render(nil, 104, make([]byte, 3))
	if first != 110 || len(payload) != 0 || !changed {
		t.Errorf("%q at %d, %v", payload, first, changed)
	}
	if got := first.Add(int(e.Offset(first))); got != 103 {
		t.Errorf("the receiver sees it at %d, want 103", got)
	}
}

// A segment without payload, an acknowledgement or a probe, keeps its number even where that
// lies in an edited span; the kernel's rule for it is Offset's.
func TestRenderNoPayload(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		w := randomStream(rnd, 40, 4)
		e := w.edits(t)
		for i := range len(w.text) + 1 {
			first, payload, _ := e.Render(nil, w.start.Add(i), nil)
			if want := w.start.Add(i + w.covered(i, i)); first != want || len(payload) != 0 {
				t.Fatalf("%v: at %d: %q at %d, want %d", w, i, payload, first, want)
			}
			if at := first.Add(int(e.Offset(first))).Sub(w.start.Add(int(w.resumed))); at != w.image(i) {
				t.Fatalf("%v: at %d: the receiver sees it at %d, want %d", w, i, at, w.image(i))
			}
		}
	}
}

func TestAddRefuses(t *testing.T) {
	for _, start := range []Seq{0, 1 << 31, 1<<32 - 105} {
		var e Edits
		must.Do(t, e.Add(start+100, make([]byte, 10), []byte("x")))
		for _, at := range []Seq{50, 99, 100, 105, 109} {
			if err := e.Add(start+at, make([]byte, 1), []byte("x")); !errors.Is(err, ErrOverlap) {
				t.Errorf("an edit at %d after one from 100 to 110: %v", at, err)
			}
		}
		if err := e.Add(start+110, nil, []byte("x")); err == nil {
			t.Error("an edit of nothing")
		}
		if err := e.Add(start+110, make([]byte, 1), nil); err == nil {
			t.Error("an edit into nothing")
		}
		if e.Len() != 1 {
			t.Errorf("%d edits, want 1", e.Len())
		}
		if err := e.Add(start+110, make([]byte, 1), []byte("x")); err != nil || e.Len() != 2 {
			t.Errorf("an adjacent edit: %v, %d edits", err, e.Len())
		}
	}
}

func TestDropLast(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for range 100 {
		w := randomStream(rnd, 40, 6)
		for n := range len(w.changes) {
			e := w.edits(t)
			for range len(w.changes) - n {
				e.DropLast()
			}
			if e.Len() != n {
				t.Fatalf("%d edits, want %d", e.Len(), n)
			}
			kept := *w
			kept.changes = w.changes[:n]
			checkAllSegments(t, &kept, e)
			for _, c := range w.changes[n:] { // they may come again
				w.add(t, e, c)
			}
			checkAllSegments(t, w, e)
		}
	}
}

func TestTooManyEdits(t *testing.T) {
	var e Edits
	for i := range MaxEdits {
		must.Do(t, e.Add(Seq(10*i), make([]byte, 1), []byte("x")))
	}
	if err := e.Add(10*MaxEdits, make([]byte, 1), []byte("x")); err != ErrTooMany || e.Len() != MaxEdits {
		t.Errorf("one more: %v, %d edits", err, e.Len())
	}
}

func TestResume(t *testing.T) {
	var e Edits
	must.Do(t, e.Add(100, make([]byte, 1), []byte("xx")))
	e.Resume(-7)
	if e.Len() != 0 || e.Offset(0) != -7 || e.Offset(200) != -7 {
		t.Errorf("%d edits, offsets %d and %d", e.Len(), e.Offset(0), e.Offset(200))
	}
}

// FuzzRender takes edits and segments from bytes.
func FuzzRender(f *testing.F) {
	f.Add(uint32(1<<32-10), int16(3), []byte("227 (192,168,1,2,4,1)\r\n"), []byte{5, 13, 17})
	f.Add(uint32(0), int16(0), []byte("PORT 10,0,0,2,4,1\r\nPORT 10,0,0,2,4,2\r\n"), []byte{5, 12, 9, 7, 12, 15, 0, 1, 1})
	f.Add(uint32(1<<31-3), int16(-20), []byte("abcdefghijkl"), []byte{0, 1, 9, 0, 9, 1, 0, 1, 1})
	f.Fuzz(func(t *testing.T, start uint32, resumed int16, text, edits []byte) {
		if len(text) > 100 {
			return
		}
		w := &testStream{start: Seq(start), resumed: int32(resumed), text: text}
		for at := 0; len(edits) >= 3; edits = edits[3:] {
			c := change{at: at + int(edits[0]), old: 1 + int(edits[1]%20)}
			for i := range 1 + edits[2]%25 {
				c.new += string(rune('A' + i))
			}
			if at = c.end(); at > len(text) {
				break
			}
			w.changes = append(w.changes, c)
		}
		checkAllSegments(t, w, w.edits(t))
	})
}

// TestTrim drops the oldest edits: what is left is rendered as before, and so is what comes.
func TestTrim(t *testing.T) {
	rnd := rand.New(rand.NewPCG(13, 14))
	for range 200 {
		w := randomStream(rnd, 60, 1+rnd.IntN(8))
		e, trimmed := w.edits(t), w.edits(t)
		n := rnd.IntN(e.Len() + 1)
		trimmed.Trim(n)
		if trimmed.Len() != n {
			t.Fatalf("%v: %d edits are left, want %d", w, trimmed.Len(), n)
		}
		from := 0
		if dropped := len(w.changes) - n; dropped > 0 {
			from = w.changes[dropped-1].end()
		}
		for i := from; i <= len(w.text); i++ {
			if seq := w.start.Add(i); trimmed.Offset(seq) != e.Offset(seq) {
				t.Fatalf("%v: byte %d has offset %d, want %d", w, i, trimmed.Offset(seq), e.Offset(seq))
			}
		}
		var resumed Edits
		resumed.Resume(trimmed.Base())
		if got, want := resumed.Offset(w.start.Add(from)), e.Offset(w.start.Add(from)); n == 0 && got != want {
			t.Fatalf("%v: resumed with %d, want %d", w, got, want)
		}
	}
}

// TestOldBytes checks that only the old bytes are replaced: what has been rendered already stays as it is,
// whole and in part.
func TestOldBytes(t *testing.T) {
	const before, after = "227 (", ")\r\n"
	for _, tt := range []struct{ old, new string }{
		{"192,168,1,2,4,1", "203,0,113,77,4,1"},
		{"192,168,1,2,4,1", "198,51,10,2,4,1"},
		{"192,168,1,2,4,1", "10,0,0,2,4,1"},
	} {
		var e Edits
		must.Do(t, e.Add(1000+Seq(len(before)), []byte(tt.old), []byte(tt.new)))
		line, want := before+tt.old+after, before+tt.new+after
		_, once, changed := e.Render(nil, 1000, []byte(line))
		if string(once) != want || !changed {
			t.Fatalf("%q is rendered as %q, want %q", line, once, want)
		}
		if _, twice, changed := e.Render(nil, 1000, once); changed {
			t.Errorf("%q, which has been rendered, is rendered as %q", once, twice)
		}
		// A part that has other bytes, at its beginning or its end.
		for _, part := range []string{before + "1x", before + tt.old[:len(tt.old)-1] + "x"} {
			if _, got, changed := e.Render(nil, 1000, []byte(part)); changed {
				t.Errorf("%q is rendered as %q", part, got)
			}
		}
		if _, got, changed := e.Render(nil, 1000+Seq(len(before))+3, []byte("x"+tt.old[4:]+after)); changed {
			t.Errorf("a part that begins with another byte is rendered as %q", got)
		}
	}
}
