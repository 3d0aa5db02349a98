package parse

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// segment is the payload of one packet: text, offset bytes behind the start of the stream.
type segment struct {
	offset int
	text   string
}

// lineAt is a Line in which the position is counted from the start of the stream.
type lineAt struct {
	offset int
	text   string
}

// push gives s the segments of a stream that begins at start, and returns the lines.
func push(s *Stream, start Seq, segments ...segment) []lineAt {
	var lines []lineAt
	for _, seg := range segments {
		s.Push(start.Add(seg.offset), []byte(seg.text))
		for l, ok := s.Next(); ok; l, ok = s.Next() {
			lines = append(lines, lineAt{l.Seq.Sub(start), string(l.Text)})
		}
	}
	return lines
}

// linesOf is what a Stream that begins with text must hand out, and what it must keep.
func linesOf(text string) (lines []lineAt, pending string) {
	offset := 0
	for {
		line, rest, ok := strings.Cut(text[offset:], "\n")
		if !ok {
			if len(line) > MaxLine {
				line = ""
			}
			return lines, line
		}
		lines = append(lines, lineAt{offset, line[:min(len(line), MaxLine)]})
		offset = len(text) - len(rest)
	}
}

// Streams that begin here cross the ends of the number space, signed and unsigned.
var starts = []Seq{0, 1, 1<<31 - 20, 1 << 31, 1<<32 - 20, 1<<32 - 1}

func checkStream(t *testing.T, start Seq, segments []segment, want []lineAt) {
	t.Helper()
	var s Stream
	s.Start(start, true)
	if got := push(&s, start, segments...); !reflect.DeepEqual(got, want) {
		t.Errorf("start %d, segments %v:\ngot  %v\nwant %v", start, segments, got, want)
	}
}

