package stream

import (
	"bytes"
	"errors"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// ErrReleased is returned for an edit of bytes that have been released.
var ErrReleased = errors.New("the line began in a segment that has been released already")

// Resume begins with an offset that exists already: the connection was edited before. It forgets all edits.
func (s *Stream) Resume(offset int32) {
	s.offset = offset
	if s.pending != nil {
		s.pending.edits.Resume(offset)
	}
}

// Edit records that the bytes of a line in span are replaced by text, which it keeps.
func (s *Stream) Edit(l Line, span parse.Span, text []byte) error {
	at := l.Seq.Add(span.Start)
	if at.Before(s.released) {
		return ErrReleased
	}
	err := s.extend().edits.Add(at, bytes.Clone(l.Text[span.Start:span.End]), text)
	s.tidy()
	return err
}

// Edits returns the number of edits that the receiver may not have yet.
func (s *Stream) Edits() int {
	if s.pending == nil {
		return 0
	}
	return s.pending.edits.Len()
}

// DropLastEdit takes back the last Edit.
func (s *Stream) DropLastEdit() {
	s.pending.edits.DropLast()
	s.tidy()
}

// TrimEdits forgets edits, the oldest first, until n are left.
func (s *Stream) TrimEdits(n int) {
	if s.pending != nil {
		s.pending.edits.Trim(n)
		s.tidy()
	}
}

// Adjustment returns the kernel's sequence adjustment for the edits, of which there is one at least, as mangle.Edits does.
func (s *Stream) Adjustment() (position mangle.Seq, before, after int32) {
	return s.pending.edits.Adjustment()
}

// LastAdjustment returns that of the last edit, as mangle.Edits does.
func (s *Stream) LastAdjustment() (position mangle.Seq, before, after int32) {
	return s.pending.edits.LastAdjustment()
}

// ToSender returns the sender's number for ack, one of the receiver's.
func (s *Stream) ToSender(ack mangle.Seq) mangle.Seq {
	if s.pending == nil {
		return ack.Add(int(-s.offset))
	}
	return s.pending.edits.ToSender(ack)
}

// Render returns the payload of a packet as the receiver is to see it, appended to dst, and the number that the receiver is to see
// for its first byte. The last result is false, and nothing appended, if the payload is unchanged.
func (s *Stream) Render(dst []byte, p *mangle.Packet) (seq mangle.Seq, payload []byte, changed bool) {
	if s.pending == nil {
		return p.Seq().Add(int(s.offset)), dst, false
	}
	first, payload, changed := s.pending.edits.Render(dst, p.Seq(), p.Payload())
	return first.Add(int(s.pending.edits.Offset(first))), payload, changed
}

// Renders reports whether a packet is rendered: it is not left to the kernel's sequence adjustment.
func (s *Stream) Renders(p *mangle.Packet) bool { return !p.Seq().Before(s.firstSeq) }
