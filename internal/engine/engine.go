// Package engine is the pipeline between the queue and the verdict: it finds the control
// connection of a packet, reads the lines in it, decides which announced endpoints may be
// opened, has conntrack expect their data connections, and renders the packet as the other
// side is to see it.
//
// It has no sockets: a packet goes in, verdicts come out, and conntrack is an interface. An
// Engine is for one queue and one goroutine.
package engine

import (
	"log/slog"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

// Conntrack is what the engine needs of conntrack; expect.Client has it, and so has the fake
// of package conntracktest. The methods and their errors are those of expect.Client.
type Conntrack interface {
	Lookup(t expect.Tuple) (*expect.Master, expect.Direction, error)
	Expect(e expect.Expectation) (expect.Expectation, error)
	Unexpect(e expect.Expectation) error
	Adjust(m *expect.Master, dir expect.Direction, a expect.SeqAdj) error
}

// Config is what an Engine is made of.
type Config struct {
	Conntrack Conntrack
	Log       *slog.Logger
	// MaxFlows is how many control connections are tracked at most. One more, and the one
	// that has been silent for the longest is forgotten; when it speaks again it is looked
	// up anew. 0 means DefaultMaxFlows.
	MaxFlows int
	// MinPort is the lowest port that may be announced. 0 means DefaultMinPort.
	MinPort uint16
}

// Defaults of Config.
const (
	DefaultMaxFlows = 1 << 16
	DefaultMinPort  = 1024
)

// Verdict is what becomes of a queued packet. Every packet is let go, sooner or later.
type Verdict struct {
	// ID is the packet's number in the queue.
	ID uint32
	// Packet is the packet as it is to be let go, nil for as it was. It is valid until the
	// next call of the engine.
	Packet []byte
}

// Stats counts what an Engine has done since it was made.
type Stats struct {
	Packets      uint64 // handled
	Changed      uint64 // of these, let go with another payload
	Expectations uint64 // installed
	Refused      uint64 // endpoints that were read, but not allowed
	Failed       uint64 // endpoints that were allowed, but could not be installed or rewritten
}

// Engine handles the packets of one queue.
type Engine struct {
	ct      Conntrack
	log     *slog.Logger
	minPort uint16
	flows   flowTable
	stats   Stats

	// Reused from packet to packet.
	pkt     mangle.Packet
	payload []byte
	out     []byte
}

// New makes an Engine.
func New(c Config) *Engine {
	if c.MaxFlows == 0 {
		c.MaxFlows = DefaultMaxFlows
	}
	if c.MinPort == 0 {
		c.MinPort = DefaultMinPort
	}
	return &Engine{ct: c.Conntrack, log: c.Log, minPort: c.MinPort, flows: newFlowTable(c.MaxFlows)}
}

// Stats returns the counters.
func (e *Engine) Stats() Stats { return e.stats }

// Handle takes the packet with the number id, from its IP header on, and appends to verdicts
// those that are due. What is not understood is let go as it is. The bytes of the packet are
// not changed and not kept.
func (e *Engine) Handle(id uint32, packet []byte, verdicts []Verdict) []Verdict {
	e.stats.Packets++
	return append(verdicts, Verdict{ID: id, Packet: e.handle(packet)})
}

// handle returns the changed packet, or nil.
func (e *Engine) handle(packet []byte) []byte {
	if e.pkt.Decode(packet) != nil || len(e.pkt.Payload()) == 0 {
		return nil
	}
	f, dir := e.find()
	if f == nil {
		return nil
	}
	if e.pkt.Flags()&mangle.FlagACK != 0 {
		f.sides[dir.Other()].edits.Forget(e.pkt.Ack())
	}
	e.read(f, dir)
	return e.render(&f.sides[dir].edits)
}

// render returns the packet with the edits in it, or nil if it has none.
func (e *Engine) render(edits *mangle.Edits) []byte {
	if edits.Len() == 0 {
		return nil
	}
	seq, payload, changed := edits.Render(e.payload[:0], e.pkt.Seq(), e.pkt.Payload())
	if !changed {
		return nil
	}
	e.payload = payload
	out, err := e.pkt.AppendSegment(e.out[:0], seq, payload)
	if err != nil {
		return nil
	}
	e.out = out
	e.stats.Changed++
	return out
}