func TestStream(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	for _, tt := range []struct {
		name     string
		segments []segment
		want     []lineAt
	}{
		{
			name:     "a line",
			segments: []segment{{0, "PASV\r\n"}},
			want:     []lineAt{{0, "PASV\r"}},
		},
		{
			name:     "LF alone, and empty lines",
			segments: []segment{{0, "\nPASV\n\n\r\n"}},
			want:     []lineAt{{0, ""}, {1, "PASV"}, {6, ""}, {7, "\r"}},
		},
		{
			name:     "several commands in a segment",
			segments: []segment{{0, "NOOP\r\nPORT 192,168,0,2,4,1\r\nLIST\r\n"}},
			want:     []lineAt{{0, "NOOP\r"}, {6, "PORT 192,168,0,2,4,1\r"}, {28, "LIST\r"}},
		},
		{
			name:     "split in the verb",
			segments: []segment{{0, "POR"}, {3, "T 192,168,0,2,4,1\r\n"}},
			want:     []lineAt{{0, "PORT 192,168,0,2,4,1\r"}},
		},
		{
			name:     "split between CR and LF",
			segments: []segment{{0, "PORT 192,168,0,2,4,1\r"}, {21, "\nLIST\r\n"}},
			want:     []lineAt{{0, "PORT 192,168,0,2,4,1\r"}, {22, "LIST\r"}},
		},
		{
			name:     "split in the second line, over three segments",
			segments: []segment{{0, "NOOP\r\nPA"}, {8, "S"}, {9, "V\r\nNO"}, {14, "OP\r\n"}},
			want:     []lineAt{{0, "NOOP\r"}, {6, "PASV\r"}, {12, "NOOP\r"}},
		},
		{
			name:     "an empty segment",
			segments: []segment{{0, "PA"}, {2, ""}, {2, "SV\r\n"}},
			want:     []lineAt{{0, "PASV\r"}},
		},
		{
			name:     "sent again whole",
			segments: []segment{{0, "PASV\r\n"}, {0, "PASV\r\n"}, {6, "NOOP\r\n"}, {0, "PASV\r\n"}},
			want:     []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}},
		},
		{
			name:     "sent again together with the next",
			segments: []segment{{0, "PASV\r\n"}, {0, "PASV\r\nNOOP\r\n"}},
			want:     []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}},
		},
		{
			name:     "sent again in parts",
			segments: []segment{{0, "PASV\r\n"}, {0, "PA"}, {2, "SV\r\n"}, {6, "NOOP\r\n"}},
			want:     []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}},
		},
		{
			name:     "the unfinished part sent again, with more of it",
			segments: []segment{{0, "PA"}, {0, "PAS"}, {1, "A"}, {1, "ASV\r"}, {0, "PASV\r\n"}},
			want:     []lineAt{{0, "PASV\r"}},
		},
		{
			name:     "overlap of one byte",
			segments: []segment{{0, "PASV\r\nNO"}, {7, "OOP\r\n"}},
			want:     []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}},
		},
		{
			// What was read is what counts, here as at the receiver.
			name:     "sent again with other bytes",
			segments: []segment{{0, "PASV\r\n"}, {0, "EPSV\r\nNOOP\r\n"}},
			want:     []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}},
		},
		{
			name:     "gap between lines: whether a line begins behind it is not known",
			segments: []segment{{0, "PASV\r\n"}, {12, "NOOP\r\nQUIT\r\n"}},
			want:     []lineAt{{0, "PASV\r"}, {18, "QUIT\r"}},
		},
		{
			name:     "gap in a line",
			segments: []segment{{0, "PASV\r\nPOR"}, {10, " 192,168,0,2,4,1\r\nLIST\r\n"}},
			want:     []lineAt{{0, "PASV\r"}, {28, "LIST\r"}},
		},
		{
			name:     "gap, and a second one before the line ends",
			segments: []segment{{0, "PA"}, {4, "xx"}, {10, "yy"}, {12, "\r\nNOOP\r\n"}},
			want:     []lineAt{{14, "NOOP\r"}},
		},
		{
			name:     "gap that is filled too late",
			segments: []segment{{0, "NO"}, {6, "PASV\r\n"}, {2, "OP\r\n"}, {12, "QUIT\r\n"}},
			want:     []lineAt{{12, "QUIT\r"}},
		},
		{
			name:     "longest line",
			segments: []segment{{0, long + "\nNOOP\n"}},
			want:     []lineAt{{0, long}, {MaxLine + 1, "NOOP"}},
		},
		{
			name:     "longest line in parts",
			segments: []segment{{0, long[:100]}, {100, long[100:]}, {MaxLine, "\nNOOP\n"}},
			want:     []lineAt{{0, long}, {MaxLine + 1, "NOOP"}},
		},
		{
			name:     "line too long by one",
			segments: []segment{{0, "PASV\n" + long + "x\nNOOP\n"}},
			want:     []lineAt{{0, "PASV"}, {5, long}, {5 + MaxLine + 2, "NOOP"}},
		},
		{
			name:     "line too long by one, its last byte apart",
			segments: []segment{{0, long}, {MaxLine, "x\nNOOP\n"}},
			want:     []lineAt{{0, long}, {MaxLine + 2, "NOOP"}},
		},
		{
			name:     "line too long, its LF apart",
			segments: []segment{{0, long + "x"}, {MaxLine + 1, "\nNOOP\n"}},
			want:     []lineAt{{0, long}, {MaxLine + 2, "NOOP"}},
		},
		{
			name:     "line too long by far, in parts, and what looks like a line in it",
			segments: []segment{{0, long}, {MaxLine, long}, {2 * MaxLine, "PASV\r\nNOOP\r\n"}},
			want:     []lineAt{{0, long}, {2*MaxLine + 6, "NOOP\r"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, start := range starts {
				checkStream(t, start, tt.segments, tt.want)
			}
		})
	}
}

const dialogue = "USER x\r\nPORT 192,168,0,2,4,1\r\nLIST\n\r\nPASV\r\nRET"

func TestStreamSplitAtEveryPosition(t *testing.T) {
	want, _ := linesOf(dialogue)
	for _, start := range starts {
		for i := range len(dialogue) + 1 {
			for j := i; j <= len(dialogue); j++ {
				checkStream(t, start, []segment{{0, dialogue[:i]}, {i, dialogue[i:j]}, {j, dialogue[j:]}}, want)
			}
		}
	}
}

