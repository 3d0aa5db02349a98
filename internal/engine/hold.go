package engine

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/stream"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

// A packet is released once the fate of every byte in it is known. Packets that hold an unfinished line that may have
// to be rewritten, or follow a gap, are held until it is filled, acknowledged (it passed unread), or the HoldTime
// is up, when they leave unchanged.

const (
	// maxHeldSide bounds the packets held of one direction of a connection, maxHeld those of all. Packets that have
	// their verdict take no place in the kernel's queue: the copies of those are bounded apart from the others.
	maxHeldSide = 512
	maxHeld     = 3072
)

// waiting is a direction of a connection with held packets, in the order in which their time is up.
type waiting struct {
	number   uint32 // of the connection
	dir      expect.Direction
	deadline time.Time
}

// stream returns the direction, nil if its packets are not held any more.
func (e *Engine) stream(w waiting) *stream.Stream {
	c := e.table.at(w.number)
	if s := &c.streams[w.dir]; len(s.Held()) > 0 && s.Deadline().Equal(w.deadline) {
		return s
	}
	return nil
}

// acknowledge takes note of what the packet acknowledges, and releases what was held for it.
func (e *Engine) acknowledge(c *connection, dir expect.Direction) {
	ack, ok := e.pkt.Ack()
	if !ok || e.mode().monitor { // it may count the bytes of another helper's rewrites
		return
	}
	dir = dir.Other()
	s := &c.streams[dir]
	s.Acknowledge(ack)
	if len(s.Held()) == 0 {
		return
	}
	pkt := e.pkt
	for held := s.Held(); len(held) > 0 && s.Next().Before(held[0].Packet.Seq()) && s.Passed(held[0].Packet.Seq()); held = s.Held() {
		e.pkt = held[0].Packet // fits looks at it
		e.read(c, dir, &e.pkt)
		e.readHeld(c, dir)
		e.release(c, dir, e.holdFrom(c, dir))
	}
	e.pkt = pkt
}

// advance reads what the packet makes readable: itself, unless bytes are missing before it,
// and what was held after such a gap. Bytes that the peer has acknowledged although they were not read, as they pass
// when a queue is full, are not waited for: a line that begins in them is not read.
func (e *Engine) advance(c *connection, dir expect.Direction) {
	s := &c.streams[dir]
	if !s.Begun() {
		e.join(c, dir)
	}
	if s.Next().Before(e.pkt.Seq()) && c.reads() && !s.Passed(e.pkt.Seq()) {
		return
	}
	e.read(c, dir, &e.pkt)
	e.readHeld(c, dir)
}

// readHeld reads what was held after a gap that is filled now.
func (e *Engine) readHeld(c *connection, dir expect.Direction) {
	s := &c.streams[dir]
	held := s.Held()
	for i := range held {
		if p := &held[i].Packet; !s.Next().Before(p.Seq()) {
			e.read(c, dir, p)
		}
	}
}

// holdFrom returns the first byte of the direction whose fate is not known yet.
func (e *Engine) holdFrom(c *connection, dir expect.Direction) mangle.Seq {
	s := &c.streams[dir]
	line := s.Unfinished()
	at := len(line.Text)
	if at == 0 || e.mode().monitor {
		return s.Next()
	}
	if dir == expect.Original && c.master.NAT() {
		at = c.control.HoldCommand(line.Text)
	} else if dir == expect.Reply && e.rewrites(c) {
		at = c.control.HoldReply(line.Text, !c.mayResize)
	}
	if from := line.Seq.Add(at); s.Unreleased(from) {
		return from
	}
	return s.Next() // too late: it cannot be rewritten any more
}

// verdictOrHold gives the packet its verdict, or holds it; and those packets that were held before
// and may leave now, theirs.
func (e *Engine) verdictOrHold(id uint32, c *connection, dir expect.Direction) {
	if !c.reads() {
		e.releaseAll(c, expect.Original)
		e.releaseAll(c, expect.Reply)
		e.verdict(id, &e.pkt, c, dir)
		return
	}
	from := e.holdFrom(c, dir)
	if from.Before(stream.End(&e.pkt)) {
		e.release(c, dir, from)
		e.hold(id, c, dir)
		return
	}
	e.release(c, dir, e.pkt.Seq())
	e.verdict(id, &e.pkt, c, dir)
	e.release(c, dir, from)
}

// hold keeps the packet, or, where nothing can have to be rewritten, a copy of it to be read.
func (e *Engine) hold(id uint32, c *connection, dir expect.Direction) {
	s := &c.streams[dir]
	deadline := e.config.Now().Add(e.config.HoldTime)
	if len(s.Held()) == 0 {
		e.waiting = append(e.waiting, waiting{c.number, dir, deadline})
	}
	verdictSent := e.mode().monitor || !e.rewrites(c)
	if verdictSent {
		e.verdict(id, &e.pkt, c, dir)
	}
	s.Hold(id, &e.pkt, verdictSent, deadline)
	*e.places(verdictSent)++
	e.stats.Held++
	if len(s.Held()) > maxHeldSide {
		e.flushTimedOut(c, dir)
	}
}

