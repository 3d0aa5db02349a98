package mangle

import (
	"bytes"
	"errors"
	"slices"
)

// MaxEdits is how many edits of one direction may wait for the receiver's acknowledgement.
const MaxEdits = 64

// Errors of Edits.Add.
var (
	// ErrOverlap is returned for an edit that does not lie behind those that are there already.
	ErrOverlap = errors.New("edit does not lie behind the edits before it")
	// ErrTooMany is returned where MaxEdits edits are there already.
	ErrTooMany = errors.New("too many edits that the other side has not acknowledged")
)

// Edits are the changes made to one direction of a TCP connection, in the sender's own
// sequence space: at a position, old bytes are replaced by new ones. The receiver sees
// another stream, and this list is all there is to know about the difference: what a
// segment looks like, however often it is sent and however it is cut (Render), by how much
// a sequence number is off (Offset), what an acknowledgement means (Undo), and what to tell the
// kernel (Adjustment).
//
// An edit of old bytes into new ones maps the first min(old, new) bytes one to one. The
// length changes behind them: what is left of the old bytes vanishes, or what is left of
// the new ones comes along with the last old byte. So every cut through an edited span has
// a meaning, and both parts are what they would have been in one piece.
//
// The zero value has no edits. Those that the receiver is known to have can be forgotten
// (Forget); no more than MaxEdits are kept.
type Edits struct {
	base int32  // offset before the first edit in the list: what was forgotten
	list []edit // in the order of the stream
}

type edit struct {
	at       Seq
	old, new []byte // at least 1 byte each
}

func (e edit) end() Seq     { return e.at.Add(len(e.old)) }
func (e edit) delta() int32 { return int32(len(e.new) - len(e.old)) }

// last returns the last position that still has the offset from before the edit: the last
// byte that is mapped one to one.
func (e edit) last() Seq { return e.at.Add(min(len(e.old), len(e.new)) - 1) }

// Resume begins with an offset that is there already, as for a connection that was edited
// before this process came. It forgets all edits.
func (e *Edits) Resume(offset int32) { *e = Edits{base: offset} }

// Add records that the bytes old from at on are replaced by new; it keeps both. Neither may
// be empty. It returns ErrOverlap if at lies before the end of the last edit.
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

// Offset returns by how many bytes the receiver's number for the byte seq differs from the
// sender's.
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

// Undo returns the sender's number for n, one of the receiver's: a receiver that has all in front
// of n has all in front of the result, and of an edit no byte counts before all that it has become
// is there. Bytes that vanished are had together with the one before them.
func (e *Edits) Undo(n Seq) Seq {
	off := e.base
	for _, d := range e.list {
		at := d.at.Add(int(off)) // the first new byte, as the receiver counts
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

// Adjustment returns what the kernel is to be told (struct nf_ct_seqadj of
// include/net/netfilter/nf_conntrack_seqadj.h): numbers of the sender up to and including
// position are off by before, later ones by after.
//
// The kernel remembers the last change of the offset only. If there are more in the list, all
// of which the receiver may still lack, before is the largest offset that any byte in front of
// the last change has, and position makes up for it: whatever the receiver acknowledges of
// those bytes is then taken for less than it is, never for more, and all behind is exact.
//
// Window tracking compares position with the receiver's numbers as they are (tcp_in_window
// calls nf_ct_seq_offset so). Where lines have become shorter in sum, and the last one longer,
// its acknowledgement would seem to lie before position, and beyond what was sent; then before
// is the same as after.
//
// Segments that the kernel would place wrongly, because they lie before the last change, have
// to be given a number that comes out right.
func (e *Edits) Adjustment() (position Seq, before, after int32) {
	var last Seq // the last byte in front of the last change, as the receiver counts
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

// LastAdjustment returns what the kernel is to be told if the receiver has acknowledged all edits before the last change: as
// Adjustment, but before is the offset in front of that.
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

// Forget drops the edits that the receiver has acknowledged. ack is the receiver's
// acknowledgement number, in its own numbers: as it stands in its packets. The offset stays
// as it was, for all before them too: where the acknowledgement gets lost and they are sent
// again, unedited, the receiver still passes over them if Offset places them.
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

// Trim drops edits, the oldest first, until n are left: as if the receiver had acknowledged them.
func (e *Edits) Trim(n int) {
	for len(e.list) > n {
		e.base += e.list[0].delta()
		e.list = slices.Delete(e.list, 0, 1)
	}
}

// Base returns the offset in front of the first edit in the list: that of all which was
// forgotten. Where there are none left, Resume with it makes the same Edits.
func (e *Edits) Base() int32 { return e.base }

// Len returns the number of edits in the list.
func (e *Edits) Len() int { return len(e.list) }

// DropLast takes back the last edit that was added.
func (e *Edits) DropLast() { e.list = e.list[:len(e.list)-1] }

// Render returns the segment whose payload begins at seq as the receiver is to see it: the
// payload with the edits in it, appended to dst, and the sender's number for its first byte,
// which is another than seq only where the segment begins in bytes that vanished. The third
// result is false, and nothing appended, if the segment is the same as it was.
//
// Bytes other than the old ones are not replaced: a segment that has been rendered already, as one
// that passes this host twice, stays as it is.
func (e *Edits) Render(dst []byte, seq Seq, payload []byte) (Seq, []byte, bool) {
	end := seq.Add(len(payload))
	changed := false
	first, from := seq, seq // the number of the first byte; the first byte not rendered yet
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
