package parse

import "bytes"

// MaxLine is the longest line, in bytes without its LF, that Stream hands out. Longer
// ones are skipped to their end: no endpoint needs as many, and memory is bounded.
const MaxLine = 512

// Stream cuts the segments of one direction of a control connection into lines. It
// takes them as they come, retransmitted, overlapping or cut anywhere, and hands out
// every line once. Start begins it; then, for each segment, Push and Next until there
// is no line left.
//
// Sequence numbers are the sender's own.
type Stream struct {
	next Seq    // first byte not read yet
	line Seq    // first byte of the line that is being read
	part []byte // what has been read of that line, if it began in an earlier segment
	rest []byte // what is left of the segment
	skip bool   // the line being read is not to be handed out
}

// Line is one line of a Stream.
type Line struct {
	// Seq is the sequence number of its first byte.
	Seq Seq
	// Text is the line without its LF; a CR before that is still there. It is valid
	// until the next call of the Stream.
	Text []byte
}

// Start begins the stream at the byte seq. Where that byte is not known to begin a
// line, lineStart is false, and what comes before the next LF is skipped.
func (s *Stream) Start(seq Seq, lineStart bool) {
	*s = Stream{next: seq, line: seq, skip: !lineStart}
}

// Expected returns the sequence number of the first byte that has not been read.
func (s *Stream) Expected() Seq { return s.next }

// Pending returns the unfinished line behind the last LF: its position and what has come
// of it. The text is empty between lines, and for a line that is being skipped.
func (s *Stream) Pending() Line { return Line{s.line, s.part} }

// Push gives the stream the payload of a segment, whose first byte has the number seq.
// Bytes that have been read before are passed over. If bytes are missing before the
// segment, the line to which they belong is lost: it is skipped up to its LF.
func (s *Stream) Push(seq Seq, payload []byte) {
	switch behind := s.next.Sub(seq); {
	case behind >= len(payload):
		s.rest = nil
	case behind >= 0:
		s.rest = payload[behind:]
	default:
		s.Start(seq, false)
		s.rest = payload
	}
}

// Next returns the next whole line of what was pushed, and false when there is none.
func (s *Stream) Next() (Line, bool) {
	for len(s.rest) > 0 {
		n := bytes.IndexByte(s.rest, '\n')
		if n < 0 {
			s.keep()
			break
		}
		text, skip := s.rest[:n], s.skip
		if len(s.part) > 0 {
			text = append(s.part, text...)
		}
		line := Line{s.line, text}
		s.next = s.next.Add(n + 1)
		s.rest, s.part, s.skip, s.line = s.rest[n+1:], nil, false, s.next
		if !skip && len(text) <= MaxLine {
			return line, true
		}
	}
	s.rest = nil // so that the packet can go
	return Line{}, false
}

// keep remembers the beginning of a line whose end has not come.
func (s *Stream) keep() {
	s.next = s.next.Add(len(s.rest))
	switch {
	case s.skip:
	case len(s.part)+len(s.rest) > MaxLine:
		s.part, s.skip = nil, true
	default:
		s.part = append(s.part, s.rest...)
	}
}
