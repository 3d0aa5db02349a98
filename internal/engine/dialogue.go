package engine

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// read takes what is new in a packet of the flow: every line that ends in it.
func (e *Engine) read(f *flow, dir expect.Direction, p *mangle.Packet) {
	s := &f.sides[dir]
	if f.opaque {
		if s.stream.Expected().Before(end(p)) {
			s.stream.Start(end(p), false)
		}
		return
	}
	s.stream.Push(p.Seq(), p.Payload())
	for !f.opaque {
		line, ok := s.stream.Next()
		if !ok {
			break
		}
		if dir == expect.Original {
			e.command(f, line)
		} else {
			e.reply(f, line)
		}
		s.midstream = false
	}
}

// start begins a stream with the packet. A connection is seen from its beginning if its first
// packet is the server's greeting, which also tells where the client's stream begins.
func (e *Engine) start(f *flow, dir expect.Direction) {
	s, peer := &f.sides[dir], &f.sides[dir.Other()]
	s.begin(e.pkt.Seq())
	s.midstream = true
	if dir == expect.Reply && !peer.started && isGreeting(e.pkt.Payload()) {
		s.midstream = false
		peer.begin(e.pkt.Ack())
	}
}

func (s *side) begin(seq parse.Seq) {
	s.started = true
	s.begun, s.gone = seq, seq
	s.stream.Start(seq, true)
}

// isGreeting reports whether what a server sends begins as its first reply does: 220, or 120
// for a delay (RFC 959 section 5.4).
func isGreeting(payload []byte) bool {
	return bytes.HasPrefix(payload, []byte("220")) || bytes.HasPrefix(payload, []byte("120"))
}

// command takes a line from the client.
func (e *Engine) command(f *flow, line parse.Line) {
	cmd, err := parse.ParseCommand(line.Text)
	if cmd.Verb != parse.Unknown {
		f.spoken = true
	} else if !f.spoken && !f.sides[expect.Original].midstream {
		// A browser that is made to talk to port 21 begins with a line of HTTP; what it
		// uploads may hold any number of PORT commands.
		e.ignore(f)
		e.log.Info("control connection ignored: what its client says is not FTP",
			"client", f.master.Client(), "server", f.master.Server())
		return
	}
	switch cmd.Verb {
	case parse.PASV, parse.EPSV:
		f.passive = min(f.passive, maxPassive-1) + 1
	case parse.EPSVALL:
		f.epsvAll = true
	case parse.AUTH:
		f.auth = true
	case parse.PORT, parse.EPRT:
		e.announced(f, expect.Original, cmd.Verb.String(), line, cmd.Endpoint, err)
	}
}

// reply takes a line from the server.
func (e *Engine) reply(f *flow, line parse.Line) {
	r, ok, err := f.replies.Next(line.Text)
	if !ok {
		return
	}
	if r.Code < 400 {
		f.greeted = true
	}
	switch {
	case r.Code == parse.CodePassive && (r.Endpoint.IsValid() || err != nil):
		e.announced(f, expect.Reply, "227", line, r.Endpoint, err)
	case r.Code == parse.CodeExtended && (r.Endpoint.IsValid() || err != nil):
		e.announced(f, expect.Reply, "229", line, r.Endpoint, err)
	case r.Code == parse.CodeSecured && f.auth:
		e.ignore(f)
		e.log.Info("control connection is encrypted from here on, its data connections cannot be helped: give the server a fixed range of passive ports and let that in",
			"client", f.master.Client(), "server", f.master.Server())
	}
}

// ignore stops reading a connection, and the kernel from queueing it where the rules know how.
func (e *Engine) ignore(f *flow) {
	f.opaque = true
	if e.opaque == 0 {
		return
	}
	if err := e.ct.SetLabel(f.master, e.opaque); err != nil {
		e.log.Debug("connection stays queued", "client", f.master.Client(), "server", f.master.Server(), "reason", err)
	}
}

// announced takes a line in which the side that sends in direction dir announces an endpoint,
// or, with an error, fails to. If the endpoint may be opened, conntrack is told to expect the
// data connection, and the line is edited so that the other side learns where to connect to.
func (e *Engine) announced(f *flow, dir expect.Direction, verb string, line parse.Line, p parse.Endpoint, err error) {
	if err != nil {
		e.log.Debug("no endpoint in line", "client", f.master.Client(), "server", f.master.Server(),
			"verb", verb, "line", string(bytes.TrimRight(line.Text, "\r")), "reason", err)
		return
	}
	announced := netip.AddrPortFrom(p.Addr, p.Port)
	if !p.Addr.IsValid() {
		announced = netip.AddrPortFrom(f.master.Tuples[dir].Src.Addr(), p.Port)
	}
	if r := e.judge(f, dir, announced); r != allowed {
		e.stats.Refused++
		e.tell(f, r, slog.LevelWarn, "endpoint refused", "verb", verb, "announced", announced, "reason", r)
		return
	}
	if dir == expect.Reply {
		f.passive--
	}
	x := expect.For(f.master, dir, p.Port)
	if !f.master.Vouches(dir, announced.Addr()) {
		x = expect.Elsewhere(f.master, dir, announced)
	}
	x, err = e.ct.Expect(x)
	if err == nil {
		if x.Dst != announced {
			err = e.edit(f, dir, line, p, x.Dst)
		}
		if err != nil {
			err = errors.Join(err, e.ct.Unexpect(x))
		}
	}
	if err != nil {
		e.stats.Failed++
		e.tell(f, failed, slog.LevelWarn, "data connection cannot be helped", "verb", verb, "announced", announced, "reason", err)
		return
	}
	e.stats.Expectations++
	e.log.Info("data connection expected", "client", f.master.Client(), "server", f.master.Server(),
		"verb", verb, "announced", announced, "expected", x.Dst)
}

// errGone is why a line is not edited whose endpoint began in a segment that was let go.
var errGone = errors.New("the endpoint began in a segment that has been let go already")

// edit records the edit that makes the line announce to, and has the kernel adjust what
// follows. There is nothing to do where the line says so already, as a 229 does that keeps
// its port.
func (e *Engine) edit(f *flow, dir expect.Direction, line parse.Line, p parse.Endpoint, to netip.AddrPort) error {
	text := p.AppendText(make([]byte, 0, p.Span.Len()+8), to)
	if bytes.Equal(text, line.Text[p.Span.Start:p.Span.End]) {
		return nil
	}
	s := &f.sides[dir]
	at := line.Seq.Add(p.Span.Start)
	if at.Before(s.gone) {
		return errGone
	}
	edits := &s.edits
	if err := edits.Add(at, p.Span.Len(), text); err != nil {
		return err
	}
	if len(text) == p.Span.Len() {
		return nil
	}
	position, before, after := edits.Adjustment()
	err := e.ct.Adjust(f.master, dir, expect.SeqAdj{Position: uint32(position), Before: before, After: after})
	if err != nil {
		edits.Truncate(edits.Len() - 1)
	}
	return err
}

// tell logs what happened to an endpoint: once per connection and reason, and after that only
// at debug level.
func (e *Engine) tell(f *flow, r reason, level slog.Level, msg string, args ...any) {
	if f.told&(1<<r) != 0 {
		level = slog.LevelDebug
	}
	f.told |= 1 << r
	args = append([]any{"client", f.master.Client(), "server", f.master.Server()}, args...)
	e.log.Log(context.Background(), level, msg, args...)
}
