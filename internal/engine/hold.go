package engine

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// A packet may leave as soon as it is known what becomes of every byte in it. That is so for
// all that has been read, but for an unfinished line whose endpoint may have to be rewritten;
// and it is not so for what comes behind a gap. Such packets are held until the rest is there, the
// other side says that it has what is missing (it passed unread), or the time is up, when they leave as
// they are.

const (
	// maxHeldSide bounds the packets held of one direction of a connection, maxHeld those of all. Packets that have
	// their verdict take no place in the kernel's queue: the copies of those are bounded apart from the others.
	maxHeldSide = 512
	maxHeld     = 3072
)

// heldPacket waits for its verdict, or, where nothing can have to be rewritten, only to be read.
type heldPacket struct {
	id   uint32
	pkt  mangle.Packet // a view of a copy
	left bool          // it has its verdict
}

// waiting is a side with held packets, in the order in which their time is up.
type waiting struct {
	number   uint32 // of the flow
	dir      expect.Direction
	deadline time.Time
}

func end(p *mangle.Packet) parse.Seq { return p.Seq().Add(len(p.Payload())) }

// barrier returns the first byte of the side whose fate is not known yet.
func (e *Engine) barrier(f *flow, dir expect.Direction) parse.Seq {
	s := &f.sides[dir]
	expected := s.stream.Expected()
	line := s.stream.Pending()
	if len(line.Text) == 0 || e.config.Monitor {
		return expected
	}
	at := len(line.Text)
	switch {
	case dir == expect.Original && f.greeted && f.recognised && f.master.NAT():
		at = parse.CommandEndpoint(line.Text)
	case dir == expect.Reply && f.asked.passive != 0 && !f.replies.Open() && e.rewrites(f):
		if at = parse.ReplyEndpoint(line.Text); !f.mayResize {
			at = parse.ReplyText(line.Text)
		}
	}
	if b := line.Seq.Add(at); !b.Before(s.gone) {
		return b
	}
	return expected // too late: it cannot be rewritten any more
}

// rewrites reports whether anything that is said may have to be rewritten.
func (e *Engine) rewrites(f *flow) bool {
	return f.master.NAT() || e.config.Advertise.addr(&f.master).IsValid()
}

// settle gives the packet its verdict, or holds it; and those packets that were held before
// and may leave now, theirs.
func (e *Engine) settle(id uint32, f *flow, dir expect.Direction) {
	if f.opaque {
		e.releaseAll(f, expect.Original)
		e.releaseAll(f, expect.Reply)
		e.letGo(id, &e.pkt, f, dir)
		return
	}
	barrier := e.barrier(f, dir)
	if barrier.Before(end(&e.pkt)) {
		e.release(f, dir, barrier)
		e.hold(id, f, dir)
		return
	}
	e.release(f, dir, e.pkt.Seq())
	e.letGo(id, &e.pkt, f, dir)
	e.release(f, dir, barrier)
}

// hold keeps a copy of the packet, in the order of the stream.
func (e *Engine) hold(id uint32, f *flow, dir expect.Direction) {
	s := &f.sides[dir]
	if len(s.held) == 0 {
		s.deadline = e.config.Now().Add(e.config.HoldTime)
		e.waiting = append(e.waiting, waiting{f.number, dir, s.deadline})
	}
	h := heldPacket{id: id, left: e.config.Monitor || !e.rewrites(f)}
	if h.left {
		e.letGo(id, &e.pkt, f, dir)
	}
	if err := h.pkt.Decode(bytes.Clone(e.pkt.Bytes())); err != nil {
		panic(err) // it has been decoded before
	}
	i, _ := slices.BinarySearchFunc(s.held, h.pkt.Seq(), func(o heldPacket, seq parse.Seq) int {
		if o.pkt.Seq().Sub(seq) <= 0 {
			return -1 // behind those with the same number
		}
		return 1
	})
	s.held = slices.Insert(s.held, i, h)
	*e.places(h.left)++
	e.stats.Held++
	if len(s.held) > maxHeldSide {
		e.giveUp(f, dir)
	}
}

// places returns how many packets are held that have their verdict, or that have none.
func (e *Engine) places(left bool) *int {
	if left {
		return &e.copies
	}
	return &e.held
}

