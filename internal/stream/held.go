package stream

import (
	"bytes"
	"slices"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

// Held is a packet that waits: for its verdict, or, if it has that, only to be read.
type Held struct {
	ID          uint32
	Packet      mangle.Packet // a view of a copy
	VerdictSent bool
}

// End returns the number after the last byte of a packet's payload.
func End(p *mangle.Packet) mangle.Seq { return p.Seq().Add(len(p.Payload())) }

// Hold keeps a copy of the packet, in the order of the stream. If it is the first one that is held, the time of
// all is up at the deadline.
func (s *Stream) Hold(id uint32, p *mangle.Packet, verdictSent bool, deadline time.Time) {
	q := s.extend()
	if len(q.held) == 0 {
		q.deadline = deadline
	}
	h := Held{ID: id, VerdictSent: verdictSent}
	if err := h.Packet.Decode(bytes.Clone(p.Bytes())); err != nil {
		panic(err) // it has been decoded before
	}
	i, _ := slices.BinarySearchFunc(q.held, h.Packet.Seq(), func(o Held, seq mangle.Seq) int {
		if o.Packet.Seq().Sub(seq) <= 0 {
			return -1 // after those with the same number
		}
		return 1
	})
	q.held = slices.Insert(q.held, i, h)
}

// Held returns the packets that are held, in the order of the stream.
func (s *Stream) Held() []Held {
	if s.pending == nil {
		return nil
	}
	return s.pending.held
}

// Deadline returns when the time of the held packets is up.
func (s *Stream) Deadline() time.Time { return s.pending.deadline }

// SetDeadline changes it.
func (s *Stream) SetDeadline(t time.Time) { s.pending.deadline = t }

// TakeHeld removes the held packets that end before or at limit, and appends them to to.
func (s *Stream) TakeHeld(limit mangle.Seq, to []Held) []Held {
	if s.pending == nil {
		return to
	}
	held := s.pending.held
	kept := held[:0]
	for _, h := range held {
		if limit.Before(End(&h.Packet)) {
			kept = append(kept, h)
		} else {
			to = append(to, h)
		}
	}
	clear(held[len(kept):])
	s.pending.held = kept
	s.tidy()
	return to
}

// TakeAllHeld removes the held packets and returns them.
func (s *Stream) TakeAllHeld() []Held {
	if s.pending == nil {
		return nil
	}
	held := s.pending.held
	s.pending.held = nil
	s.tidy()
	return held
}
