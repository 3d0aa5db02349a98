package explain

import (
	"net/netip"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect/memory"
)

// Expectation is a data connection that the helper would have had conntrack expect.
type Expectation struct {
	*memory.Expectation
	connection *Connection
	line       *Line        // that announced it
	fulfilled  *Data        // the data connection that came
	missed     bool         // one came that was meant for it
	blocker    *Expectation // that has the port which the line announced
}

// expected returns what the line has made conntrack expect: what was installed last.
func (r *replay) expected(c *Connection, l *Line) *Expectation {
	installed := r.conntrack.Active[len(r.conntrack.Active)-1]
	x := &Expectation{Expectation: installed, connection: c, line: l}
	x.blocker = r.expectations[r.conntrack.Blocker(x.WithPort(x.Port))]
	r.expectations[installed] = x
	return x
}

// fulfil returns the expectation that a new connection matches and uses up, nil if there is none.
func (r *replay) fulfil(t expect.Tuple) *Expectation {
	return r.expectations[r.conntrack.Use(func(installed *memory.Expectation) bool {
		x := r.expectations[installed]
		src, dst := x.Src, x.Dst
		if x.connection.source == natTold && x.connection.side != x.Dir {
			src, dst = x.translated() // the capture is of the side that it goes to
		}
		return src == t.Src.Addr() && dst == t.Dst
	})]
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
