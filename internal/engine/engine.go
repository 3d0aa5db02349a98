// Package engine takes the packets of control connections and returns verdicts: it finds the connection of a
// packet (connection.go, table.go), has its lines read (read.go; package ftp), decides which announced endpoints may be
// opened (policy.go), has conntrack expect their data connections (announce.go), rewrites the lines (rewrite.go), and
// holds packets whose line is not complete (hold.go).
//
// It has no sockets: a packet goes in, verdicts come out, and conntrack is an interface. An
// Engine is for one queue and one goroutine.
package engine

import (
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/stream"
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
	// Observe, if not nil, is called with every event, on the goroutine that calls the engine.
	// The event and what it points to are valid during the call only.
	Observe func(*Event)
	// MaxFlows is how many control connections are tracked at most. For one more, the
	// least recently used is evicted; it is looked up again at its next packet. 0 means DefaultMaxFlows.
	MaxFlows  int
	Policy    Policy
	Advertise Advertise
	// Mode says how the engine works; the zero Mode is Full without labels.
	Mode Mode
	// HoldTime is the longest time that a packet is held for the rest of a line that may have
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
	Packets      uint64                 // handled
	Unknown      uint64                 // of these, released unread: conntrack does not know their connection, or their numbers are far from it
	Malformed    uint64                 // of these, released unread: they are no whole TCP packets
	Changed      uint64                 // of these, released with another payload, sequence or acknowledgement number
	Unchanged    uint64                 // of these, released unchanged; those that are in no count are held
	Endpoints    [parse.NumVerbs]uint64 // read
	Expectations uint64                 // of these, installed
	Edits        uint64                 // lines rewritten
	WouldOpen    uint64                 // of these, allowed by an engine that only monitors
	Failed       uint64                 // endpoints that were allowed, but could not be installed or rewritten
	Held         uint64                 // packets that had to wait for others
	GaveUp       uint64                 // times that they waited in vain
	// Refused counts the endpoints that were read, but not allowed; the index is the Reason.
	Refused [numReasons]uint64
}

// Engine handles the packets of one queue.
type Engine struct {
	config  Config
	rate    rate
	table   table
	waiting []waiting
	held    int // packets without a verdict, of all connections
	copies  int // of packets that have theirs, and wait to be read
	stats   Stats

	// Of the call that is under way; the memory is used again by the next one.
	pkt           mangle.Packet
	retransmitted bool // it is known to have been read before
	adjust        expect.SeqAdj
	verdicts      []Verdict
	taken         []stream.Held
	payload       []byte
	out           []byte
}

// New makes an Engine.
func New(c Config) *Engine {
	if c.Now == nil {
		c.Now = time.Now
	}
	e := &Engine{config: c, table: newTable()}
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
	e.config.Policy, e.config.Advertise, e.table.max = c.Policy.withDefaults(), c.Advertise, c.MaxFlows
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

// HandleRetransmit is Handle for a packet of which the lean rules say that no answer is due: a retransmission of a rewritten
// one, or one that was not solicited. It is rendered, and never read.
func (e *Engine) HandleRetransmit(id uint32, packet []byte, verdicts []Verdict) []Verdict {
	return e.handle(id, packet, verdicts, true)
}

func (e *Engine) handle(id uint32, packet []byte, verdicts []Verdict, retransmitted bool) []Verdict {
	e.begin(verdicts)
	e.retransmitted = retransmitted
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
	c, dir := e.find()
	if c == nil {
		e.stats.Unknown++
		return append(e.verdicts, Verdict{ID: id})
	}
	e.acknowledge(c, dir)
	if e.mode().lean {
		e.readAlone(c, dir)
		e.verdict(id, &e.pkt, c, dir)
	} else {
		e.advance(c, dir)
		e.verdictOrHold(id, c, dir)
	}
	if !c.reads() && !c.ignoreLabelSet {
		e.setIgnoreLabel(c)
	}
	e.makeRoom(false)
	e.makeRoom(true)
	return e.verdicts
}

func (e *Engine) begin(verdicts []Verdict) {
	e.verdicts, e.out = verdicts, e.out[:0]
}

func (e *Engine) mode() *Mode { return &e.config.Mode }

// verdict gives a packet its verdict, with the edits of its direction in it.
func (e *Engine) verdict(id uint32, p *mangle.Packet, c *connection, dir expect.Direction) {
	c.streams[dir].Release(stream.End(p))
	v := Verdict{ID: id, Packet: e.render(p, c, dir)}
	if v.Packet == nil {
		e.stats.Unchanged++
	}
	e.verdicts = append(e.verdicts, v)
}
