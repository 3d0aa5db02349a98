// Package explain says of a capture (pcap, pcapng) what the helper would have done with every
// packet of its control connections: as text, as JSON, and as a ladder diagram.
//
// It has the engine that the daemon has, and a conntrack of its own in place of the kernel's. What
// NAT there was shows in a capture that has both sides of the router, since NAT keeps the numbers
// with which TCP connections begin; of any other capture, somebody has to say it.
package explain

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect/memory"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Config is what is not in the capture.
type Config struct {
	// Ports are those of control connections.
	Ports []rules.PortRange
	// NAT are the translations of a router of which the capture has one side only. It counts for
	// connections of which it has no more than that.
	NAT []Translation
	// Clients limit the report to control connections whose client has one of these addresses, before
	// NAT or after it. Without any, all connections are reported.
	Clients []netip.Prefix
	// Engine has the Policy, Advertise and HoldTime of the helper.
	Engine engine.Config
}

// Translation is the address that a client or server has, and the one that others know it by.
type Translation struct{ Real, Translated netip.Addr }

// String writes the translation as ParseTranslation reads it.
func (t Translation) String() string { return t.Real.String() + "=" + t.Translated.String() }

// Report is what the helper would have done with a capture.
type Report struct {
	// Connections are the control connections, in the order in which they begin.
	Connections []*Connection

	start   time.Time
	length  time.Duration
	packets int
	short   int  // packets without whole headers
	broken  bool // the file ends within a packet
	data    bool // there are other connections than those of the control ports
	nat     []Translation
	natUsed []bool
}

// Connection is one control connection.
type Connection struct {
	number     int
	tuples     [2]expect.Tuple
	source     natSource
	side       expect.Direction // whose side of the NAT the capture has, if it is known
	forwarded  bool             // the capture has packets as they came in and as they went out
	begun      bool             // it has the SYN
	recognised bool             // it lacks the server's SYN-ACK
	would      bool             // nothing shows a helper at work there: what ours does is said as a condition
	at         time.Duration
	steps      []*Step
	data       []*Data
	expected   []*Expectation
	elsewhere  []netip.Addr // that the server has announced
	opaque     *Step        // from which on nothing is read
	why        engine.Kind
	unread     int // packets after that
	entry      *memory.Entry

	lines [2][]*Line
	next  [2]int // the first of lines of which the engine may still have something to say
	came  [2]assembler
	ours  [2]assembler
	sends [2][]line // as the helper sends them
}

// natSource is how it is known what NAT there is.
type natSource uint8

const (
	natNone natSource = iota // nothing says that there is any
	natSeen                  // the capture has both sides
	natTold
)

// nat reports whether the connection is translated.
func (c *Connection) nat() bool { return (&expect.Master{Tuples: c.tuples}).NAT() }

// HasEndpoint reports whether a data connection is announced in the connection.
func (c *Connection) HasEndpoint() bool {
	for _, lines := range c.lines {
		for _, l := range lines {
			if l.event != nil && (l.event.Kind == engine.Expected || l.event.Kind == engine.Refused || l.event.Kind == engine.Failed) {
				return true
			}
		}
	}
	return false
}

// Step is one packet of a control connection that says something.
type Step struct {
	at     time.Duration // since the beginning of the capture
	dir    expect.Direction
	bytes  int
	again  bool    // all of it has been sent before
	gap    int     // bytes that are missing in front of it so far
	lines  []*Line // those that end in it
	part   []byte  // the line that does not
	cut    int     // bytes of it that the capture lacks
	tls    bool    // it is a record of TLS
	middle bool    // it begins with the end of a line whose beginning is not there
	held   bool
	vain   bool          // until its time was up
	left   time.Duration // when it went on
}

