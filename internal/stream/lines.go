package stream

import (
	"bytes"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// Line is one line of a Stream.
type Line struct {
	// Seq is the sequence number of its first byte.
	Seq mangle.Seq
	// Text is the line without its LF; a CR before that is still there. It is valid
	// until the next call of the Stream.
	Text []byte
	// Cut says that the line was longer than Text, which has its first parse.MaxLine bytes.
	Cut bool
	// Tail says that Text may be the end of a line: what precedes it was not read.
	Tail bool
}

// start begins to read at the byte seq. Where that byte is not known to begin a
// line, lineStart is false, and what precedes the next LF is skipped.
func (s *Stream) start(seq mangle.Seq, lineStart bool) {
	s.next, s.line, s.skip = seq, seq, !lineStart
	s.dropPart()
}

// Restart goes on reading at seq, where a line begins.
func (s *Stream) Restart(seq mangle.Seq) { s.start(seq, true) }

// Discard passes over everything before seq unread; a line that continues there is skipped.
func (s *Stream) Discard(seq mangle.Seq) {
	if s.next.Before(seq) {
		s.start(seq, false)
	}
	s.dropPart()
}

// Push gives the stream the payload of a segment, whose first byte has the number seq, and returns
// what has not been read before, for Line. If bytes are missing before the
// segment, the line to which they belong is lost; of it a Tail is returned.
func (s *Stream) Push(seq mangle.Seq, payload []byte) (rest []byte) {
	switch known := s.next.Sub(seq); {
	case known >= len(payload):
		return nil
	case known >= 0:
		return payload[known:]
	default:
		s.start(seq, false)
		return payload
	}
}

// Line returns the next line that ends in rest and removes it from there; false if there is none. What remains of rest
// then is remembered, but for the beginning of a Tail.
func (s *Stream) Line(rest *[]byte) (Line, bool) {
	n := bytes.IndexByte(*rest, '\n')
	if n < 0 {
		s.keep(*rest)
		s.next = s.next.Add(len(*rest))
		*rest = nil
		return Line{}, false
	}
	line := Line{Seq: s.line, Text: (*rest)[:n], Tail: s.skip}
	switch {
	case line.Tail:
		line.Seq = s.next
	case s.unfinished() || n > parse.MaxLine:
		s.keep((*rest)[:n])
		line.Text, line.Cut = s.pending.part, s.pending.cut
		s.dropPart()
	}
	s.next = s.next.Add(n + 1)
	*rest, s.skip, s.line = (*rest)[n+1:], false, s.next
	return line, true
}

// InLine reports whether the next byte continues a line.
func (s *Stream) InLine() bool { return s.skip || s.unfinished() }

// Skip passes over n bytes of rest, which are whole lines.
func (s *Stream) Skip(rest *[]byte, n int) {
	if n > 0 {
		*rest, s.next = (*rest)[n:], s.next.Add(n)
		s.line = s.next
	}
}

// Unfinished returns the unfinished line after the last LF: its position and what has arrived
// of it. The text is empty between lines, for a line that is being skipped, and for one that
// is longer than parse.MaxLine already.
func (s *Stream) Unfinished() Line {
	if !s.unfinished() || s.pending.cut {
		return Line{Seq: s.line, Cut: s.unfinished()}
	}
	return Line{Seq: s.line, Text: s.pending.part}
}

func (s *Stream) unfinished() bool {
	return s.pending != nil && (len(s.pending.part) > 0 || s.pending.cut)
}

// keep remembers the beginning of a line.
func (s *Stream) keep(b []byte) {
	if s.skip || len(b) == 0 {
		return
	}
	p := s.extend()
	if room := parse.MaxLine - len(p.part); len(b) > room {
		b, p.cut = b[:room], true
	}
	p.part = append(p.part, b...)
}

func (s *Stream) dropPart() {
	if s.pending != nil {
		s.pending.part, s.pending.cut = nil, false
		s.tidy()
	}
}
