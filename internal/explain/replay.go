package explain

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect/memory"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// replay passes the packets of a capture through an engine.
type replay struct {
	report    *Report
	conntrack memory.Conntrack
	engine    *engine.Engine
	hold      time.Duration
	feed      []*fed
	waiting   map[uint32]*fed // for their verdict
	current   *fed            // that the engine has now
	sides     map[*Connection]*sides
	// connections are those that conntrack has, by their original tuples.
	connections  map[expect.Tuple]*Connection
	expectations map[*memory.Expectation]*Expectation
	seen         map[opening]*Data
}

// fed is a packet for the engine.
type fed struct {
	*packet
	connection *Connection
	dir        expect.Direction
	step       *Step
}

// recognisedLabel is the engine's label of connections that it has recognised as FTP, any bit. Of a connection that is
// older than the capture, the daemon is taken to have read the beginning.
const recognisedLabel = 1

func newReplay(report *Report, c Config) *replay {
	r := &replay{
		report:       report,
		hold:         cmp.Or(c.Engine.HoldTime, engine.DefaultHoldTime),
		waiting:      make(map[uint32]*fed),
		sides:        make(map[*Connection]*sides),
		connections:  make(map[expect.Tuple]*Connection),
		expectations: make(map[*memory.Expectation]*Expectation),
		seen:         make(map[opening]*Data),
	}
	config := c.Engine
	config.Conntrack, config.Observe = &r.conntrack, r.observe
	config.Mode = engine.Full(engine.Labels{Recognised: recognisedLabel})
	config.Now = func() time.Time { return r.conntrack.Now }
	r.engine = engine.New(config)
	return r
}

// add takes a control connection.
func (r *replay) add(s *sides) {
	c := &Connection{number: len(r.report.Connections) + 1, forwarded: s.forwarded()}
	near, far := s.client(), s.server()
	c.tuples = [2]expect.Tuple{near.tuple, reverse(far.tuple)}
	switch {
	case near != far:
		c.source = natSeen
	default:
		r.told(c)
	}
	c.begun = near.hasISN[expect.Original] || far.hasISN[expect.Original]
	c.recognised = !near.hasISN[expect.Reply] && !far.hasISN[expect.Reply]
	first := time.Time{}
	for _, dir := range []expect.Direction{expect.Original, expect.Reply} {
		for _, p := range s.came(dir) {
			if leaves := reverse(c.tuples[dir.Other()]); p.tuple() != leaves {
				moved := p.withTuple(leaves) // the helper sees packets as they leave
				p = &moved
			}
			r.feed = append(r.feed, &fed{packet: p, connection: c, dir: dir})
			if first.IsZero() || p.at.Before(first) {
				first = p.at
			}
		}
	}
	c.at = first.Sub(r.report.start)
	r.sides[c] = s
	r.report.Connections = append(r.report.Connections, c)
}

// told gives a connection of which one side was captured the NAT that somebody has said there is.
func (r *replay) told(c *Connection) {
	t := c.tuples[expect.Original]
	other := func(a netip.AddrPort, real bool) (netip.AddrPort, bool) {
		for i, n := range r.report.nat {
			from, to := n.Translated, n.Real
			if real {
				from, to = to, from
			}
			if a.Addr() == from {
				r.report.natUsed[i] = true
				return netip.AddrPortFrom(to, a.Port()), true
			}
		}
		return a, false
	}
	// At the client's side the server has its translated address, and the client its own.
	server, serverKnown := other(t.Dst, false)
	client, clientKnown := other(t.Src, true)
	if serverKnown || clientKnown {
		c.source, c.side = natTold, expect.Original
		c.tuples[expect.Reply] = expect.Tuple{Src: server, Dst: client}
		return
	}
	server, serverKnown = other(t.Dst, true)
	client, clientKnown = other(t.Src, false)
	if serverKnown || clientKnown {
		c.source, c.side = natTold, expect.Reply
		c.tuples = [2]expect.Tuple{{Src: client, Dst: server}, reverse(t)}
	}
}

// run passes everything through the engine, in the order of time, together with what opens
// other connections.
func (r *replay) run(other []*packet) {
	slices.SortFunc(r.feed, func(a, b *fed) int { return inTime(a.packet, b.packet) })
	for id, f := range r.feed {
		for len(other) > 0 && inTime(other[0], f.packet) < 0 {
			r.advance(other[0].at)
			r.open(other[0])
			other = other[1:]
		}
		r.advance(f.at)
		r.handle(uint32(id), f)
	}
	for _, p := range other {
		r.advance(p.at)
		r.open(p)
	}
	for {
		deadline, ok := r.engine.Deadline()
		if !ok {
			break
		}
		r.advance(deadline)
	}
	for _, c := range r.report.Connections {
		r.finish(c)
	}
}

