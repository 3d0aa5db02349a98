package engine

import (
	"errors"
	"math/bits"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// flow is one control connection.
type flow struct {
	master  expect.Master
	unknown bool      // conntrack does not know the connection, so far
	retry   time.Time // when to ask it again
	sides   [2]side   // by direction: the client's, the server's

	replies parse.Replies
	greeted bool // the server has said something that is neither an error nor a question
	// head is set while the client's stream has been read from its first byte, and every line is one of FTP, but
	// no login has come. With the login the connection is recognised as FTP; only then PORT and EPRT open anything.
	head       bool
	recognised bool
	junk       uint8 // how many lines from the client, the last ones, are nonsense: see maxJunk
	auth       bool  // the client has sent AUTH
	epsvAll    bool  // the client has sent EPSV ALL
	opaque     bool  // encrypted, or no FTP at all: nothing is read any more
	labelled   bool  // and the rules have been told
	// mayResize is set while the kernel adjusts the sequence numbers behind a line that has become
	// longer or shorter: it can for a connection that this host translates.
	mayResize bool
	marked    bool     // EditedLabel is set
	asked     commands // those that have not been answered
	reported  uint16   // a bit for every Reason for which an observer has been told something

	expected uint32 // data connections
	refused  uint32 // endpoints that were refused, or failed
	last     Last

	number uint32 // of its entry in the table; 0: it has none
}

// commands are those that the server has not answered, oldest first: for each a bit that says
// whether it asks for a passive data connection. A server answers in order (RFC 959 section
// 5.4). More than 64 are not remembered.
type commands struct {
	passive uint64 // the lowest bit is the oldest
	n       int
}

func (c *commands) push(passive bool) {
	if c.n == 64 {
		c.pop(1)
	}
	if passive {
		c.passive |= 1 << c.n
	}
	c.n++
}

func (c *commands) pop(n int) {
	c.passive >>= n
	c.n -= min(n, c.n)
}

// answer takes note of an answer, and reports whether a command has asked for one of its kind:
// with passive set, PASV and EPSV have. An error answers the oldest command, whatever it was;
// a passive answer also those before the one that asked for it, since what a server says beyond
// what it was asked must not come between the two.
func (c *commands) answer(passive bool) bool {
	if !passive || c.passive == 0 {
		c.pop(1)
		return !passive
	}
	c.pop(bits.TrailingZeros64(c.passive) + 1)
	return true
}

// side is what one end of a control connection sends.
type side struct {
	stream   parse.Stream
	edits    mangle.Edits
	started  bool
	begun    parse.Seq    // what begins before it is the kernel's to place
	gone     parse.Seq    // first byte that has not been let go yet
	had      parse.Seq    // first byte that the other side is not known to have
	held     []heldPacket // packets that wait, in the order of the stream
	deadline time.Time    // when they have waited long enough
}

// lacks reports whether the other side has bytes that were not here. A FIN, which counts as one, is not
// among them.
func (s *side) lacks() bool { return s.stream.Expected().Add(1).Before(s.had) }

// otherConnection is how far, in bytes, a segment may lie from where its stream is; beyond
// that it belongs to a later connection between the same ports.
const otherConnection = 1 << 20

// retryAfter is for how long packets are let go without asking conntrack for a connection that it
// did not know.
const retryAfter = time.Second

// find returns the flow of the packet and the packet's direction, and nil for a packet of
// which nothing is known. The first packet of a connection is looked up in conntrack.
func (e *Engine) find() (*flow, expect.Direction) {
	f, dir := e.tracked()
	if f != nil && f.unknown {
		if wait := f.retry.Sub(e.config.Now()); 0 < wait && wait <= retryAfter { // the clock may have been set
			return nil, 0
		}
	}
	if f != nil && !f.unknown && e.belongs(f, dir) {
		return f, dir
	}
	key := e.key()
	m, dir, err := e.config.Conntrack.Lookup(key)
	if err == nil && f != nil && !f.unknown {
		if e.readjusted(f, m, dir.Other()) {
			return f, dir.Other()
		}
		if f.recognised && e.labelled(m, e.config.RecognisedLabel) && m.Tuples == f.master.Tuples {
			// A new connection has no such label, so this packet is no reason to forget where the lines begin.
			return nil, 0
		}
	}
	if f != nil {
		e.drop(f)
	}
	if err != nil {
		unknown := expect.Master{Tuples: [2]expect.Tuple{{Src: key.Dst, Dst: key.Src}, key}}
		e.tell(Event{Kind: Unknown, Master: &unknown, Err: err, Again: e.stats.Unknown > 0})
		if errors.Is(err, expect.ErrNoEntry) {
			e.flows.rest(e.track(flow{master: unknown, unknown: true, retry: e.config.Now().Add(retryAfter)}))
		}
		return nil, 0
	}
	e.tell(Event{Kind: Tracked, Master: m})
	return e.track(e.newFlow(m)), dir.Other()
}

// open begins a connection with the server's SYN-ACK, which has both initial sequence numbers: that
// connection is seen from its beginning. Conntrack has to say that the handshake is under way, since a
// server can send a SYN-ACK at any time.
func (e *Engine) open() {
	f, dir := e.tracked()
	server := e.pkt.Seq().Add(1)
	client, _ := e.pkt.Ack()
	if f != nil && dir == expect.Reply && f.sides[expect.Reply].opened(server) && f.sides[expect.Original].opened(client) {
		return // a retransmission
	}
	m, dir, err := e.config.Conntrack.Lookup(e.key())
	if err != nil || dir != expect.Original || !m.Opening {
		return
	}
	opened := e.newFlow(m)
	opened.head = true
	opened.sides[expect.Reply].open(server)
	opened.sides[expect.Original].open(client)
	e.tell(Event{Kind: Tracked, Master: m})
	e.flows.rest(e.track(opened))
}

func (e *Engine) newFlow(m *expect.Master) flow {
	f := flow{master: *m, mayResize: m.NAT()}
	for d := range f.sides {
		f.sides[d].edits.Resume(m.SeqAdj[d].After)
	}
	f.labelled = e.labelled(m, e.config.OpaqueLabel)
	f.opaque = f.labelled
	f.recognised = e.labelled(m, e.config.RecognisedLabel)
	f.greeted = f.recognised
	// Where the SYN-ACK is not queued, what the client is seen to say first is taken for the beginning.
	f.head = !f.recognised && (e.config.Monitor || e.labelled(m, e.config.ProxiedLabel))
	return f
}

// labelled reports whether a connection has a label that may not be configured (0).
func (e *Engine) labelled(m *expect.Master, label int) bool { return label != 0 && m.Label(label) }

// readjusted reports whether the packet belongs to the flow after all, with the sequence adjustment that
// its entry has now. SYNPROXY sets one after the SYN-ACK has passed, before any line does.
func (e *Engine) readjusted(f *flow, m *expect.Master, dir expect.Direction) bool {
	if m.Tuples != f.master.Tuples || m.SeqAdj == f.master.SeqAdj || f.sides[0].edits.Len()+f.sides[1].edits.Len() > 0 {
		return false
	}
	before := f.master.SeqAdj
	resume := func(adj [2]expect.SeqAdj) {
		f.master.SeqAdj = adj
		for d := range f.sides {
			f.sides[d].edits.Resume(adj[d].After)
		}
	}
	resume(m.SeqAdj)
	if !e.belongs(f, dir) {
		resume(before)
		return false
	}
	f.master.Adjustable = m.Adjustable
	return true
}

// belongs reports whether the packet's numbers are near those of the flow, rather than those of
// another connection between the same ports.
func (e *Engine) belongs(f *flow, dir expect.Direction) bool {
	near := func(a, b parse.Seq) bool { d := a.Sub(b); return -otherConnection < d && d < otherConnection }
	s, peer := &f.sides[dir], &f.sides[dir.Other()]
	if s.started && !near(e.pkt.Seq(), s.stream.Expected()) {
		return false
	}
	ack, ok := e.pkt.Ack()
	return !ok || !peer.started || near(peer.edits.Undo(ack), peer.stream.Expected())
}

// key returns the tuple of the other direction: the reverse of a packet that NAT has translated is
// what the packets of the other direction look like where they enter this host.
func (e *Engine) key() expect.Tuple { return expect.Tuple{Src: e.pkt.Dst(), Dst: e.pkt.Src()} }

// tracked returns the flow of the packet, if there is one, and the packet's direction.
func (e *Engine) tracked() (*flow, expect.Direction) {
	f, dir := e.flows.find(e.key())
	return f, dir.Other()
}

// maxDrops is how many flows are forgotten for a new one, if there are more than there may be by now:
// packets wait meanwhile.
const maxDrops = 16

// track adds a flow. The one that has not been used for the longest makes room if need be,
// and so does one that has the same tuples: its connection is over.
func (e *Engine) track(f flow) *flow {
	for n := 0; e.flows.count >= e.flows.max && n < maxDrops; n++ {
		oldest := e.flows.wake(e.flows.oldest)
		e.leaveInLine(oldest)
		e.drop(oldest)
	}
	for _, key := range f.master.Tuples {
		if stale, _ := e.flows.lookup(key); stale != 0 {
			e.drop(e.flows.wake(stale))
		}
	}
	return e.flows.add(f)
}

// leaveInLine takes the recognition of a connection back that is forgotten in the middle of a line: when it is looked up
// again, its next segment would be taken for the beginning of one.
func (e *Engine) leaveInLine(f *flow) {
	s := &f.sides[expect.Original].stream
	if f.recognised && e.config.RecognisedLabel != 0 && !e.config.Monitor && (s.Skips() || len(s.Pending().Text) > 0 || s.Pending().Cut) {
		e.setLabel(f, expect.Update{ClearLabel: e.config.RecognisedLabel})
	}
}

// drop forgets a flow. None of its packets stays behind.
func (e *Engine) drop(f *flow) {
	e.releaseAll(f, expect.Original)
	e.releaseAll(f, expect.Reply)
	e.flows.remove(f)
}