// makeRoom releases held packets where there are too many, so that an eighth of the places is free: those of the client
// address that holds most, of its connections that which holds most, of these that which has waited longest.
func (e *Engine) makeRoom(left bool) {
	if *e.places(left) <= maxHeld {
		return
	}
	type holder struct {
		f    *flow
		dir  expect.Direction
		held int
	}
	var holders []holder
	seen, byClient := make(map[*side]bool), make(map[netip.Addr]int)
	for _, w := range e.waiting { // the longest first
		f := e.flows.awake[w.number]
		if f == nil {
			continue
		}
		s := &f.sides[w.dir]
		if n := len(s.held); n > 0 && s.held[0].left == left && !seen[s] {
			seen[s] = true
			byClient[f.master.Client().Addr()] += n
			holders = append(holders, holder{f, w.dir, n})
		}
	}
	slices.SortStableFunc(holders, func(a, b holder) int {
		byMost := byClient[b.f.master.Client().Addr()] - byClient[a.f.master.Client().Addr()]
		return cmp.Or(byMost, b.held-a.held)
	})
	for _, h := range holders {
		if *e.places(left) <= maxHeld*7/8 {
			return
		}
		e.giveUp(h.f, h.dir)
		e.flows.rest(h.f)
	}
}

// release lets those held packets go that lie before the barrier.
func (e *Engine) release(f *flow, dir expect.Direction, barrier parse.Seq) {
	s := &f.sides[dir]
	if len(s.held) == 0 {
		return
	}
	kept := s.held[:0]
	for _, h := range s.held {
		if barrier.Before(end(&h.pkt)) {
			kept = append(kept, h)
			continue
		}
		e.leave(h, f, dir)
	}
	clear(s.held[len(kept):])
	s.held = kept
}

func (e *Engine) releaseAll(f *flow, dir expect.Direction) {
	s := &f.sides[dir]
	for _, h := range s.held {
		e.leave(h, f, dir)
	}
	s.held = nil
}

// leave lets a packet go that is held no more.
func (e *Engine) leave(h heldPacket, f *flow, dir expect.Direction) {
	*e.places(h.left)--
	if !h.left {
		e.letGo(h.id, &h.pkt, f, dir)
	}
}

// giveUp lets all held packets of a side go: what was missing has not come. What lies behind
// a gap is read first, as far as it can be.
func (e *Engine) giveUp(f *flow, dir expect.Direction) {
	s := &f.sides[dir]
	e.stats.GaveUp++
	for i := range s.held {
		e.pkt = s.held[i].pkt // what fits looks at
		e.read(f, dir, &e.pkt)
	}
	e.releaseAll(f, dir)
}

// Deadline returns when Expire has to be called, and false if nothing is held.
func (e *Engine) Deadline() (time.Time, bool) {
	for len(e.waiting) > 0 {
		w := e.waiting[0]
		if f := e.flows.awake[w.number]; f != nil {
			if s := &f.sides[w.dir]; len(s.held) > 0 && s.deadline.Equal(w.deadline) {
				return w.deadline, true
			}
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
		e.giveUpFirst()
	}
}

// Flush appends the verdicts of all held packets: the queue is about to close.
func (e *Engine) Flush(verdicts []Verdict) []Verdict {
	e.begin(verdicts)
	for _, f := range e.flows.awake {
		e.leaveInLine(f)
	}
	for {
		if _, ok := e.Deadline(); !ok {
			return e.verdicts
		}
		e.giveUpFirst()
	}
}

// giveUpFirst gives up the side that Deadline is about.
func (e *Engine) giveUpFirst() {
	f := e.flows.awake[e.waiting[0].number]
	e.giveUp(f, e.waiting[0].dir)
	e.flows.rest(f)
}

// setHoldTime has nobody wait for longer than t from now on, those who wait already included: whose
// time is up first stays the first.
func (e *Engine) setHoldTime(t time.Duration) {
	e.config.HoldTime = t
	latest := e.config.Now().Add(t)
	for i := range e.waiting {
		w := &e.waiting[i]
		if !w.deadline.After(latest) {
			continue
		}
		if f := e.flows.awake[w.number]; f != nil && f.sides[w.dir].deadline.Equal(w.deadline) {
			f.sides[w.dir].deadline = latest
		}
		w.deadline = latest
	}
}