// advance lets time pass.
func (r *replay) advance(now time.Time) {
	for {
		deadline, ok := r.engine.Deadline()
		if !ok || deadline.After(now) {
			break
		}
		r.conntrack.Now = deadline
		for _, c := range r.report.Connections {
			for dir := range c.came {
				c.add(expect.Direction(dir), c.came[dir].giveUp(deadline.Add(-r.hold)))
			}
		}
		r.leave(r.engine.Expire(nil), true)
	}
	r.conntrack.Now = now
}

// handle gives the engine a packet, and makes a step of one that says something.
func (r *replay) handle(id uint32, f *fed) {
	c := f.connection
	if c.entry == nil {
		c.entry = r.conntrack.Add(c.tuples[expect.Original], c.tuples[expect.Reply])
		c.entry.NoSeqAdj = !c.entry.NAT()
		if c.recognised {
			c.entry.Apply(expect.Update{SetLabel: recognisedLabel})
		}
		r.connections[c.tuples[expect.Original]] = c
	}
	switch {
	case f.SYN() && f.dir == expect.Original: // the server's begins with what it says first, for the engine
		c.came[f.dir].start(f.first())
		c.ours[f.dir].start(f.first())
	case f.SYN():
	case len(f.Payload()) == 0:
	case c.opaque != nil:
		c.unread++
	default:
		r.read(f)
	}
	r.waiting[id], r.current = f, f
	c.entry.Opening = f.SYN() && f.dir == expect.Reply
	r.leave(r.engine.Handle(id, f.Bytes(), nil), false)
	r.current = nil
	if r.waiting[id] != nil && f.step != nil {
		f.step.held = true
	}
}

// read makes a step of a packet.
func (r *replay) read(f *fed) {
	c, a, payload := f.connection, &f.connection.came[f.dir], f.Payload()
	middle := !a.stream.Begun() && !c.begun
	a.start(f.Seq())
	c.ours[f.dir].start(f.Seq())
	expected := a.stream.Next()
	again := !expected.Before(f.end())
	if again && len(payload) == 1 {
		return // keeps the connection alive
	}
	f.step = &Step{
		at: f.at.Sub(r.report.start), dir: f.dir, bytes: len(payload), again: again,
		gap: max(0, f.Seq().Sub(expected)), cut: f.missing,
	}
	s := f.step
	c.steps = append(c.steps, s)
	if again {
		s.lines = c.linesAt(f.dir, f.Seq())
		return
	}
	s.tls = isTLS(payload)
	c.add(f.dir, a.push(piece{at: f.at, seq: f.Seq(), data: payload, step: s}))
	if s.gap > 0 {
		return
	}
	if p := a.stream.Unfinished(); len(p.Text) > 0 {
		s.part = bytes.Clone(p.Text)
	}
	s.middle = middle && f.dir == expect.Original && len(s.lines) > 0 && mayContinue(s.lines[0].text)
}

// isTLS reports whether a payload begins with the header of a record of TLS (RFC 8446 section 5.1).
func isTLS(b []byte) bool {
	return len(b) >= 5 && 20 <= b[0] && b[0] <= 23 && b[1] == 3 && b[2] <= 4
}

// mayContinue reports whether a line from the client may be the end of another one, such as a password.
func mayContinue(text []byte) bool {
	c, _ := parse.ParseCommand(text)
	return c.Verb <= parse.Other
}

// add takes lines that came in.
func (c *Connection) add(dir expect.Direction, lines []line) {
	for i, l := range lines {
		made := &Line{text: l.text, step: l.step, dir: dir, seq: l.seq}
		last := i+1 == len(lines) || lines[i+1].step != l.step
		if last && endsLine(l.step.cut) {
			made.cut = min(l.step.cut-1, len(l.text)) // all that is made up but its LF
		}
		l.step.lines = append(l.step.lines, made)
		c.lines[dir] = append(c.lines[dir], made)
	}
}

// linesAt returns the line that begins at a place of the stream.
func (c *Connection) linesAt(dir expect.Direction, seq mangle.Seq) []*Line {
	for _, l := range slices.Backward(c.lines[dir]) {
		if l.seq == seq {
			return []*Line{l}
		}
	}
	return nil
}

