// Package conntracktest is a fake of conntrack for tests of the engine: it knows the
// connections that it is told, keeps expectations as the kernel does, one per control
// connection, and adjusts sequence numbers by the kernel's rule.
package conntracktest

import (
	"slices"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// Conntrack implements engine.Conntrack.
type Conntrack struct {
	// Lookups counts the calls of Lookup, Adjustments the adjustments that were taken.
	Lookups, Adjustments int
	// Installed are all expectations ever installed, in order; Active those that are still
	// there.
	Installed, Active []expect.Expectation

	entries []*Entry
}

// Entry is one connection.
type Entry struct {
	expect.Master
	// NoSeqAdj makes the entry one without the sequence adjustment extension.
	NoSeqAdj bool
	// Deleted makes the connection one that is not there.
	Deleted bool
}

// Add makes c know a connection by its two tuples. Its helper is "sane" until changed.
func (c *Conntrack) Add(original, reply expect.Tuple) *Entry {
	e := &Entry{Master: expect.Master{Tuples: [2]expect.Tuple{original, reply}, Helper: "sane"}}
	c.entries = append(c.entries, e)
	return e
}

func (c *Conntrack) entry(t expect.Tuple) (*Entry, expect.Direction) {
	for _, e := range c.entries {
		if i := slices.Index(e.Tuples[:], t); i >= 0 && !e.Deleted {
			return e, expect.Direction(i)
		}
	}
	return nil, 0
}

// Lookup is as that of expect.Client.
func (c *Conntrack) Lookup(t expect.Tuple) (*expect.Master, expect.Direction, error) {
	c.Lookups++
	e, dir := c.entry(t)
	if e == nil {
		return nil, 0, expect.ErrNoEntry
	}
	m := e.Master
	return &m, dir, nil
}

// Announce is as that of expect.Client.
func (c *Conntrack) Announce(m *expect.Master, x expect.Expectation, u expect.Update) error {
	e, _ := c.entry(m.Tuples[expect.Original])
	switch {
	case e == nil:
		return expect.ErrNoEntry
	case e.Helper == "":
		return expect.ErrNoHelper
	case slices.ContainsFunc(c.Active, func(o expect.Expectation) bool {
		return o.Src == x.Src && o.Dst == x.Dst && o.Master != x.Master
	}):
		return expect.ErrPortTaken
	}
	if err := c.Update(m, u); err != nil {
		return err
	}
	c.Active = slices.DeleteFunc(c.Active, func(o expect.Expectation) bool { return o.Master == x.Master })
	c.Active = append(c.Active, x)
	c.Installed = append(c.Installed, x)
	return nil
}

// Update is as that of expect.Client.
func (c *Conntrack) Update(m *expect.Master, u expect.Update) error {
	e, _ := c.entry(m.Tuples[expect.Original])
	switch {
	case e == nil:
		return expect.ErrNoEntry
	case u.Adjust != nil && e.NoSeqAdj:
		return expect.ErrNoSeqAdj
	}
	if u.Adjust != nil {
		c.Adjustments++
	}
	m.Apply(u)
	e.Apply(u)
	return nil
}

// Seq returns the sequence number that the kernel gives a packet of direction dir whose own is
// seq (nf_ct_seq_adjust of net/netfilter/nf_conntrack_seqadj.c).
func (e *Entry) Seq(dir expect.Direction, seq uint32) uint32 {
	return seq + uint32(e.SeqAdj[dir].Offset(seq))
}

// Ack returns the acknowledgement number that the kernel gives a packet of direction dir whose
// own is ack.
func (e *Entry) Ack(dir expect.Direction, ack uint32) uint32 {
	a := e.SeqAdj[dir.Other()]
	return ack - uint32(a.Offset(ack-uint32(a.Before)))
}

// Invalid reports whether the kernel would call a packet of direction dir invalid for what it
// acknowledges, if all that the other side has sent ends before end, in that side's own numbers:
// the upper bound of tcp_in_window (net/netfilter/nf_conntrack_proto_tcp.c), which looks the
// offset up by the number that stands in the packet.
func (e *Entry) Invalid(dir expect.Direction, ack, end uint32) bool {
	return int32(end-(ack-uint32(e.SeqAdj[dir.Other()].Offset(ack-1)))) < 0
}
