// Package memory is a conntrack in memory with the methods of expect.Client. It has the connections added to it,
// keeps expectations by the policy of nf_conntrack_ftp (one for each master, for 300 seconds and one data
// connection), and adjusts sequence numbers by the kernel's rule.
package memory

import (
	"fmt"
	"slices"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// Timeout is the lifetime of an expectation.
const Timeout = 300 * time.Second

// Conntrack has the methods of expect.Client that the engine uses, with the same errors. Its zero value is
// empty.
type Conntrack struct {
	// Now is the current time; the caller advances it.
	Now time.Time
	// Lookups counts the calls of Lookup, Adjustments the adjustments made.
	Lookups, Adjustments int
	// Installed are all expectations ever installed, in order.
	Installed []expect.Expectation
	// Active are those not yet used, replaced or expired, in order.
	Active []*Expectation

	entries []*Entry
}

// Entry is one connection.
type Entry struct {
	expect.Master
	// NoSeqAdj is set for an entry without the sequence adjustment extension.
	NoSeqAdj bool
	// Deleted is set for an entry that was removed.
	Deleted bool
}

// Expectation is an installed expectation.
type Expectation struct {
	expect.Expectation
	// At is when it was installed.
	At time.Time
	// Replaced is set if the master's next expectation was installed while this one was active.
	Replaced bool
}

// String returns the source and destination of the expected connection.
func (x *Expectation) String() string { return fmt.Sprintf("%s to %s", x.Src, x.Dst) }

// Add adds a connection with the helper "sane" by its two tuples. It replaces an earlier one with the same
// tuples.
func (c *Conntrack) Add(original, reply expect.Tuple) *Entry {
	e := &Entry{Master: expect.Master{Tuples: [2]expect.Tuple{original, reply}, Helper: "sane"}}
	c.entries = append(c.entries, e)
	return e
}

func (c *Conntrack) entry(t expect.Tuple) (*Entry, expect.Direction) {
	for _, e := range slices.Backward(c.entries) {
		if i := slices.Index(e.Tuples[:], t); i >= 0 && !e.Deleted {
			return e, expect.Direction(i)
		}
	}
	return nil, 0
}

// Lookup implements the method of expect.Client.
func (c *Conntrack) Lookup(t expect.Tuple) (*expect.Master, expect.Direction, error) {
	c.Lookups++
	e, dir := c.entry(t)
	if e == nil {
		return nil, 0, expect.ErrNoEntry
	}
	m := e.Master
	return &m, dir, nil
}

// Announce implements the method of expect.Client.
func (c *Conntrack) Announce(m *expect.Master, x expect.Expectation, u expect.Update) error {
	e, _ := c.entry(m.Tuples[expect.Original])
	switch {
	case e == nil:
		return expect.ErrNoEntry
	case e.Helper == "":
		return expect.ErrNoHelper
	case c.Blocker(x) != nil:
		return expect.ErrPortTaken
	}
	if err := c.Update(m, u); err != nil {
		return err
	}
	c.Active = slices.DeleteFunc(c.Active, func(o *Expectation) bool {
		o.Replaced = o.Master == x.Master
		return o.Replaced
	})
	c.Active = append(c.Active, &Expectation{Expectation: x, At: c.Now})
	c.Installed = append(c.Installed, x)
	return nil
}

// Blocker returns the active expectation of another master in the place of x, nil if there is none.
func (c *Conntrack) Blocker(x expect.Expectation) *Expectation {
	c.expire()
	i := slices.IndexFunc(c.Active, func(o *Expectation) bool { return o.Src == x.Src && o.Dst == x.Dst && o.Master != x.Master })
	if i < 0 {
		return nil
	}
	return c.Active[i]
}

// Use removes the first active expectation that match accepts, and returns it; nil if there is none.
func (c *Conntrack) Use(match func(*Expectation) bool) *Expectation {
	c.expire()
	i := slices.IndexFunc(c.Active, match)
	if i < 0 {
		return nil
	}
	x := c.Active[i]
	c.Active = slices.Delete(c.Active, i, i+1)
	return x
}

func (c *Conntrack) expire() {
	c.Active = slices.DeleteFunc(c.Active, func(x *Expectation) bool { return c.Now.Sub(x.At) >= Timeout })
}

// Update implements the method of expect.Client.
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

// Seq returns the sequence number to which the kernel adjusts seq, of a packet in direction dir (nf_ct_seq_adjust
// of net/netfilter/nf_conntrack_seqadj.c).
func (e *Entry) Seq(dir expect.Direction, seq uint32) uint32 {
	return seq + uint32(e.SeqAdj[dir].Offset(seq))
}

// Ack returns the acknowledgement number to which the kernel adjusts ack, of a packet in direction dir.
func (e *Entry) Ack(dir expect.Direction, ack uint32) uint32 {
	a := e.SeqAdj[dir.Other()]
	return ack - uint32(a.Offset(ack-uint32(a.Before)))
}

// Invalid reports whether the kernel treats a packet in direction dir as invalid because it acknowledges data
// beyond end, the end of what the peer has sent in the peer's own numbers: the upper bound of tcp_in_window
// (net/netfilter/nf_conntrack_proto_tcp.c), which looks up the offset by the number in the packet.
func (e *Entry) Invalid(dir expect.Direction, ack, end uint32) bool {
	return int32(end-(ack-uint32(e.SeqAdj[dir.Other()].Offset(ack-1)))) < 0
}
