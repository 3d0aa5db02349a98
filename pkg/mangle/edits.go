package mangle

import (
	"bytes"
	"errors"
	"slices"
)

// MaxEdits is the number of edits of one direction that may wait for the receiver's acknowledgement.
const MaxEdits = 64

// Errors of Edits.Add.
var (
	// ErrOverlap is returned for an edit that starts before the end of the last one.
	ErrOverlap = errors.New("edit starts before the end of the last edit")
	// ErrTooMany is returned for more than MaxEdits edits.
	ErrTooMany = errors.New("too many edits that the peer has not acknowledged")
)

// Edits are the changes of one direction of a TCP connection, in the sender's sequence space: at a position, old
// bytes are replaced by new ones. This list determines everything else: the bytes of a segment, however often it is
// sent and however it is cut (Render), the offset of a sequence number (Offset), the meaning of an acknowledgement
// (ToSender), and the kernel's adjustment (Adjustment).
//
// An edit maps the first min(len(old), len(new)) bytes one to one. After them the length changes: the remaining old
// bytes vanish, or the remaining new bytes are sent with the last old byte. So a segment may be cut anywhere in an
// edit, and both parts together are rendered as the whole.
//
// The zero value has no edits. Edits that the receiver has acknowledged can be forgotten (Forget).
type Edits struct {
	base int32  // offset before the first edit in the list
	list []edit // in the order of the stream
}

type edit struct {
	at       Seq
	old, new []byte // at least 1 byte each
}

func (e edit) end() Seq     { return e.at.Add(len(e.old)) }
func (e edit) delta() int32 { return int32(len(e.new) - len(e.old)) }

// last returns the last position with the offset from before the edit: the last byte that is mapped one to one.
func (e edit) last() Seq { return e.at.Add(min(len(e.old), len(e.new)) - 1) }

// Resume sets the offset of a connection that an earlier process has edited, and removes all edits.
func (e *Edits) Resume(offset int32) { *e = Edits{base: offset} }

// Add replaces the bytes old, from at on, by new. It keeps both slices, which must not be empty. It returns
// ErrOverlap if at lies before the end of the last edit, and ErrTooMany.
func (e *Edits) Add(at Seq, old, new []byte) error {
	if len(old) < 1 || len(new) < 1 {
		return errors.New("edit replaces nothing or by nothing")
	}
	if len(e.list) == MaxEdits {
		return ErrTooMany
	}
	if n := len(e.list); n > 0 && at.Before(e.list[n-1].end()) {
		return ErrOverlap
	}
	e.list = append(e.list, edit{at, old, new})
	return nil
}

// Offset returns the receiver's number of the byte seq, minus the sender's.
func (e *Edits) Offset(seq Seq) int32 {
	off := e.base
	for _, d := range e.list {
		if !d.last().Before(seq) {
			break
		}
		off += d.delta()
	}
	return off
}

// ToSender converts the acknowledgement number n of the receiver to the sender's sequence space: a receiver that has
// all bytes before n has all bytes before the result. The last old byte of an edit counts as received only with the
// last new byte; vanished bytes count as received with the byte before them.
func (e *Edits) ToSender(n Seq) Seq {
	off := e.base
	for _, d := range e.list {
		at := d.at.Add(int(off)) // first new byte, in the receiver's numbers
		if !at.Before(n) {
			break
		}
		if has := n.Sub(at); has < len(d.new) {
			return d.at.Add(min(has, len(d.old)-1))
		}
		off += d.delta()
	}
	return n.Add(int(-off))
}

