package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect/memory"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

// Data is a data connection that was captured, whether it was expected or not.
type Data struct {
	at         time.Duration
	connection *Connection
	tuple      expect.Tuple // of its first packet, as it was seen first
	behind     expect.Tuple // as it was seen behind NAT, zero if it was not
	place      place
	left       bool // it was seen to go out as well
	tries      int  // how many times it was asked for
	accepted   bool
	refused    bool
	active     bool // the server opens it
	x          *Expectation
	diagnosis  string // why it was not expected
	mend       string
}

// opening is what NAT leaves alone of the SYN of a connection.
type opening struct {
	isn  mangle.Seq
	port uint16 // one of the two that it does not translate
	side bool   // it is the destination's
}

// open takes a packet with SYN or RST that is of no control connection.
func (r *replay) open(p *packet) {
	t := p.tuple()
	ack, acks := p.Ack()
	if p.SYN() && !acks {
		r.asked(p, t)
		return
	}
	// What is answered is the SYN.
	back := reverse(t)
	d := r.find(opening{ack.Add(-1), back.Dst.Port(), true}, opening{ack.Add(-1), back.Src.Port(), false})
	if d == nil || !acks || back != d.tuple && back != d.behind {
		return
	}
	if p.SYN() {
		d.accepted = true
	} else if !d.accepted {
		d.refused = true
	}
}

func (r *replay) find(keys ...opening) *Data {
	for _, k := range keys {
		if d := r.seen[k]; d != nil {
			return d
		}
	}
	return nil
}

// asked takes the SYN of a connection: a new one, the same sent again, or seen behind NAT.
func (r *replay) asked(p *packet, t expect.Tuple) {
	at := p.at.Sub(r.report.start)
	keys := []opening{{p.Seq(), t.Dst.Port(), true}, {p.Seq(), t.Src.Port(), false}}
	if d := r.find(keys...); d != nil {
		switch {
		case t == d.tuple && p.place == d.place:
			d.tries++
		case t == d.tuple:
			d.left = d.left || p.place.way == out || p.place.way == anyWay && d.place.way == anyWay
		default:
			d.behind, d.left = t, true
		}
		for _, k := range keys {
			r.seen[k] = d
		}
		return
	}
	d := &Data{at: at, tuple: t, place: p.place, tries: 1}
	if x := r.fulfil(t); x != nil {
		d.x, d.connection, d.active = x, x.connection, x.Dir == expect.Reply
		x.fulfilled = d
	} else if !r.guess(d) {
		return
	}
	d.connection.data = append(d.connection.data, d)
	for _, k := range keys {
		r.seen[k] = d
	}
}

// guess finds the control connection that an unexpected connection seems to belong to: the last
// one that has begun between the same hosts.
func (r *replay) guess(d *Data) bool {
	const unprivileged, dataPort = 1024, 20
	src, dst := d.tuple.Src, d.tuple.Dst
	for _, c := range slices.Backward(r.report.Connections) {
		if c.at > d.at {
			continue
		}
		client, server := c.hosts(expect.Original), c.hosts(expect.Reply)
		passive := slices.Contains(client, src.Addr()) && (slices.Contains(server, dst.Addr()) || slices.Contains(c.elsewhere, dst.Addr()))
		active := slices.Contains(server, src.Addr()) && slices.Contains(client, dst.Addr())
		if !passive && !active || dst.Port() < unprivileged && c.announced(dst.Port(), d.at) == nil {
			continue
		}
		d.connection, d.active = c, active && (!passive || src.Port() == dataPort)
		return true
	}
	return false
}

// stopped reports whether the router did not let the connection through, as a capture of both of
// its sides has it.
func (d *Data) stopped() bool { return d.connection.forwarded && !d.left && !d.accepted }

// hosts returns the addresses of the side that sends in direction dir: its own, and the one that
// the other side knows it by.
func (c *Connection) hosts(dir expect.Direction) []netip.Addr {
	return []netip.Addr{c.tuples[dir].Src.Addr(), c.tuples[dir.Other()].Dst.Addr()}
}

// announced returns the last line before a time that announces a port, nil if there is none.
func (c *Connection) announced(port uint16, before time.Duration) *Line {
	var last *Line
	for _, lines := range c.lines {
		for _, l := range lines {
			if l.event == nil || l.event.Kind == engine.Unreadable || l.step.at > before {
				continue
			}
			if (l.event.Announced.Port() == port || l.event.Advertised.Port() == port) && (last == nil || last.step.at < l.step.at) {
				last = l
			}
		}
	}
	return last
}

// followRouter finds the expectation of a connection that goes to the port which the router's helper
// announced in place of ours.
func (d *Data) followRouter() {
	if d.x != nil {
		return
	}
	for _, x := range d.connection.expected {
		at := endpointOf(x.line.sent)
		if x.fulfilled == nil && !x.Replaced && x.line.step.at <= d.at && d.at-x.line.step.at < memory.Timeout &&
			at.Port() == d.tuple.Dst.Port() && at.Port() != x.Dst.Port() && x.Src == d.tuple.Src.Addr() && x.Dst.Addr() == d.tuple.Dst.Addr() {
			d.x, x.fulfilled = x, d
			return
		}
	}
}

