package engine

import (
	"bytes"
	"errors"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/ftp"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/stream"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// read reads what is new in a packet of the connection: every line that ends in it.
func (e *Engine) read(c *connection, dir expect.Direction, p *mangle.Packet) {
	s := &c.streams[dir]
	if !c.reads() {
		s.Discard(stream.End(p))
		return
	}
	if s.Next().Before(p.Seq()) {
		// A client can have a server repeat what looks like a reply, and choose where it is cut
		// and what gets lost (VU#328867). The line to which the missing bytes belong is not read either.
		if dir == expect.Reply {
			c.control.ReplyLost()
		} else {
			c.control.CommandLost()
		}
	}
	if dir == expect.Original && !s.Renders(p) {
		// The beginning was not the first byte: until the client answers, a server can send another SYN-ACK that acknowledges any
		// number, and conntrack does not check it.
		c.control.CommandLost()
	}
	if dir == expect.Original && s.OpenedAt(p.Seq()) && s.Next() == p.Seq() {
		if n := parse.ProxyHeader(p.Payload()); n > 0 {
			s.Restart(p.Seq().Add(n))
		}
	}
	rest := s.Push(p.Seq(), p.Payload())
	for looks := maxLooks(p); c.reads(); looks-- {
		if dir == expect.Reply && !s.InLine() {
			s.Skip(&rest, c.control.Skip(rest))
		}
		line, ok := s.Line(&rest)
		if !ok {
			break
		}
		if looks == 0 {
			c.control.GiveUp()
			e.changed(c)
			break
		}
		e.readLine(c, dir, line)
	}
	if !c.reads() {
		s.Discard(stream.End(p))
	}
}

// maxLooks returns how many lines are read of one packet. The shortest that programs send, such as "NOOP", have six bytes.
func maxLooks(p *mangle.Packet) int { return 32 + len(p.Payload())/6 }

// readLine takes a line of either side.
func (e *Engine) readLine(c *connection, dir expect.Direction, line stream.Line) {
	var m ftp.Meaning
	switch {
	case line.Tail && dir == expect.Original:
		e.endLine(c)
		m = c.control.CommandTail(line.Text)
	case line.Tail:
		m = c.control.ReplyTail(line.Text)
	case dir == expect.Original:
		m = c.control.Command(line.Text, line.Cut, c.streams[expect.Reply].InLine())
	default:
		m = c.control.Reply(line.Text, line.Cut)
	}
	if m.Recognised {
		if l := e.mode().labels.Recognised; l != 0 {
			e.setLabel(c, expect.Update{SetLabel: l})
		}
	}
	if m.Odd != nil {
		e.emit(Event{Kind: Odd, Master: &c.master, Line: trimEnd(line.Text), Err: m.Odd})
	}
	if !c.reads() {
		e.changed(c)
	}
	if m.Verb != parse.Unknown {
		e.handleAnnouncement(c, announcement{dir: dir, verb: m.Verb, line: line, endpoint: m.Endpoint, solicited: m.Solicited}, m.Err)
	}
}

// changed emits that a connection is not read any more.
func (e *Engine) changed(c *connection) {
	kind := Encrypted
	switch c.control.State() {
	case ftp.NotFTP:
		kind = NotFTP
	case ftp.Nonsense:
		kind = Nonsense
	}
	e.emit(Event{Kind: kind, Master: &c.master})
}

// setLabel changes the label of a recognised connection.
func (e *Engine) setLabel(c *connection, u expect.Update) {
	if err := e.config.Conntrack.Update(&c.master, u); err != nil && !errors.Is(err, expect.ErrNoEntry) {
		e.emit(Event{Kind: Unlabelled, Master: &c.master, Err: err})
	}
}

// setIgnoreLabel makes the rules queue nothing more of a connection that is not read any more, as soon as
// no edit is left that might have to be rendered again.
func (e *Engine) setIgnoreLabel(c *connection) {
	if c.edits() > 0 {
		return
	}
	c.ignoreLabelSet = true
	l := e.mode().labels.Ignore
	if l == 0 {
		return
	}
	if err := e.config.Conntrack.Update(&c.master, expect.Update{SetLabel: l}); err != nil {
		e.emit(Event{Kind: StaysQueued, Master: &c.master, Err: err})
	}
}

// maxLeanEdits is how many edits of one direction are kept with the lean rules. Acknowledgements are not seen there,
// but a client does not send its next PASV before it has the answer to the last one.
const maxLeanEdits = 4

// readAlone takes a packet that the lean rules have queued. They queue few segments of a connection, and the kernel remembers
// whether the client has sent PASV or EPSV.
func (e *Engine) readAlone(c *connection, dir expect.Direction) {
	cmd, _ := parse.ParseCommand(e.pkt.Payload())
	l := e.mode().labels.Active
	active := dir == expect.Original && l != 0 && (cmd.Verb.Announces() || c.master.Label(l)) // or left over by a PORT that passed unread
	if active {
		c.master.Apply(expect.Update{SetLabel: l}) // as the rules did
	}
	e.readSegment(c, dir)
	if active && c.master.Label(l) {
		e.setLabel(c, expect.Update{ClearLabel: l})
	}
}

// readSegment reads the packet as if a line began there, unless it is a retransmission. A line that announces an endpoint need
// not have its end, which may be in the next segment: that one is not queued.
func (e *Engine) readSegment(c *connection, dir expect.Direction) {
	s := &c.streams[dir]
	if !s.Begun() {
		e.join(c, dir)
	}
	if e.retransmitted || !s.Next().Before(stream.End(&e.pkt)) || !c.reads() {
		return
	}
	// Of the server, the rules queue nothing but a 234 unless a 227 or 229 is due.
	c.control.ReadAlone(dir == expect.Reply && !bytes.HasPrefix(e.pkt.Payload(), []byte("234")))
	if s.Next().Before(e.pkt.Seq()) {
		s.Restart(e.pkt.Seq())
	}
	e.read(c, dir, &e.pkt)
	if line := s.Unfinished(); announces(line.Text) {
		e.readLine(c, dir, line)
		s.Restart(stream.End(&e.pkt))
	}
}

// announces reports whether an unfinished line announces an endpoint, and something follows it.
func announces(part []byte) bool {
	cmd, _ := parse.ParseCommand(part)
	reply, _ := parse.ParseReply(part)
	return cmd.Endpoint.IsValid() && cmd.Endpoint.Span.End < len(part) || reply.Endpoint.IsValid() && reply.Endpoint.Span.End < len(part)
}
