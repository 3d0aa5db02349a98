package stream

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
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
func push(s *Stream, start mangle.Seq, segments ...segment) []lineAt {
	var lines []lineAt
	for _, seg := range segments {
		rest := s.Push(start.Add(seg.offset), []byte(seg.text))
		for l, ok := s.Line(&rest); ok; l, ok = s.Line(&rest) {
			if l.Tail {
				continue
			}
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
			if len(line) > parse.MaxLine {
				line = ""
			}
			return lines, line
		}
		lines = append(lines, lineAt{offset, line[:min(len(line), parse.MaxLine)]})
		offset = len(text) - len(rest)
	}
}

// Streams that begin here cross the ends of the number space, signed and unsigned.
var starts = []mangle.Seq{0, 1, 1<<31 - 20, 1 << 31, 1<<32 - 20, 1<<32 - 1}

func checkStream(t *testing.T, start mangle.Seq, segments []segment, want []lineAt) {
	t.Helper()
	var s Stream
	s.start(start, true)
	if got := push(&s, start, segments...); !reflect.DeepEqual(got, want) {
		t.Errorf("start %d, segments %v:\ngot  %v\nwant %v", start, segments, got, want)
	}
}

func TestStream(t *testing.T) {
	long := strings.Repeat("x", parse.MaxLine)
	for _, tt := range []struct {
		name     string
		segments []segment
		want     []lineAt
	}{
		{"a line", []segment{{0, "PASV\r\n"}}, []lineAt{{0, "PASV\r"}}},
		{"LF alone, and empty lines", []segment{{0, "\nPASV\n\n\r\n"}}, []lineAt{{0, ""}, {1, "PASV"}, {6, ""}, {7, "\r"}}},
		{"several commands in a segment", []segment{{0, "NOOP\r\nPORT 192,168,0,2,4,1\r\nLIST\r\n"}}, []lineAt{{0, "NOOP\r"}, {6, "PORT 192,168,0,2,4,1\r"}, {28, "LIST\r"}}},
		{"split in the verb", []segment{{0, "POR"}, {3, "T 192,168,0,2,4,1\r\n"}}, []lineAt{{0, "PORT 192,168,0,2,4,1\r"}}},
		{"split between CR and LF", []segment{{0, "PORT 192,168,0,2,4,1\r"}, {21, "\nLIST\r\n"}}, []lineAt{{0, "PORT 192,168,0,2,4,1\r"}, {22, "LIST\r"}}},
		{"split in the second line, over three segments", []segment{{0, "NOOP\r\nPA"}, {8, "S"}, {9, "V\r\nNO"}, {14, "OP\r\n"}}, []lineAt{{0, "NOOP\r"}, {6, "PASV\r"}, {12, "NOOP\r"}}},
		{"an empty segment", []segment{{0, "PA"}, {2, ""}, {2, "SV\r\n"}}, []lineAt{{0, "PASV\r"}}},
		{"sent again whole", []segment{{0, "PASV\r\n"}, {0, "PASV\r\n"}, {6, "NOOP\r\n"}, {0, "PASV\r\n"}}, []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}}},
		{"sent again together with the next", []segment{{0, "PASV\r\n"}, {0, "PASV\r\nNOOP\r\n"}}, []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}}},
		{"sent again in parts", []segment{{0, "PASV\r\n"}, {0, "PA"}, {2, "SV\r\n"}, {6, "NOOP\r\n"}}, []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}}},
		{"the unfinished part sent again, with more of it", []segment{{0, "PA"}, {0, "PAS"}, {1, "A"}, {1, "ASV\r"}, {0, "PASV\r\n"}}, []lineAt{{0, "PASV\r"}}},
		{"overlap of one byte", []segment{{0, "PASV\r\nNO"}, {7, "OOP\r\n"}}, []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}}},
		{
			// What was read is what counts, here as at the receiver.
			name:     "sent again with other bytes",
			segments: []segment{{0, "PASV\r\n"}, {0, "EPSV\r\nNOOP\r\n"}},
			want:     []lineAt{{0, "PASV\r"}, {6, "NOOP\r"}},
		},
		{"gap between lines: whether a line begins behind it is not known", []segment{{0, "PASV\r\n"}, {12, "NOOP\r\nQUIT\r\n"}}, []lineAt{{0, "PASV\r"}, {18, "QUIT\r"}}},
		{"gap in a line", []segment{{0, "PASV\r\nPOR"}, {10, " 192,168,0,2,4,1\r\nLIST\r\n"}}, []lineAt{{0, "PASV\r"}, {28, "LIST\r"}}},
		{"gap, and a second one before the line ends", []segment{{0, "PA"}, {4, "xx"}, {10, "yy"}, {12, "\r\nNOOP\r\n"}}, []lineAt{{14, "NOOP\r"}}},
		{"gap that is filled too late", []segment{{0, "NO"}, {6, "PASV\r\n"}, {2, "OP\r\n"}, {12, "QUIT\r\n"}}, []lineAt{{12, "QUIT\r"}}},
		{"longest line", []segment{{0, long + "\nNOOP\n"}}, []lineAt{{0, long}, {parse.MaxLine + 1, "NOOP"}}},
		{"longest line in parts", []segment{{0, long[:100]}, {100, long[100:]}, {parse.MaxLine, "\nNOOP\n"}}, []lineAt{{0, long}, {parse.MaxLine + 1, "NOOP"}}},
		{"line too long by one", []segment{{0, "PASV\n" + long + "x\nNOOP\n"}}, []lineAt{{0, "PASV"}, {5, long}, {5 + parse.MaxLine + 2, "NOOP"}}},
		{"line too long by one, its last byte apart", []segment{{0, long}, {parse.MaxLine, "x\nNOOP\n"}}, []lineAt{{0, long}, {parse.MaxLine + 2, "NOOP"}}},
		{"line too long, its LF apart", []segment{{0, long + "x"}, {parse.MaxLine + 1, "\nNOOP\n"}}, []lineAt{{0, long}, {parse.MaxLine + 2, "NOOP"}}},
		{"line too long by far, in parts, and what looks like a line in it", []segment{{0, long}, {parse.MaxLine, long}, {2 * parse.MaxLine, "PASV\r\nNOOP\r\n"}}, []lineAt{{0, long}, {2*parse.MaxLine + 6, "NOOP\r"}}},
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
				s.start(start.Add(-1000), false)
				push(&s, start, segment{-1000, "x\r\nPOR"})
				s.start(start, tt.lineStart)
				if got := push(&s, start, tt.segments...); !reflect.DeepEqual(got, tt.want) {
					t.Errorf("start %d: got %v, want %v", start, got, tt.want)
				}
			}
		})
	}
}

