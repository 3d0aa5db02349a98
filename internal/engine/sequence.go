package engine

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

// Sequence says who keeps the sequence numbers of a control connection right behind a line that
// has become longer or shorter.
type Sequence uint8

const (
	// Auto is Kernel for a connection that this host translates, which is when its entry has room
	// for an adjustment; else User where the rules provide for it, and SameLength where they don't.
	Auto Sequence = iota
	// Kernel has conntrack do it (nf_conntrack_seqadj.c). Nothing is lost when the daemon stops.
	Kernel
	// SameLength leaves it to nobody: a reply is rewritten in the same length, its text for people
	// giving or taking the bytes. A command has no such text.
	SameLength
	// User has the daemon do it, which then sees every packet of the connection.
	User
)

var sequenceTexts = [...]string{Auto: "auto", Kernel: "kernel", SameLength: "same-length", User: "user"}

// String returns "auto", "kernel", "same-length" or "user".
func (s Sequence) String() string { return sequenceTexts[s] }

// UnmarshalText implements encoding.TextUnmarshaler for what String returns.
func (s *Sequence) UnmarshalText(text []byte) error {
	for i, t := range sequenceTexts {
		if t == string(text) {
			*s = Sequence(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not auto, kernel, same-length or user", text)
}

// MarshalText implements encoding.TextMarshaler.
func (s Sequence) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Early has packets from src to dst queued before conntrack sees them; rules.Early does.
//
// Window tracking has to see one consistent stream. So the daemon fixes the numbers in the
// server's packets before conntrack and those in the client's behind it: what conntrack sees is
// what the client sees.
type Early interface {
	Add(src, dst netip.AddrPort) error
	Remove(src, dst netip.AddrPort) error
}

// keeper returns who is to keep the numbers of a connection, from what conntrack has of it.
func (e *Engine) keeper(m *expect.Master) Sequence {
	switch {
	case e.config.Sequence == User && m.SeqAdj != [2]expect.SeqAdj{}:
		return Kernel // it does already
	case e.config.Sequence != Auto:
		return e.config.Sequence
	case m.NAT():
		return Kernel
	}
	return e.withoutKernel()
}

func (e *Engine) withoutKernel() Sequence {
	if e.config.Early != nil {
		return User
	}
	return SameLength
}

// take makes the daemon the keeper of the numbers of f, if that is who it is to be. It does so when
// the client asks for a data connection: not before, since most packets of a connection need not be
// seen, and not after, since conntrack must not see a reply whose length is going to change.
func (e *Engine) take(f *flow) {
	if f.sequence != User || f.kept || !e.rewrites(f) {
		return
	}
	reply := f.master.Tuples[expect.Reply]
	err := e.config.Early.Add(reply.Src, reply.Dst)
	if err == nil {
		if err = e.config.Conntrack.Update(&f.master, expect.Update{SetLabel: e.config.KeptLabel}); err != nil {
			err = errors.Join(err, e.config.Early.Remove(reply.Src, reply.Dst))
		}
	}
	if err != nil {
		f.sequence = SameLength
		e.tell(Event{Kind: LengthKept, Master: &f.master, Err: err})
		return
	}
	f.kept = true
}

// leaveEarly undoes the half of take that outlives the connection.
func (e *Engine) leaveEarly(f *flow) {
	if !f.kept {
		return
	}
	f.kept = false
	reply := f.master.Tuples[expect.Reply]
	if err := e.config.Early.Remove(reply.Src, reply.Dst); err != nil {
		e.tell(Event{Kind: StaysQueued, Master: &f.master, Err: err})
	}
}

// shifts reports whether lines of the connection may change their length.
func (f *flow) shifts() bool { return f.kept || f.sequence == Kernel }

// bare handles a packet without payload. It is read nowhere, but where the daemon keeps the
// numbers, it has some.
func (e *Engine) bare(id uint32) Verdict {
	if e.config.Early == nil {
		return Verdict{ID: id}
	}
	f, dir := e.tracked()
	switch {
	case f == nil || !f.kept:
		return Verdict{ID: id}
	case e.pkt.SYN() && e.stillKept(f):
		return Verdict{ID: id}
	case e.pkt.SYN(): // of the next connection between these ports
		e.drop(f)
		return Verdict{ID: id}
	}
	if e.belongs(f, dir) {
		e.acknowledge(f, dir)
	}
	v := Verdict{ID: id, Packet: e.render(&e.pkt, f, dir)}
	e.flows.rest(f)
	return v
}

// peer returns the edits by which acknowledgements in packets of direction dir are to be
// translated, nil for none.
func (f *flow) peer(dir expect.Direction) *mangle.Edits {
	if edits := &f.sides[dir.Other()].edits; f.kept && edits.Shifted() {
		return edits
	}
	return nil
}