func TestStreamSegmentsOfOneSize(t *testing.T) {
	want, _ := linesOf(dialogue)
	for _, start := range starts {
		for size := 1; size <= len(dialogue); size++ {
			for again := range 4 { // bytes of the segment before that are sent again
				var segments []segment
				for i := 0; i < len(dialogue); i += size {
					from := max(i-again, 0)
					segments = append(segments, segment{from, dialogue[from:min(i+size, len(dialogue))]})
				}
				checkStream(t, start, segments, want)
			}
		}
	}
}

func TestStreamLosesOneSegment(t *testing.T) {
	const text = "NOOP\r\nPASV\r\nEPSV\r\nQUIT\r\nSYST\r\n"
	for i := range len(text) {
		for j := i + 1; j < len(text); j++ {
			// Lines that end before the gap, and those that begin behind the first LF after it.
			want, _ := linesOf(text[:i])
			resumed := j + strings.IndexByte(text[j:], '\n') + 1
			tail, _ := linesOf(text[resumed:])
			for _, l := range tail {
				want = append(want, lineAt{resumed + l.offset, l.text})
			}
			checkStream(t, 1<<32-10, []segment{{0, text[:i]}, {j, text[j:]}}, want)
		}
	}
}

func TestStreamStart(t *testing.T) {
	for _, tt := range []struct {
		name      string
		lineStart bool
		segments  []segment
		want      []lineAt
	}{
		{"at a line", true, []segment{{0, "PASV\r\nNOOP\r\n"}}, []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}}},
		{"in a line", false, []segment{{0, "PASV\r\nNOOP\r\n"}}, []lineAt{{6, "NOOP\r"}}},
		{"in a line, in parts", false, []segment{{0, "PA"}, {2, "SV\r"}, {5, "\nNOOP\r\n"}}, []lineAt{{6, "NOOP\r"}}},
		{"behind the first bytes that are seen", true, []segment{{-4, "220 "}, {-2, "0 PASV\r\n"}}, []lineAt{{0, "PASV\r"}}},
		{"before them", true, []segment{{4, "PASV\r\nNOOP\r\n"}}, []lineAt{{10, "NOOP\r"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, start := range starts {
				// It forgets what came before.
				var s Stream
				s.Start(start.Add(-1000), false)
				push(&s, start, segment{-1000, "x\r\nPOR"})
				s.Start(start, tt.lineStart)
				if got := push(&s, start, tt.segments...); !reflect.DeepEqual(got, tt.want) {
					t.Errorf("start %d: got %v, want %v", start, got, tt.want)
				}
			}
		})
	}
}

func TestStreamExpectedAndPending(t *testing.T) {
	const start = Seq(1<<32 - 8)
	var s Stream
	s.Start(start, true)
	for _, tt := range []struct {
		segment
		expected int
		pending  lineAt
	}{
		{segment{0, ""}, 0, lineAt{0, ""}},
		{segment{0, "PA"}, 2, lineAt{0, "PA"}},
		{segment{0, "PASV"}, 4, lineAt{0, "PASV"}},
		{segment{0, "PA"}, 4, lineAt{0, "PASV"}},
		{segment{4, "\r\n"}, 6, lineAt{6, ""}},
		{segment{6, "NOOP\r\nPORT 192,168"}, 24, lineAt{12, "PORT 192,168"}},
		{segment{24, ",0,2,4,1\r"}, 33, lineAt{12, "PORT 192,168,0,2,4,1\r"}},
		{segment{33, "\nX"}, 35, lineAt{34, "X"}},
		{segment{35, strings.Repeat("x", MaxLine)}, 35 + MaxLine, lineAt{34, ""}},
		{segment{35 + MaxLine, "\nY"}, 37 + MaxLine, lineAt{36 + MaxLine, "Y"}},
	} {
		push(&s, start, tt.segment)
		p := s.Pending()
		if got := (lineAt{p.Seq.Sub(start), string(p.Text)}); got != tt.pending {
			t.Errorf("after %q: pending %v, want %v", tt.text, got, tt.pending)
		}
		if got := s.Expected().Sub(start); got != tt.expected {
			t.Errorf("after %q: expected %d, want %d", tt.text, got, tt.expected)
		}
	}
}

