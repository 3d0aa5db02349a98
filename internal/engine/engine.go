// Package engine is the pipeline between the queue and the verdict: it finds the control
// connection of a packet, reads the lines in it, decides which announced endpoints may be
// opened, has conntrack expect their data connections, and renders the packet as the other
// side is to see it.
//
// It has no sockets: a packet goes in, verdicts come out, and conntrack is an interface. An
// Engine is for one queue and one goroutine.
package engine

import (
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// Conntrack is what the engine needs of conntrack; expect.Client has it, and so has
// memory.Conntrack. The methods and their errors are those of expect.Client.
type Conntrack interface {
	Lookup(t expect.Tuple) (*expect.Master, expect.Direction, error)
	Announce(m *expect.Master, e expect.Expectation, u expect.Update) error
	Update(m *expect.Master, u expect.Update) error
}

// Config is what an Engine is made of.
type Config struct {
	Conntrack Conntrack
	// Observe is called with every event, on the goroutine that calls the engine; nil for nobody.
	// The event and what it points to are valid during the call only.
	Observe func(*Event)
	// MaxFlows is how many control connections are tracked at most. One more, and the one
	// that has been silent for the longest is forgotten; when it speaks again it is looked
	// up anew. 0 means DefaultMaxFlows.
	MaxFlows  int
	Policy    Policy
	Advertise Advertise
	// AskedLabel is the bit that the rules set when the client has sent PASV or EPSV, where they
	// are the lean ones: they queue only what has to be read, and a segment begins with it. 0
	// means that they are not, and queue everything.
	AskedLabel int
	// EditedLabel is the bit that makes lean rules queue the answers to PASV and EPSV when they are
	// sent again.
	EditedLabel int
	// RecognisedLabel is the bit that is set on a connection whose client has logged in as one of FTP, and was read
	// from its first byte on: what is looked up with it may announce an endpoint at once. 0 means that there is
	// none, and a connection that is forgotten is not recognised again.
	RecognisedLabel int
	// ProxiedLabel is the bit of connections whose SYN-ACK is not queued. 0 means that there are none.
	ProxiedLabel int
	// OpaqueLabel is the bit of the conntrack label that makes the rules queue nothing more of
	// a connection, 1 to 127. 0 means that there is none.
	OpaqueLabel int
	// Monitor has the engine decide as usual, and open and change nothing: every packet passes
	// unchanged and at once, and of conntrack only Lookup is called. What it would have opened are
	// WouldOpen events.
	Monitor bool
	// HoldTime is for how long a packet waits at most for the rest of a line that may have
	// to be rewritten. 0 means DefaultHoldTime.
	HoldTime time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Defaults of Config.
const (
	DefaultMaxFlows = 1 << 16
	DefaultHoldTime = 500 * time.Millisecond
)

// MaxPacket is the length in bytes of the longest packet that a Verdict may hold.
const MaxPacket = 0xffff - 4

// Verdict accepts a packet. It is the type that nfq.Verdict is, too; neither package imports the other.
type Verdict = struct {
	// ID is the packet's number in the queue.
	ID uint32
	// Packet replaces the packet; nil leaves it unchanged. It is valid until the next call of the engine.
	Packet []byte
}

// Stats counts what an Engine has done since it was made.
type Stats struct {
	Packets      uint64           // handled
	Unknown      uint64           // of these, released unread: conntrack does not know their connection, or their numbers are far from it
	Malformed    uint64           // of these, let go unread because they are no whole TCP packets
	Changed      uint64           // of these, let go with another payload, sequence or acknowledgement number
	Unchanged    uint64           // of these, let go as they came; those that are in no count are held
	Endpoints    [NumVerbs]uint64 // read
	Expectations uint64           // of these, installed
	Edits        uint64           // lines rewritten
	WouldOpen    uint64           // of these, allowed by an engine that only monitors
	Failed       uint64           // endpoints that were allowed, but could not be installed or rewritten
	Held         uint64           // packets that had to wait for others
	GaveUp       uint64           // times that they waited in vain
	// Refused counts the endpoints that were read, but not allowed; the index is the Reason.
	Refused [numReasons]uint64
}

// Engine handles the packets of one queue.
type Engine struct {
	config  Config
	rate    rate
	flows   flowTable
	waiting []waiting
	held    int // packets without a verdict, of all flows
	copies  int // of packets that have theirs, and wait to be read
	stats   Stats

	// Of the call that is under way; the memory is used again by the next one.
	pkt      mangle.Packet
	again    bool // it is known to have been read before
	adjust   expect.SeqAdj
	verdicts []Verdict
	payload  []byte
	out      []byte
}

// New makes an Engine.
func New(c Config) *Engine {
	if c.Now == nil {
		c.Now = time.Now
	}
	e := &Engine{config: c, flows: newFlowTable()}
	e.Configure(c)
	return e
}

// Configure makes the Policy, Advertise, HoldTime and MaxFlows of c those of the engine, from the next
// packet on. If more connections are tracked than MaxFlows, they become fewer with each new one.
// Deadline may return another time than before.
func (e *Engine) Configure(c Config) {
	if c.MaxFlows == 0 {
		c.MaxFlows = DefaultMaxFlows
	}
	if c.HoldTime == 0 {
		c.HoldTime = DefaultHoldTime
	}
	e.config.Policy, e.config.Advertise, e.flows.max = c.Policy.withDefaults(), c.Advertise, c.MaxFlows
	e.setHoldTime(c.HoldTime)
}

// Stats returns the counters.
func (e *Engine) Stats() Stats { return e.stats }

// Handle takes the packet with the number id, from its IP header on, and appends to verdicts
// those that are due: that of the packet as a rule; none if it has to wait for others; those
// of others that waited for it. What is not understood is let go as it is. The bytes of the
// packet are neither changed nor kept.
//
// The packet has the addresses that it leaves this host with, after NAT, and the sequence numbers
// that it came with: the kernel adjusts those later, when it confirms the packet.
func (e *Engine) Handle(id uint32, packet []byte, verdicts []Verdict) []Verdict {
	return e.handle(id, packet, verdicts, false)
}

// HandleAgain is Handle for a packet of which the lean rules say that no answer is due: a rewritten one
// that is sent again, or one that nobody has asked for. It is rendered, and never read.
func (e *Engine) HandleAgain(id uint32, packet []byte, verdicts []Verdict) []Verdict {
	return e.handle(id, packet, verdicts, true)
}

func (e *Engine) handle(id uint32, packet []byte, verdicts []Verdict, again bool) []Verdict {
	e.begin(verdicts)
	e.again = again
	e.stats.Packets++
	if e.pkt.Decode(packet) != nil {
		e.stats.Malformed++
		return append(e.verdicts, Verdict{ID: id})
	}
	_, acks := e.pkt.Ack()
	if opens := e.pkt.SYN(); opens || len(e.pkt.Payload()) == 0 {
		if opens && acks {
			e.open() // which may append the verdicts of a connection that is over
		}
		e.stats.Unchanged++
		return append(e.verdicts, Verdict{ID: id})
	}
	f, dir := e.find()
	if f == nil {
		e.stats.Unknown++
		return append(e.verdicts, Verdict{ID: id})
	}
	e.acknowledge(f, dir)
	if e.lean() {
		e.readAlone(f, dir)
		e.letGo(id, &e.pkt, f, dir)
	} else {
		e.advance(f, dir)
		e.settle(id, f, dir)
	}
	if f.opaque && !f.labelled {
		e.label(f)
	}
	e.flows.rest(f)
	e.makeRoom(false)
	e.makeRoom(true)
	return e.verdicts
}

func (e *Engine) begin(verdicts []Verdict) {
	e.verdicts, e.out = verdicts, e.out[:0]
}

// acknowledge takes note of what the packet acknowledges.
func (e *Engine) acknowledge(f *flow, dir expect.Direction) {
	ack, ok := e.pkt.Ack()
	if !ok || e.config.Monitor { // it may count the bytes of another helper's rewrites
		return
	}
	dir = dir.Other()
	s := &f.sides[dir]
	s.edits.Forget(ack)
	if had := s.edits.Undo(ack); s.had.Before(had) && !e.lean() {
		s.had = had
	}
	pkt := e.pkt
	for len(s.held) > 0 && s.stream.Expected().Before(s.held[0].pkt.Seq()) && !s.had.Before(s.held[0].pkt.Seq()) {
		e.pkt = s.held[0].pkt // what fits looks at
		e.read(f, dir, &e.pkt)
		e.readHeld(f, dir)
		e.release(f, dir, e.barrier(f, dir))
	}
	e.pkt = pkt
}

// advance reads what the packet makes readable: itself, unless bytes are missing before it,
// and what was held behind such a gap. Bytes that the other side has already passed unread, as they do
// where a queue is full, and are not waited for: what begins in them is not read.
func (e *Engine) advance(f *flow, dir expect.Direction) {
	s := &f.sides[dir]
	if !s.started {
		e.start(f, dir)
	}
	if s.stream.Expected().Before(e.pkt.Seq()) && !f.opaque && s.had.Before(e.pkt.Seq()) {
		return
	}
	e.read(f, dir, &e.pkt)
	e.readHeld(f, dir)
}

// readHeld reads what was held behind a gap that is none any more.
func (e *Engine) readHeld(f *flow, dir expect.Direction) {
	s := &f.sides[dir]
	for i := range s.held {
		if h := &s.held[i].pkt; !s.stream.Expected().Before(h.Seq()) {
			e.read(f, dir, h)
		}
	}
}

// letGo gives a packet its verdict, with the edits of its side in it.
func (e *Engine) letGo(id uint32, p *mangle.Packet, f *flow, dir expect.Direction) {
	s := &f.sides[dir]
	if last := end(p); s.gone.Before(last) {
		s.gone = last
	}
	v := Verdict{ID: id, Packet: e.render(p, f, dir)}
	e.countUnchanged(v)
	e.verdicts = append(e.verdicts, v)
}

func (e *Engine) countUnchanged(v Verdict) {
	if v.Packet == nil {
		e.stats.Unchanged++
	}
}

// render returns the packet as the other side is to see it, or nil if it is to stay as it is.
func (e *Engine) render(p *mangle.Packet, f *flow, dir expect.Direction) []byte {
	s, kernel := &f.sides[dir], f.master.SeqAdj[dir]
	if e.config.Monitor || s.edits.Len() == 0 && kernel.Before == kernel.After || p.Seq().Before(s.begun) {
		return nil
	}
	first, payload, changed := s.edits.Render(e.payload[:0], p.Seq(), p.Payload())
	// The receiver has to see this number, and the kernel is about to adjust it. It knows the
	// last change only; for what is sent again from before that, this makes up for it.
	seq := parse.Seq(kernel.Undo(uint32(first.Add(int(s.edits.Offset(first))))))
	if !changed && seq == p.Seq() {
		return nil
	}
	if changed {
		e.payload = payload
	} else {
		payload = p.Payload()
	}
	start := len(e.out)
	out, err := p.AppendSegment(e.out, seq, payload)
	if err != nil {
		return nil
	}
	e.out = out
	e.stats.Changed++
	return out[start:]
}
