package engine

import (
	"errors"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/ftp"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/stream"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

// connection is one control connection. There may be a million of them: TestSize bounds it.
type connection struct {
	master  expect.Master
	streams [2]stream.Stream // by direction: the client's, the server's
	control ftp.Control

	retry   int64 // when to look it up again, in ns since 1970, if it is unknown
	unknown bool  // conntrack does not know the connection, so far
	// mayResize is set while the kernel adjusts the sequence numbers after a line that has become
	// longer or shorter: it can for a connection that this host translates.
	mayResize         bool
	inLine            bool // the client's stream is joined in the middle of a line
	ignoreLabelSet    bool
	rewrittenLabelSet bool
	reported          uint16 // a bit for every Reason of which an event was emitted

	expected uint32 // data connections
	refused  uint32 // endpoints that were refused, or failed
	last     Last

	number       uint32 // in the table; 0: it has none
	newer, older uint32
}

// reads reports whether the connection's lines are read.
func (c *connection) reads() bool { return c.control.State() == ftp.Reading }

// edits returns the number of edits that the receivers may not have yet.
func (c *connection) edits() int {
	return c.streams[expect.Original].Edits() + c.streams[expect.Reply].Edits()
}

// retryAfter is for how long packets pass unread before conntrack is asked again for a connection that it
// did not know.
const retryAfter = time.Second

// find returns the connection of the packet and the packet's direction, and nil for a packet of
// which nothing is known. The first packet of a connection is looked up in conntrack.
func (e *Engine) find() (*connection, expect.Direction) {
	c, dir := e.tracked()
	known := c != nil && !c.unknown
	if c != nil && c.unknown {
		if wait := time.Duration(c.retry - e.config.Now().UnixNano()); 0 < wait && wait <= retryAfter { // the clock may have been set
			return nil, 0
		}
	}
	if known && e.belongs(c, dir) {
		return c, dir
	}
	key := e.key()
	m, dir, err := e.config.Conntrack.Lookup(key)
	if err == nil && known {
		if e.readjusted(c, m, dir.Other()) {
			return c, dir.Other()
		}
		if c.control.Recognised() && labelled(m.Label, e.mode().labels.Recognised) && m.Tuples == c.master.Tuples {
			// A new connection has no such label, so this packet is no reason to forget where the lines begin.
			return nil, 0
		}
	}
	if c != nil {
		e.drop(c)
	}
	if err != nil {
		unknown := expect.Master{Tuples: [2]expect.Tuple{{Src: key.Dst, Dst: key.Src}, key}}
		e.emit(Event{Kind: Unknown, Master: &unknown, Err: err, Again: e.stats.Unknown > 0})
		if errors.Is(err, expect.ErrNoEntry) {
			e.track(connection{master: unknown, unknown: true, retry: e.config.Now().Add(retryAfter).UnixNano()})
		}
		return nil, 0
	}
	e.emit(Event{Kind: Tracked, Master: m})
	return e.track(e.newConnection(m)), dir.Other()
}

// open begins a connection with the server's SYN-ACK, which has both initial sequence numbers: that
// connection is seen from its beginning. Conntrack has to say that the handshake is under way, since a
// server can send a SYN-ACK at any time.
func (e *Engine) open() {
	c, dir := e.tracked()
	server := e.pkt.Seq().Add(1)
	client, _ := e.pkt.Ack()
	if c != nil && dir == expect.Reply && c.streams[expect.Reply].OpenedAt(server) && c.streams[expect.Original].OpenedAt(client) {
		return // a retransmission
	}
	m, dir, err := e.config.Conntrack.Lookup(e.key())
	if err != nil || dir != expect.Original || !m.Opening {
		return
	}
	opened := e.newConnection(m)
	opened.control = ftp.Open()
	opened.streams[expect.Reply].Open(server)
	opened.streams[expect.Original].Open(client)
	e.emit(Event{Kind: Tracked, Master: m})
	c = e.track(opened)
	if l := e.mode().labels.Recognised; labelled(m.Label, l) {
		// Conntrack has not seen the end of an earlier connection, and has kept its entry (TCP_CONNTRACK_IGNORE in
		// net/netfilter/nf_conntrack_proto_tcp.c).
		e.setLabel(c, expect.Update{ClearLabel: l})
	}
}

// newConnection returns a connection that conntrack has, and whose first lines were missed.
func (e *Engine) newConnection(m *expect.Master) connection {
	c := connection{master: *m, mayResize: m.NAT()}
	for d := range c.streams {
		c.streams[d].Resume(m.SeqAdj[d].After)
	}
	l := e.mode().labels
	switch {
	case labelled(m.Label, l.Recognised):
		c.control, c.inLine = ftp.Resume(), labelled(m.Label, l.InLine)
	case e.mode().monitor || labelled(m.Label, l.Proxied):
		// Where the SYN-ACK is not queued, the client's first line that arrives is taken for the beginning.
		c.control = ftp.Open()
	}
	if labelled(m.Label, l.Ignore) {
		c.ignoreLabelSet = true
		c.control.Ignore()
	}
	return c
}

// readjusted reports whether the packet belongs to the connection after all, with the sequence adjustment that
// its entry has now. SYNPROXY sets one after the SYN-ACK has passed, before any line does.
func (e *Engine) readjusted(c *connection, m *expect.Master, dir expect.Direction) bool {
	if m.Tuples != c.master.Tuples || m.SeqAdj == c.master.SeqAdj || c.edits() > 0 {
		return false
	}
	before := c.master.SeqAdj
	resume := func(adj [2]expect.SeqAdj) {
		c.master.SeqAdj = adj
		for d := range c.streams {
			c.streams[d].Resume(adj[d].After)
		}
	}
	resume(m.SeqAdj)
	if !e.belongs(c, dir) {
		resume(before)
		return false
	}
	c.master.SeqAdjWorks = m.SeqAdjWorks
	return true
}

// belongs reports whether the packet's numbers are near those of the connection, rather than those of
// another one between the same ports.
func (e *Engine) belongs(c *connection, dir expect.Direction) bool {
	peer := &c.streams[dir.Other()]
	ack, ok := e.pkt.Ack()
	return c.streams[dir].Near(e.pkt.Seq()) && (!ok || peer.Near(peer.ToSender(ack)))
}

// key returns the tuple of the other direction: the reverse of a packet that NAT has translated is
// what the packets of the other direction look like where they enter this host.
func (e *Engine) key() expect.Tuple { return expect.Tuple{Src: e.pkt.Dst(), Dst: e.pkt.Src()} }

// tracked returns the connection of the packet, if it is tracked, and the packet's direction.
func (e *Engine) tracked() (*connection, expect.Direction) {
	c, dir := e.table.use(e.key())
	return c, dir.Other()
}

// maxDrops is how many connections are evicted for a new one, if there are more than there may be by now:
// packets wait meanwhile.
const maxDrops = 16

// track adds a connection. The least recently used is evicted if need be,
// and so is one that has the same tuples: it is over.
func (e *Engine) track(c connection) *connection {
	for n := 0; e.table.count >= e.table.max && n < maxDrops; n++ {
		oldest := e.table.at(e.table.oldest)
		e.leaveInLine(oldest)
		e.drop(oldest)
	}
	for _, key := range c.master.Tuples {
		if stale, _ := e.table.lookup(key); stale != nil {
			e.drop(stale)
		}
	}
	return e.table.add(c)
}

// leaveInLine labels a recognised connection that is forgotten in the middle of a line, or in a gap: when it is looked up
// again, its next segment is not the beginning of a line.
func (e *Engine) leaveInLine(c *connection) {
	l, s := e.mode().labels.InLine, &c.streams[expect.Original]
	if l != 0 && c.control.Recognised() && (s.InLine() || len(s.Held()) > 0) && !c.inLine {
		e.setLabel(c, expect.Update{SetLabel: l})
	}
}

// endLine takes note of the end of a line in whose middle the client's stream was joined.
func (e *Engine) endLine(c *connection) {
	if c.inLine {
		c.inLine = false
		e.setLabel(c, expect.Update{ClearLabel: e.mode().labels.InLine})
	}
}

// drop forgets a connection. None of its packets stays held.
func (e *Engine) drop(c *connection) {
	e.releaseAll(c, expect.Original)
	e.releaseAll(c, expect.Reply)
	e.table.remove(c)
}

// join begins a stream with a packet of a connection that was not seen from its beginning.
func (e *Engine) join(c *connection, dir expect.Direction) {
	s := &c.streams[dir]
	s.Join(e.pkt.Seq(), !c.inLine || dir == expect.Reply)
	// Where the kernel adjusts already, segments up to its last change are left to it.
	if adj := c.master.SeqAdj[dir]; adj.Before != adj.After {
		s.LeaveBefore(mangle.Seq(adj.Position).Add(1))
	}
}