// Adjustment returns the kernel's adjustment (struct nf_ct_seqadj of
// include/net/netfilter/nf_conntrack_seqadj.h): before is added to sequence numbers up to and including position, after
// to later ones.
//
// The kernel keeps only the last change of the offset. With several edits, before is the largest offset of any byte
// before the last change, and position is moved to match: an acknowledgement of those bytes is then converted to less
// than it is, never to more, and every later one exactly. For example:
//
//	edit at 100:  4 bytes become 6   offset  0 up to 103, then +2
//	edit at 200: 10 bytes become 5   offset +2 up to 204, then -3
//	position 204, before +2, after -3
//
// Bytes up to 103 have the offset 0, but the kernel uses +2: it converts their acknowledgement 100 to 98. Segments
// before the last change therefore have to be sent to the kernel with a number that it converts to the right one.
//
// Window tracking compares position with the receiver's number (tcp_in_window calls nf_ct_seq_offset with it). If
// acknowledged lines became shorter in sum and the last one longer, the last line's acknowledgement would lie before
// position, and seem to exceed what was sent. In that case before equals after:
//
//	Base -5
//	edit at 200:  4 bytes become 6   offset -5 up to 203, then -3
//	position 203, before -3, after -3
func (e *Edits) Adjustment() (position Seq, before, after int32) {
	var last Seq // last byte before the last change, in the receiver's numbers
	before, after = e.base, e.base
	for _, d := range e.list {
		if d.delta() == 0 {
			continue
		}
		if after-before > 0 { // modulo 2^32
			before = after
		}
		last = d.last().Add(int(after))
		after += d.delta()
	}
	position = last.Add(int(-before))
	if after-before > 0 && last.Before(position) {
		before = after
	}
	return position, before, after
}

// LastAdjustment returns the kernel's adjustment if the receiver has acknowledged all edits before the last change: before is
// then the offset before that change.
func (e *Edits) LastAdjustment() (position Seq, before, after int32) {
	after = e.base
	for _, d := range e.list {
		if d.delta() != 0 {
			position, before = d.last(), after
			after += d.delta()
		}
	}
	return position, before, after
}

// Forget removes the edits before ack, an acknowledgement number of the receiver, in its own numbers. Their offset is
// kept for all earlier bytes: a retransmission of them, after a lost acknowledgement, is not edited any more, but the
// receiver ignores it, since Offset numbers it as old.
func (e *Edits) Forget(ack Seq) {
	n, off := 0, e.base
	for _, d := range e.list {
		off += d.delta()
		if ack.Before(d.end().Add(int(off))) {
			break
		}
		e.base = off
		n++
	}
	if n == len(e.list) {
		e.list = nil
	} else if n > 0 {
		e.list = slices.Delete(e.list, 0, n)
	}
}

// Trim removes the oldest edits until n are left, as if the receiver had acknowledged them.
func (e *Edits) Trim(n int) {
	for len(e.list) > n {
		e.base += e.list[0].delta()
		e.list = slices.Delete(e.list, 0, 1)
	}
}

// Base returns the offset before the first edit in the list. Without edits, Resume with it restores the same Edits.
func (e *Edits) Base() int32 { return e.base }

// Len returns the number of edits in the list.
func (e *Edits) Len() int { return len(e.list) }

// DropLast removes the last edit.
func (e *Edits) DropLast() { e.list = e.list[:len(e.list)-1] }

// Render applies the edits to the segment whose payload starts at seq. It returns the sender's number of the first
// rendered byte, which differs from seq only if the segment starts in vanished bytes, and the rendered payload,
// appended to dst. The third result is false, and nothing is appended, if no edit applies.
//
// Bytes that differ from the old ones are not replaced, so a segment that passes this host twice is edited once.
func (e *Edits) Render(dst []byte, seq Seq, payload []byte) (Seq, []byte, bool) {
	end := seq.Add(len(payload))
	changed := false
	first, from := seq, seq // number of the first rendered byte; first byte not rendered yet
	for _, d := range e.list {
		if !from.Before(d.end()) {
			continue
		}
		if !d.at.Before(end) {
			break
		}
		begin := max(0, from.Sub(d.at))
		part := payload[d.at.Add(begin).Sub(seq):min(len(payload), d.end().Sub(seq))]
		if !bytes.Equal(part, d.old[begin:begin+len(part)]) {
			continue
		}
		changed = true
		if from.Before(d.at) {
			dst = append(dst, payload[from.Sub(seq):d.at.Sub(seq)]...)
			from = d.at
		}
		stop := len(d.new)
		if end.Before(d.end()) {
			stop = min(end.Sub(d.at), len(d.new))
		}
		if begin < len(d.new) {
			dst = append(dst, d.new[begin:stop]...)
		} else if from == seq {
			first = d.end()
		}
		from = d.end()
	}
	if !changed {
		return seq, dst, false
	}
	if from.Before(end) {
		dst = append(dst, payload[from.Sub(seq):]...)
	}
	return first, dst, true
}
