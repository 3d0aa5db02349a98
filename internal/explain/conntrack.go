package explain

import (
	"net/netip"
	"slices"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// conntrack is the kernel's, as it would have been: it knows the control connections of a
// capture, and keeps for each one expectation, for 300 seconds and one data connection, as
// nf_conntrack_sane's policy has it. It implements engine.Conntrack.
type conntrack struct {
	now     time.Time
	entries map[expect.Tuple]*entry
	active  []*Expectation
	last    *Expectation // what was announced last
	blocker *Expectation // what has the port that was asked for since then
}

// expectTimeout is how long an expectation lasts.
const expectTimeout = 300 * time.Second

type entry struct {
	expect.Master
	connection *Connection
}

// Expectation is a data connection that the helper would have had conntrack expect.
type Expectation struct {
	expect.Expectation
	at         time.Time
	connection *Connection
	line       *Line        // that announced it
	fulfilled  *Data        // the data connection that came
	missed     bool         // one came that was meant for it
	blocker    *Expectation // that has the port which the line announced
	replaced   bool         // by the next one of the connection, before any came
}

// add makes a connection known; one with the same tuples is over.
func (c *conntrack) add(conn *Connection) *entry {
	e := &entry{Master: expect.Master{Tuples: conn.tuples, Helper: "sane"}, connection: conn}
	for _, t := range conn.tuples {
		c.entries[t] = e
	}
	return e
}

// Lookup is as that of expect.Client.
func (c *conntrack) Lookup(t expect.Tuple) (*expect.Master, expect.Direction, error) {
	e := c.entries[t]
	if e == nil {
		return nil, 0, expect.ErrNoEntry
	}
	m := e.Master
	return &m, expect.Direction(slices.Index(e.Tuples[:], t)), nil
}

// Announce is as that of expect.Client.
func (c *conntrack) Announce(m *expect.Master, x expect.Expectation, u expect.Update) error {
	e := c.entries[m.Tuples[expect.Original]]
	if e == nil {
		return expect.ErrNoEntry
	}
	c.active = slices.DeleteFunc(c.active, func(o *Expectation) bool { return c.now.Sub(o.at) >= expectTimeout })
	if i := slices.IndexFunc(c.active, func(o *Expectation) bool {
		return o.Src == x.Src && o.Dst == x.Dst && o.Master != x.Master
	}); i >= 0 {
		if c.blocker == nil {
			c.blocker = c.active[i]
		}
		return expect.ErrPortTaken
	}
	if err := c.Update(m, u); err != nil {
		return err
	}
	c.active = slices.DeleteFunc(c.active, func(o *Expectation) bool {
		o.replaced = o.replaced || o.Master == x.Master
		return o.Master == x.Master
	})
	c.last = &Expectation{Expectation: x, at: c.now, connection: e.connection, blocker: c.blocker}
	c.blocker = nil
	c.active = append(c.active, c.last)
	return nil
}

// Update is as that of expect.Client. The kernel adjusts the numbers of connections that it
// translates.
func (c *conntrack) Update(m *expect.Master, u expect.Update) error {
	e := c.entries[m.Tuples[expect.Original]]
	switch {
	case e == nil:
		return expect.ErrNoEntry
	case u.Adjust != nil && !e.NAT():
		return expect.ErrNoSeqAdj
	}
	m.Apply(u)
	e.Apply(u)
	return nil
}

// fulfil finds the expectation that a new connection matches, which is gone with it.
func (c *conntrack) fulfil(t expect.Tuple, at time.Time) *Expectation {
	i := slices.IndexFunc(c.active, func(x *Expectation) bool {
		src, dst := x.Src, x.Dst
		if x.connection.source == natTold && x.connection.side != x.Dir {
			src, dst = x.translated() // the capture is of the side that it goes to
		}
		return at.Sub(x.at) < expectTimeout && src == t.Src.Addr() && dst == t.Dst
	})
	if i < 0 {
		return nil
	}
	x := c.active[i]
	c.active = slices.Delete(c.active, i, i+1)
	return x
}

// translated returns what the expected connection looks like behind NAT (nf_nat_follow_master of
// net/netfilter/nf_nat_helper.c).
func (x *Expectation) translated() (src netip.Addr, dst netip.AddrPort) {
	if !x.NAT {
		return x.Src, x.Dst
	}
	t := x.connection.tuples[x.Dir.Other()]
	return t.Dst.Addr(), netip.AddrPortFrom(t.Src.Addr(), x.Port)
}