// diagnose says why a connection was not expected, and what would mend it.
func (d *Data) diagnose(r *Report) {
	c, dst := d.connection, d.tuple.Dst
	if d.x != nil {
		if d.stopped() {
			d.mend = "no helper had the router expect it, or its filter does not accept what is related: run nfq-ftphelper there, and see what its doctor says"
		}
		return
	}
	l := c.announced(dst.Port(), d.at)
	switch {
	case l != nil && l.event.Kind == engine.Refused:
		d.diagnosis = fmt.Sprintf("%s announced it, and was refused: %s", l.name(), l.event.Reason.Sentence())
		d.mend = mend(l, c)
	case l != nil && l.event.Kind == engine.Failed:
		d.diagnosis = fmt.Sprintf("%s announced it, but could not be helped: %v", l.name(), l.event.Err)
	case l != nil:
		d.astray(l)
	case c.opaque != nil && c.why == engine.Encrypted && c.opaque.at <= d.at:
		d.diagnosis = fmt.Sprintf("the control connection is encrypted from %s on: no helper can read it", seconds(c.opaque.at))
		d.mend = "give the server a fixed range of passive ports, and let that range in"
	case c.opaque != nil && c.opaque.at <= d.at:
		d.diagnosis = "what is sent on the control connection is not FTP, so it is not read"
	default:
		d.diagnosis = fmt.Sprintf("no line of the control connection announces port %d", dst.Port())
		if !c.begun || r.short > 0 || c.isCut() {
			d.mend = "the capture may lack that line: begin it before the client connects, and have it keep whole packets (tcpdump -s 0)"
		} else if l := c.unreadable(d.at); l != nil {
			d.diagnosis = fmt.Sprintf("%s should have announced it, and cannot be read: %v", l.name(), l.event.Err)
		}
	}
}

// astray says why a connection misses what a line led to.
func (d *Data) astray(l *Line) {
	x, src, dst := l.x, d.tuple.Src.Addr(), d.tuple.Dst
	x.missed = true
	switch {
	case x.fulfilled != nil && x.fulfilled != d && x.fulfilled.tuple.Dst == dst:
		d.diagnosis = fmt.Sprintf("%s announced it, and another data connection had come for that already", l.name())
		d.mend = "the client has to ask for every data connection"
	case dst.Addr() != x.Dst.Addr() && dst.Addr() == l.event.Announced.Addr():
		d.diagnosis = fmt.Sprintf("it goes to the address that %s had before the helper rewrites it: no helper rewrote it on the router", l.name())
		d.mend = "run nfq-ftphelper on the router that translates, and let the control connection begin anew"
	case dst.Addr() != x.Dst.Addr():
		d.diagnosis = fmt.Sprintf("it goes to %s, and %s leads to %s", dst.Addr(), l.name(), x.Dst.Addr())
	case src != x.Src:
		d.diagnosis = fmt.Sprintf("it comes from %s, and %s lets in %s only", src, l.name(), x.Src)
		d.mend = "data connections have to come from the other end of the control connection"
	case x.Replaced:
		d.diagnosis = fmt.Sprintf("%s announced it, and a later line took its place before it came", l.name())
		d.mend = "a client must not ask for the next data connection before it has opened the last one"
	default:
		d.diagnosis = fmt.Sprintf("%s announced it, but %s is longer than an expectation lasts", l.name(), d.at-l.step.at)
	}
}

// mend says what would have a refused line allowed.
func mend(l *Line, c *Connection) string {
	at := l.event.Announced
	switch l.event.Reason {
	case engine.NotPeer:
		if l.dir == expect.Reply && c.source == natNone && !c.forwarded && at.Addr().IsPrivate() {
			return fmt.Sprintf("if that is the server's own address, behind a router that makes it %s, say so: --nat %s=%s; of another host's, --allow %s lets it",
				c.tuples[expect.Reply].Src.Addr(), at.Addr(), c.tuples[expect.Reply].Src.Addr(), at.Addr())
		}
		return fmt.Sprintf("--allow %s lets it, if that host may be trusted", at.Addr())
	case engine.LowPort:
		return fmt.Sprintf("--min-port %d lets it, if no service of that host listens there", at.Port())
	case engine.TooMany:
		return "--rate lets more"
	case engine.NoLogin:
		return "the client has to log in before it asks for a transfer"
	case engine.Midstream:
		return "the capture lacks what the client sent before its login: begin it before the client connects"
	case engine.Unasked, engine.NotGreeted:
		if !c.begun {
			return "the connection is older than the capture: begin the capture, as the helper, before the client connects"
		}
	}
	return ""
}

// name is how a line is called in a sentence.
func (l *Line) name() string {
	return fmt.Sprintf("the %s at %s", endpointVerb(l.text), seconds(l.step.at))
}

// unreadable returns the last line before a time that has no endpoint that can be read.
func (c *Connection) unreadable(before time.Duration) *Line {
	var last *Line
	for _, lines := range c.lines {
		for _, l := range lines {
			if l.event != nil && l.event.Kind == engine.Unreadable && l.step.at <= before {
				last = l
			}
		}
	}
	return last
}

// isCut reports whether the capture lacks the end of any packet.
func (c *Connection) isCut() bool {
	return slices.ContainsFunc(c.steps, func(s *Step) bool { return s.cut > 0 })
}

// seconds writes a time of the capture.
func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