// leave takes verdicts: what the helper sends, because the time of what waits is up or not.
func (r *replay) leave(verdicts []engine.Verdict, up bool) {
	for _, v := range verdicts {
		f := r.waiting[v.ID]
		delete(r.waiting, v.ID)
		if f == nil || f.step == nil {
			continue
		}
		f.step.vain = up
		f.step.left = r.conntrack.Now.Sub(r.report.start)
		p := f.Packet
		if v.Packet != nil {
			var changed mangle.Packet
			if changed.Decode(bytes.Clone(v.Packet)) != nil {
				continue
			}
			p = changed
		}
		seq := uint32(p.Seq())
		seq += uint32(f.connection.entry.SeqAdj[f.dir].Offset(seq)) // as the kernel does behind the queue
		c := f.connection
		c.sends[f.dir] = append(c.sends[f.dir], c.ours[f.dir].push(piece{at: r.conntrack.Now, seq: mangle.Seq(seq), data: p.Payload(), step: f.step})...)
	}
}

// observe takes what the engine tells.
func (r *replay) observe(ev *engine.Event) {
	c := r.connections[ev.Master.Tuples[expect.Original]]
	if c == nil {
		return
	}
	dir := expect.Original
	switch ev.Kind {
	case engine.Expected, engine.Refused, engine.Failed, engine.Unreadable:
		if ev.Verb.IsReply() {
			dir = expect.Reply
		}
	case engine.Odd:
		if r, _ := parse.ParseReply(ev.Line); r.Code != 0 {
			dir = expect.Reply
		}
		if i := c.nextLine(dir, ev.Line); i >= 0 {
			c.lines[dir][i].odd = ev.Err
		}
		return
	case engine.Encrypted, engine.NotFTP, engine.Nonsense:
		if c.opaque == nil && len(c.steps) > 0 {
			c.opaque, c.why = c.steps[len(c.steps)-1], ev.Kind
		}
		return
	default:
		return
	}
	l := c.unsettled(dir, ev.Line)
	if l == nil {
		// The engine has put together what came differently, as it may where much is missing.
		s := &Step{at: r.conntrack.Now.Sub(r.report.start), dir: dir}
		c.steps = append(c.steps, s)
		c.add(dir, []line{{text: bytes.Clone(ev.Line), step: s}})
		l = s.lines[0]
	}
	happened := *ev
	happened.Master, happened.Line = nil, nil
	l.event = &happened
	if a := ev.Announced.Addr(); dir == expect.Reply && a.IsValid() && !slices.Contains(c.elsewhere, a) {
		c.elsewhere = append(c.elsewhere, a)
	}
	if ev.Kind == engine.Expected {
		l.x = r.expected(c, l)
		c.expected = append(c.expected, l.x)
	}
}

// unsettled returns the next line of which the engine may have something to say, nil if there is
// none with that text.
func (c *Connection) unsettled(dir expect.Direction, text []byte) *Line {
	i := c.nextLine(dir, text)
	if i < 0 {
		return nil
	}
	c.next[dir] = i + 1
	return c.lines[dir][i]
}

// nextLine returns the index of that line, -1 if there is none.
func (c *Connection) nextLine(dir expect.Direction, text []byte) int {
	for i, l := range c.lines[dir][c.next[dir]:] {
		if bytes.Equal(l.text, text) {
			return c.next[dir] + i
		}
	}
	return -1
}

// finish compares what came, what the helper sends, and what the router sent.
func (r *replay) finish(c *Connection) {
	s := r.sides[c]
	for d := range c.lines {
		dir := expect.Direction(d)
		c.add(dir, c.came[d].giveUp(r.conntrack.Now))
		c.sends[d] = append(c.sends[d], c.ours[d].giveUp(r.conntrack.Now)...)
		var came []line
		for _, l := range c.lines[d] {
			came = append(came, line{text: l.text})
		}
		for i, o := range counterparts(came, c.sends[d]) {
			if o != nil {
				c.lines[d][i].ours = o.text
			}
		}
		left := s.left(dir)
		if len(left) == 0 {
			continue
		}
		for i, o := range counterparts(came, linesOf(left)) {
			if o != nil {
				c.lines[d][i].sent = o.text
			}
		}
	}
	for _, d := range c.data {
		d.followRouter()
		d.diagnose(r.report)
	}
}
