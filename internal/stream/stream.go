// Package stream is one direction of a control connection's TCP: it puts the segments in order and cuts them into
// lines (lines.go), keeps packets that are held (held.go), and renders packets with the edits of the lines in
// them (edits.go). It knows neither FTP nor conntrack, and allocates nothing while lines arrive whole.
//
// Sequence numbers are the sender's own.
package stream

import (
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

// Stream is one direction. The zero value has not begun: Open or Join begins it.
type Stream struct {
	next     mangle.Seq // lowest sequence number not yet read
	line     mangle.Seq // first byte of the line that is being read
	firstSeq mangle.Seq // Segments that start before it are left to the kernel's sequence adjustment.
	released mangle.Seq // lowest sequence number not yet released
	acked    mangle.Seq // highest byte acknowledged by the peer, plus one
	begun    bool
	skip     bool  // the line being read is not returned: its beginning is missing
	offset   int32 // that of the edits if there is no pending
	pending  *pending
}

// pending is what most streams do not have most of the time: an unfinished line, held packets, edits that the receiver may
// not have yet. Connections at rest are small.
type pending struct {
	part     []byte // what has been read of an unfinished line
	cut      bool   // and more than that has been read
	held     []Held // in the order of the stream
	deadline time.Time
	edits    mangle.Edits
}

// extend returns pending, which it makes if need be.
func (s *Stream) extend() *pending {
	if s.pending == nil {
		s.pending = &pending{}
		s.pending.edits.Resume(s.offset)
	}
	return s.pending
}

// tidy drops pending once there is nothing in it.
func (s *Stream) tidy() {
	if p := s.pending; p != nil && len(p.part) == 0 && !p.cut && len(p.held) == 0 && p.edits.Len() == 0 {
		s.offset, s.pending = p.edits.Base(), nil
	}
}

// maxDistance is how far, in bytes, a segment may lie from where its stream is. Beyond that
// it belongs to a later connection between the same ports.
const maxDistance = 1 << 20

// Open begins the stream with its first byte.
func (s *Stream) Open(seq mangle.Seq) {
	s.begin(seq)
	s.firstSeq = seq
}

// Join begins the stream with a segment in its middle, which begins a line or not.
func (s *Stream) Join(seq mangle.Seq, lineStart bool) {
	s.begin(seq)
	s.skip = !lineStart
	s.firstSeq = seq.Add(-maxDistance) // retransmissions may begin before seq
}

// LeaveBefore leaves segments that start before seq to the kernel's sequence adjustment.
func (s *Stream) LeaveBefore(seq mangle.Seq) {
	if s.firstSeq.Before(seq) {
		s.firstSeq = seq
	}
}

func (s *Stream) begin(seq mangle.Seq) {
	s.begun, s.released, s.acked = true, seq, seq
	s.start(seq, true)
}

// Begun reports whether the stream has begun.
func (s *Stream) Begun() bool { return s.begun }

// OpenedAt reports whether the stream was opened with the byte seq as its first one.
func (s *Stream) OpenedAt(seq mangle.Seq) bool { return s.begun && s.firstSeq == seq }

// Near reports whether seq may belong to the stream, rather than to another connection between the same ports.
func (s *Stream) Near(seq mangle.Seq) bool {
	d := seq.Sub(s.next)
	return !s.begun || -maxDistance < d && d < maxDistance
}

// Next returns the lowest sequence number not yet read.
func (s *Stream) Next() mangle.Seq { return s.next }

// Acknowledge takes note of an acknowledgement number, in the receiver's own numbers.
func (s *Stream) Acknowledge(ack mangle.Seq) {
	acked := s.ToSender(ack)
	if s.pending != nil {
		s.pending.edits.Forget(ack)
		acked = s.pending.edits.ToSender(ack)
		s.tidy()
	}
	if s.acked.Before(acked) {
		s.acked = acked
	}
}

// Passed reports whether the receiver has acknowledged all that precedes seq, read or not.
func (s *Stream) Passed(seq mangle.Seq) bool { return !s.acked.Before(seq) }

// Release takes note of released bytes up to end.
func (s *Stream) Release(end mangle.Seq) {
	if s.released.Before(end) {
		s.released = end
	}
}

// Unreleased reports whether the byte seq has not been released.
func (s *Stream) Unreleased(seq mangle.Seq) bool { return !seq.Before(s.released) }