// Line is one line of a control connection, without its end.
type Line struct {
	text  []byte
	step  *Step
	dir   expect.Direction
	seq   mangle.Seq
	cut   int // bytes of its end that the capture lacks
	event *engine.Event
	odd   error        // what is odd about it
	x     *Expectation // that it led to
	ours  []byte       // as the helper sends it
	// sent is the line as the router really sent it, nil if the capture does not have it.
	sent []byte
}

// rewritten reports whether the helper changes the line.
func (l *Line) rewritten() bool { return l.ours != nil && string(l.ours) != string(l.text) }

// Explain reads a capture. Errors are one sentence about the file.
func Explain(r io.Reader, c Config) (*Report, error) {
	g, err := gather(r, c.Ports)
	if err != nil {
		return nil, err
	}
	report := &Report{
		start: g.start, length: g.end.Sub(g.start), packets: g.packets, short: g.short, broken: g.broken,
		nat: c.NAT, natUsed: make([]bool, len(c.NAT)),
		data: len(g.other) > 0,
	}
	p := newReplay(report, c)
	for _, s := range connections(g.control, c.Ports) {
		p.add(s)
	}
	p.run(g.other)
	report.findHelper()
	return report, report.limit(c.Clients)
}

// limit leaves only connections of the clients. It returns an error that lists the clients if none is left.
func (r *Report) limit(clients []netip.Prefix) error {
	if len(clients) == 0 {
		return nil
	}
	var left []*Connection
	var others []string
	for _, c := range r.Connections {
		if slices.ContainsFunc(c.hosts(expect.Original), func(a netip.Addr) bool {
			return slices.ContainsFunc(clients, func(p netip.Prefix) bool { return p.Contains(a) })
		}) {
			left = append(left, c)
		} else if a := c.tuples[expect.Original].Src.Addr().String(); !slices.Contains(others, a) {
			others = append(others, a)
		}
	}
	if r.Connections = left; len(left) > 0 {
		return nil
	}
	const most = 8
	if n := len(others); n > most {
		others = append(others[:most], fmt.Sprintf("%d more", n-most))
	}
	return fmt.Errorf("none of its control connections is of that client: the clients are %s", strings.Join(others, ", "))
}

// findHelper finds out for each connection whether a helper was at work on the router: it was if a line left
// with another endpoint, and was not if a line that has to be rewritten left as it came, or if a data
// connection that is announced was stopped. Where a connection shows neither, the others of the
// capture count.
func (r *Report) findHelper() {
	seen := slices.ContainsFunc(r.Connections, (*Connection).showsHelper)
	for _, c := range r.Connections {
		c.would = !c.showsHelper() && (!seen || c.showsNoHelper())
	}
}

func (c *Connection) showsHelper() bool {
	return slices.ContainsFunc(slices.Concat(c.lines[:]...), func(l *Line) bool {
		return l.event != nil && l.sent != nil && endpointOf(l.sent).Port() != 0 && endpointOf(l.sent) != endpointOf(l.text)
	})
}

func (c *Connection) showsNoHelper() bool {
	return slices.ContainsFunc(slices.Concat(c.lines[:]...), func(l *Line) bool {
		return l.rewritten() && bytes.Equal(l.sent, l.text)
	}) || slices.ContainsFunc(c.data, func(d *Data) bool { return d.x != nil && d.stopped() })
}

// ParseTranslation reads REAL=TRANSLATED, two addresses of one family.
func ParseTranslation(s string) (Translation, error) {
	before, after, _ := strings.Cut(s, "=")
	own, ownErr := netip.ParseAddr(before)
	other, otherErr := netip.ParseAddr(after)
	if ownErr != nil || otherErr != nil || own.Zone()+other.Zone() != "" {
		return Translation{}, fmt.Errorf("%q is not REAL=TRANSLATED, such as 192.168.1.2=192.0.2.2", s)
	}
	t := Translation{own.Unmap(), other.Unmap()}
	if t.Real.BitLen() != t.Translated.BitLen() {
		return Translation{}, fmt.Errorf("%s and %s are of two families", t.Real, t.Translated)
	}
	return t, nil
}