// places returns how many packets are held that have their verdict, or that have none.
func (e *Engine) places(verdictSent bool) *int {
	if verdictSent {
		return &e.copies
	}
	return &e.held
}

// makeRoom releases held packets where there are too many, so that an eighth of the places is free: those of the client
// address that holds most, of its connections that which holds most, of these that which has waited longest.
func (e *Engine) makeRoom(verdictSent bool) {
	if *e.places(verdictSent) <= maxHeld {
		return
	}
	type holder struct {
		c    *connection
		dir  expect.Direction
		held int
	}
	var holders []holder
	byClient := make(map[netip.Addr]int)
	for _, w := range e.waiting { // the longest first
		if s := e.stream(w); s != nil && s.Held()[0].VerdictSent == verdictSent {
			c := e.table.at(w.number)
			byClient[c.master.Client().Addr()] += len(s.Held())
			holders = append(holders, holder{c, w.dir, len(s.Held())})
		}
	}
	slices.SortStableFunc(holders, func(a, b holder) int {
		byMost := byClient[b.c.master.Client().Addr()] - byClient[a.c.master.Client().Addr()]
		return cmp.Or(byMost, b.held-a.held)
	})
	for _, h := range holders {
		if *e.places(verdictSent) <= maxHeld*7/8 {
			return
		}
		e.flushTimedOut(h.c, h.dir)
	}
}

// release releases the held packets that end before or at limit.
func (e *Engine) release(c *connection, dir expect.Direction, limit mangle.Seq) {
	if s := &c.streams[dir]; len(s.Held()) > 0 {
		e.taken = s.TakeHeld(limit, e.taken[:0])
		e.releaseHeld(c, dir, e.taken)
		clear(e.taken)
	}
}

func (e *Engine) releaseAll(c *connection, dir expect.Direction) {
	e.releaseHeld(c, dir, c.streams[dir].TakeAllHeld())
}

// releaseHeld gives packets that are held no more the verdicts that they lack.
func (e *Engine) releaseHeld(c *connection, dir expect.Direction, held []stream.Held) {
	for i := range held {
		h := &held[i]
		*e.places(h.VerdictSent)--
		if !h.VerdictSent {
			e.verdict(h.ID, &h.Packet, c, dir)
		}
	}
}

// flushTimedOut releases all held packets of a direction: what was missing has not arrived. What follows
// a gap is read first, as far as it can be.
func (e *Engine) flushTimedOut(c *connection, dir expect.Direction) {
	e.stats.GaveUp++
	held := c.streams[dir].Held()
	for i := range held {
		e.pkt = held[i].Packet // fits looks at it
		e.read(c, dir, &e.pkt)
	}
	e.releaseAll(c, dir)
}

// Deadline returns when Expire has to be called, and false if nothing is held.
func (e *Engine) Deadline() (time.Time, bool) {
	for len(e.waiting) > 0 {
		if w := e.waiting[0]; e.stream(w) != nil {
			return w.deadline, true
		}
		e.waiting = e.waiting[1:]
	}
	e.waiting = nil
	return time.Time{}, false
}

// Expire appends the verdicts of the held packets whose time is up.
func (e *Engine) Expire(verdicts []Verdict) []Verdict {
	e.begin(verdicts)
	now := e.config.Now()
	for {
		deadline, ok := e.Deadline()
		if !ok || deadline.After(now) {
			return e.verdicts
		}
		e.flushFirst()
	}
}

// Flush appends the verdicts of all held packets: the queue is about to close.
func (e *Engine) Flush(verdicts []Verdict) []Verdict {
	e.begin(verdicts)
	for i := range e.table.places() {
		if c := e.table.at(i); c.number != 0 {
			e.leaveInLine(c)
		}
	}
	for {
		if _, ok := e.Deadline(); !ok {
			return e.verdicts
		}
		e.flushFirst()
	}
}

// flushFirst releases the packets that Deadline is about.
func (e *Engine) flushFirst() {
	w := e.waiting[0]
	e.flushTimedOut(e.table.at(w.number), w.dir)
}

// setHoldTime makes t the longest time that a packet is held from now on, those included that are held already: whose
// time is up first stays the first.
func (e *Engine) setHoldTime(t time.Duration) {
	e.config.HoldTime = t
	latest := e.config.Now().Add(t)
	for i := range e.waiting {
		w := &e.waiting[i]
		if !w.deadline.After(latest) {
			continue
		}
		if s := e.stream(*w); s != nil {
			s.SetDeadline(latest)
		}
		w.deadline = latest
	}
}