func TestStreamExpectedAndPending(t *testing.T) {
	const start = mangle.Seq(1<<32 - 8)
	var s Stream
	s.start(start, true)
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
		{segment{35, strings.Repeat("x", parse.MaxLine)}, 35 + parse.MaxLine, lineAt{34, ""}},
		{segment{35 + parse.MaxLine, "\nY"}, 37 + parse.MaxLine, lineAt{36 + parse.MaxLine, "Y"}},
	} {
		push(&s, start, tt.segment)
		p := s.Unfinished()
		if got := (lineAt{p.Seq.Sub(start), string(p.Text)}); got != tt.pending {
			t.Errorf("after %q: pending %v, want %v", tt.text, got, tt.pending)
		}
		if got := s.Next().Sub(start); got != tt.expected {
			t.Errorf("after %q: expected %d, want %d", tt.text, got, tt.expected)
		}
	}
}

// A line that never ends must not take more memory than the longest one does.
func TestStreamBoundedMemory(t *testing.T) {
	var s Stream
	s.start(0, true)
	for i := range 10_000_000 {
		if len(push(&s, 0, segment{i, "x"})) > 0 {
			t.Fatal("a line")
		}
		if c := cap(s.pending.part); c > 2*parse.MaxLine {
			t.Fatalf("%d bytes kept", c)
		}
	}
	push(&s, s.Next(), segment{0, "\nPASV\n"})
	if s.pending != nil {
		t.Error("something is kept of a stream without an unfinished line")
	}
}