// A line that never ends must not take more memory than the longest one does.
func TestStreamBoundedMemory(t *testing.T) {
	var s Stream
	s.Start(0, true)
	for i := range 10_000_000 {
		s.Push(Seq(i), []byte{'x'})
		if _, ok := s.Next(); ok {
			t.Fatal("a line")
		}
		if c := cap(s.part); c > 2*MaxLine {
			t.Fatalf("%d bytes kept", c)
		}
	}
	// The memory of a packet must not be kept either.
	s.Push(s.Expected(), []byte("\nPASV\n"))
	for _, ok := s.Next(); ok; _, ok = s.Next() {
	}
	if s.rest != nil {
		t.Error("the last packet is kept")
	}
}

func TestSeq(t *testing.T) {
	for _, tt := range []struct {
		s, t Seq
		sub  int
	}{
		{0, 0, 0},
		{1, 0, 1},
		{0, 1<<32 - 1, 1},
		{1<<31 - 1, 0, 1<<31 - 1},
		{1 << 31, 1, 1<<31 - 1},
		{5, 1<<32 - 5, 10},
	} {
		for _, swap := range []bool{false, true} {
			s, u, sub := tt.s, tt.t, tt.sub
			if swap {
				s, u, sub = u, s, -sub
			}
			if got := s.Sub(u); got != sub {
				t.Errorf("%d.Sub(%d) = %d, want %d", s, u, got, sub)
			}
			if got := u.Add(sub); got != s {
				t.Errorf("%d.Add(%d) = %d, want %d", u, sub, got, s)
			}
			if got := s.Before(u); got != (sub < 0) {
				t.Errorf("%d.Before(%d) = %v", s, u, got)
			}
		}
	}
}

func ExampleStream() {
	var s Stream
	s.Start(1000, true)
	for _, segment := range []string{"NOOP\r\nPO", "RT 192,168,0,2,4,1\r\n"} {
		s.Push(s.Expected(), []byte(segment))
		for {
			line, ok := s.Next()
			if !ok {
				break
			}
			cmd, _ := ParseCommand(line.Text)
			fmt.Println(line.Seq, cmd.Verb, cmd.Endpoint.Addr, cmd.Endpoint.Port)
		}
	}
	// Output:
	// 1000 other invalid IP 0
	// 1006 PORT 192.168.0.2 1025
}

// TestIdle begins a stream anew wherever it is idle: the same lines come of it.
func TestIdle(t *testing.T) {
	const text = "one\r\ntwo\n\r\n" + "three three\r\nfour\r\n"
	for first := range 3 { // also from the middle of a line
		for cut := first; cut < len(text); cut++ {
			var s, again Stream
			s.Start(Seq(first), first == 0)
			s.Push(Seq(first), []byte(text[first:cut]))
			for _, ok := s.Next(); ok; _, ok = s.Next() {
			}
			between := cut == 0 || text[cut-1] == '\n'
			if want := between || s.Skips(); s.Idle() != want {
				t.Fatalf("from %d to %d: idle %v", first, cut, !want)
			}
			if !s.Idle() {
				continue
			}
			again.Start(s.Expected(), !s.Skips())
			for _, v := range []*Stream{&s, &again} {
				v.Push(Seq(cut), []byte(text[cut:]))
			}
			for {
				a, aok := s.Next()
				b, bok := again.Next()
				if aok != bok || string(a.Text) != string(b.Text) || a.Seq != b.Seq {
					t.Fatalf("from %d to %d: %q at %d, and again %q at %d", first, cut, a.Text, a.Seq, b.Text, b.Seq)
				}
				if !aok {
					break
				}
			}
		}
	}
}
