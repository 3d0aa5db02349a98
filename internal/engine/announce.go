package engine

import (
	"bytes"
	"errors"
	"net/netip"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/stream"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// announcement is a line in which one side announces where it listens.
type announcement struct {
	dir       expect.Direction
	verb      parse.Verb
	line      stream.Line
	endpoint  parse.Endpoint
	at        netip.AddrPort // the endpoint, with the side's own address if it has none
	solicited bool           // it answers PASV or EPSV, or need not
}

// handleAnnouncement takes an announcement, or, with an error, what should have been one. If the endpoint
// may be opened, conntrack is to expect the data connection, and the line is rewritten so that
// the other side connects to the right place.
func (e *Engine) handleAnnouncement(c *connection, a announcement, err error) {
	ev := Event{Kind: Unreadable, Master: &c.master, Verb: a.verb, Line: trimEnd(a.line.Text), Err: err}
	if err != nil {
		ev.Again = c.again(unreadable)
		e.emit(ev)
		return
	}
	a.at = netip.AddrPortFrom(a.endpoint.Addr, a.endpoint.Port)
	if !a.at.Addr().IsValid() {
		a.at = netip.AddrPortFrom(c.master.Tuples[a.dir].Src.Addr(), a.at.Port())
	}
	e.stats.Endpoints[a.verb]++
	c.last = Last{Verb: a.verb, Announced: a.at.Port()}
	ev.Announced = a.at
	if r := e.checkPolicy(c, a); r != allowed {
		e.stats.Refused[r]++
		c.refused++
		c.last.Reason = r
		ev.Kind, ev.Reason, ev.Again = Refused, r, c.again(r)
		e.emit(ev)
		return
	}
	x := expect.For(&c.master, a.dir, a.at.Port())
	if !e.isOwnAddress(c, a.dir, a.at.Addr()) {
		x = expect.ForAddress(&c.master, a.dir, a.at)
	}
	install := e.install
	if e.mode().monitor {
		install = e.wouldInstall
	}
	err = install(c, a, x)
	for try := 1; errors.Is(err, expect.ErrPortTaken) && x.NAT && try < expect.MaxTries; try++ {
		x = x.WithAnyPort()
		err = install(c, a, x)
	}
	if err != nil {
		e.stats.Failed++
		c.refused++
		c.last.Reason = failed
		ev.Kind, ev.Err, ev.Again = Failed, err, c.again(failed)
		e.emit(ev)
		return
	}
	ev.Kind, ev.Advertised, ev.Expected = Expected, e.advertisedAs(c, a, x), x.Dst
	if e.mode().monitor {
		e.stats.WouldOpen++
		ev.Kind = WouldOpen
	} else {
		e.stats.Expectations++
	}
	c.expected++
	c.last.Advertised = ev.Advertised.Port()
	e.emit(ev)
}

// install has x expected and the line rewritten accordingly, both or neither.
func (e *Engine) install(c *connection, a announcement, x expect.Expectation) error {
	s := &c.streams[a.dir]
	if e.mode().lean {
		s.TrimEdits(maxLeanEdits - 1)
	}
	for {
		edits := s.Edits()
		resized, err := e.rewrite(s, a, e.advertisedAs(c, a, x), c.mayResize)
		if err != nil {
			return err
		}
		rewritten := s.Edits() > edits
		u := e.update(c, a, rewritten, resized)
		if err = e.config.Conntrack.Announce(&c.master, x, u); err == nil {
			c.rewrittenLabelSet = c.rewrittenLabelSet || u.SetLabel != 0
			if rewritten {
				e.stats.Edits++
			}
			return nil
		}
		if rewritten {
			s.DropLastEdit()
		}
		if !errors.Is(err, expect.ErrNoSeqAdj) || !c.mayResize {
			return err
		}
		c.mayResize = false
	}
}

// wouldInstall returns the error that install would return before it calls conntrack: the line cannot be
// rewritten. It changes nothing.
func (e *Engine) wouldInstall(c *connection, a announcement, x expect.Expectation) error {
	var s stream.Stream
	s.Open(a.line.Seq)
	_, err := e.rewrite(&s, a, e.advertisedAs(c, a, x), c.mayResize)
	return err
}

// update returns what conntrack has to know of the line, which was rewritten, and changed its length,
// or not.
func (e *Engine) update(c *connection, a announcement, rewritten, resized bool) expect.Update {
	var u expect.Update
	if resized {
		adjustment := c.streams[a.dir].Adjustment
		if e.mode().lean { // no acknowledgements are seen, and what lies between two edits is not rendered
			adjustment = c.streams[a.dir].LastAdjustment
		}
		position, before, after := adjustment()
		e.adjust = expect.SeqAdj{Position: uint32(position), Before: before, After: after}
		u.Dir, u.Adjust = a.dir, &e.adjust
	}
	switch l := e.mode().labels; {
	case !e.mode().lean:
	case a.dir == expect.Original:
		u.ClearLabel = l.Active
	default:
		c.master.Apply(expect.Update{SetLabel: l.ReplyDue}) // as the rules did when the client sent PASV
		u.ClearLabel = l.ReplyDue
		if rewritten && !c.rewrittenLabelSet {
			u.SetLabel = l.Rewritten
		}
	}
	return u
}

// trimEnd returns a line without its end.
func trimEnd(line []byte) []byte { return bytes.TrimRight(line, "\r\n") }