// A connection at rest keeps both streams.
func TestSize(t *testing.T) {
	if n := unsafe.Sizeof(Stream{}); n > 40 {
		t.Errorf("%d bytes", n)
	}
}

func TestAllocations(t *testing.T) {
	var s Stream
	s.start(0, true)
	text := []byte("TYPE I\r\nPASV\r\nRETR file\r\n")
	if n := testing.AllocsPerRun(100, func() {
		for _, seq := range []mangle.Seq{s.Next(), s.Next().Add(-len(text))} { // and again
			rest := s.Push(seq, text)
			for _, ok := s.Line(&rest); ok; _, ok = s.Line(&rest) {
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkLine(b *testing.B) {
	for name, parts := range map[string][]string{"Whole": {"RETR file\r\n"}, "Split": {"RETR", " file\r\n"}} {
		b.Run(name, func(b *testing.B) {
			var s Stream
			s.start(0, true)
			b.ReportAllocs()
			for b.Loop() {
				for _, part := range parts {
					rest := s.Push(s.Next(), []byte(part))
					for _, ok := s.Line(&rest); ok; _, ok = s.Line(&rest) {
					}
				}
			}
		})
	}
}

// cut makes segments of text, in order: each goes on for a number of bytes that the next byte
// of cuts gives, and begins with bytes that have been sent already.
func cut(text string, cuts []byte) []segment {
	var segments []segment
	for sent := 0; sent < len(text); {
		forward, back := 1+len(text), 0
		if len(cuts) > 0 {
			forward, back = int(cuts[0]&0x0f), int(cuts[0]>>4)
			if cuts[0] == 0xff { // far, for the lines that are too long
				forward, back = 300, 300
			}
			cuts = cuts[1:]
		}
		from, to := max(sent-back, 0), min(sent+forward, len(text))
		segments = append(segments, segment{from, text[from:to]})
		sent = to
	}
	return segments
}

func FuzzStream(f *testing.F) {
	f.Add([]byte(dialogue), []byte{1, 0x12, 0xf3, 0x20, 5, 0x31}, uint32(1<<32-10))
	f.Add([]byte("PASV\r\n"), []byte{}, uint32(0))
	f.Add([]byte(strings.Repeat("x", parse.MaxLine)+"\n"), []byte{0xff, 15, 0xff, 0xf0}, uint32(1<<31-300))
	f.Add([]byte(strings.Repeat("x", 2*parse.MaxLine)+"\nPASV\n"), []byte{0xff, 0xff, 0xff, 1}, uint32(1<<32-1000))
	f.Fuzz(func(t *testing.T, text, cuts []byte, start uint32) {
		if len(text) > 1<<16 {
			return
		}
		want, pending := linesOf(string(text))
		var s Stream
		s.start(mangle.Seq(start), true)
		segments := cut(string(text), cuts)
		if got := push(&s, mangle.Seq(start), segments...); !reflect.DeepEqual(got, want) {
			t.Fatalf("segments %v:\ngot  %v\nwant %v", segments, got, want)
		}
		if got := string(s.Unfinished().Text); got != pending {
			t.Fatalf("pending %q, want %q", got, pending)
		}
		if got := s.Next().Sub(mangle.Seq(start)); got != len(text) {
			t.Fatalf("expected %d, want %d", got, len(text))
		}
	})
}

var lines = []string{"PASV", "port  192,168,000,2,4,1 ", "EPRT |1|192.168.0.2|1025|\r", "\xff\xf4\xff\xf2ABOR", ""}

// The same with dialogues of real lines, in every test run.
func TestStreamRandomCuts(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var text strings.Builder
		for range 1 + rnd.IntN(8) {
			text.WriteString(lines[rnd.IntN(len(lines))] + "\n")
			if rnd.IntN(20) == 0 {
				text.WriteString(strings.Repeat("x", rnd.IntN(2*parse.MaxLine)) + "\n")
			}
		}
		cuts := make([]byte, rnd.IntN(200))
		for i := range cuts {
			cuts[i] = byte(rnd.Uint32())
		}
		want, _ := linesOf(text.String())
		checkStream(t, mangle.Seq(rnd.Uint32()), cut(text.String(), cuts), want)
	}
}
