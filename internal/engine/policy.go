package engine

import (
	"net/netip"
	"slices"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// Policy says which announced endpoints may be opened. The zero Policy is the safe one.
type Policy struct {
	// MinPort is the lowest port that may be announced. 0 means DefaultMinPort.
	MinPort uint16
	// Loose allows announcements of any address, as nf_conntrack_ftp does with its parameter of
	// that name: for transfers between two servers (FXP), and for bounce attacks.
	Loose bool
	// Allowed are addresses that may be announced besides one's own.
	Allowed []netip.Prefix
	// Rate is how many data connections are expected for one client address within a second.
	// 0 means DefaultRate.
	Rate int
}

// Defaults of Policy.
const (
	DefaultMinPort = 1024
	DefaultRate    = 10_000 // honest programs reach several thousand
)

func (p Policy) withDefaults() Policy {
	if p.MinPort == 0 {
		p.MinPort = DefaultMinPort
	}
	if p.Rate == 0 {
		p.Rate = DefaultRate
	}
	return p
}

// allows reports whether an address may be announced by one who does not have it.
func (p Policy) allows(a netip.Addr) bool {
	return p.Loose || slices.ContainsFunc(p.Allowed, func(n netip.Prefix) bool { return n.Contains(a) })
}

// checkPolicy decides whether the endpoint that is announced may be opened: RFC 2577 on bounce attacks, and that the line is
// what it seems to be.
func (e *Engine) checkPolicy(c *connection, a announcement) Reason {
	client := a.dir == expect.Original
	switch {
	case !a.solicited:
		return Unasked
	case a.line.Tail || client && c.control.HeadMissed():
		return Midstream
	case client && !c.control.Greeted():
		return NotGreeted
	case client && !c.control.Recognised() && !e.mode().monitor: // which may not have seen the login
		return NoLogin
	case !e.isOwnAddress(c, a.dir, a.at.Addr()) && !e.config.Policy.allows(a.at.Addr()):
		return NotPeer
	case a.at.Port() < e.config.Policy.MinPort:
		return LowPort
	case !e.rate.allow(c.master.Client().Addr(), e.config.Now().Unix(), e.config.Policy.Rate):
		return TooMany
	}
	return allowed
}

// isOwnAddress reports whether addr is one that the side sending in direction dir may announce as its
// own.
func (e *Engine) isOwnAddress(c *connection, dir expect.Direction, addr netip.Addr) bool {
	return c.master.IsOwnAddress(dir, addr) || dir == expect.Reply && addr == e.config.Advertise.addr(&c.master)
}

// rate counts, for the second that is under way.
type rate struct {
	second int64
	counts map[netip.Addr]int
}

// allow counts one more for the address, and reports whether it is within the limit.
func (r *rate) allow(a netip.Addr, second int64, limit int) bool {
	if r.second != second || r.counts == nil {
		r.second, r.counts = second, make(map[netip.Addr]int)
	}
	if r.counts[a] >= limit {
		return false
	}
	r.counts[a]++
	return true
}
