package parse

import "bytes"

// MaxLine is how many bytes of a line Stream hands out at most, without its LF. Of a longer
// one it is the beginning: no endpoint needs as many, and memory is bounded.
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
	cut  bool   // and more than that has been read
	skip bool   // the line being read is not to be handed out: its beginning is missing
}

// Line is one line of a Stream.
type Line struct {
	// Seq is the sequence number of its first byte.
	Seq Seq
	// Text is the line without its LF; a CR before that is still there. It is valid
	// until the next call of the Stream.
	Text []byte
	// Cut says that the line was longer than Text, which has its first MaxLine bytes.
	Cut bool
}

// Start begins the stream at the byte seq. Where that byte is not known to begin a
// line, lineStart is false, and what comes before the next LF is skipped.
func (s *Stream) Start(seq Seq, lineStart bool) {
	*s = Stream{next: seq, line: seq, skip: !lineStart}
}

// Expected returns the sequence number of the first byte that has not been read.
func (s *Stream) Expected() Seq { return s.next }

// Pending returns the unfinished line behind the last LF: its position and what has come
// of it. The text is empty between lines, for a line that is being skipped, and for one that
// is longer than MaxLine already.
func (s *Stream) Pending() Line {
	if s.cut {
		return Line{Seq: s.line, Cut: true}
	}
	return Line{Seq: s.line, Text: s.part}
}

// Idle reports whether nothing but Expected and Skips has to be known of the stream: Start with
// these makes the same one.
func (s *Stream) Idle() bool {
	return len(s.part) == 0 && !s.cut && s.rest == nil && (s.skip || s.line == s.next)
}

// Skips reports whether what comes before the next LF is skipped.
func (s *Stream) Skips() bool { return s.skip }

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

// Rest returns what Next has not read yet of what was pushed, if a line begins there.
func (s *Stream) Rest() []byte {
	if len(s.part) > 0 || s.cut || s.skip {
		return nil
	}
	return s.rest
}

// Pass passes over n bytes of Rest, which are whole lines.
func (s *Stream) Pass(n int) {
	if n > 0 {
		s.rest, s.next = s.rest[n:], s.next.Add(n)
		s.line = s.next
	}
}

// Next returns the next whole line of what was pushed, and false when there is none.
func (s *Stream) Next() (Line, bool) {
	for len(s.rest) > 0 {
		n := bytes.IndexByte(s.rest, '\n')
		if n < 0 {
			s.keep(s.rest)
			s.next = s.next.Add(len(s.rest))
			break
		}
		line, skip := Line{Seq: s.line, Text: s.rest[:n]}, s.skip
		if len(s.part) > 0 || n > MaxLine {
			s.keep(s.rest[:n])
			line.Text, line.Cut = s.part, s.cut
		}
		s.next = s.next.Add(n + 1)
		s.rest, s.part, s.cut, s.skip, s.line = s.rest[n+1:], nil, false, false, s.next
		if !skip {
			return line, true
		}
	}
	s.rest = nil // so that the packet can go
	return Line{}, false
}

// keep remembers the beginning of a line.
func (s *Stream) keep(b []byte) {
	if s.skip {
		return
	}
	if room := MaxLine - len(s.part); len(b) > room {
		b, s.cut = b[:room], true
	}
	s.part = append(s.part, b...)
}
