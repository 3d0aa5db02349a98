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
	// Loose lets everybody announce any address, as nf_conntrack_ftp does with its parameter of
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
	DefaultRate    = 500
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

// reason is why an announced endpoint is not opened. Its line is let go as it is.
type reason uint8

const (
	allowed reason = iota
	notPeer
	lowPort
	unasked
	notGreeted
	inMidstream
	afterEPSVALL
	tooMany
	failed // allowed, but the kernel did not do it
)

var reasonTexts = [...]string{
	allowed:      "allowed",
	notPeer:      "the address is not that of the one who announces it",
	lowPort:      "the port is below the lowest one allowed",
	unasked:      "no PASV or EPSV asked for it",
	notGreeted:   "the server has not greeted yet",
	inMidstream:  "it is not certain that a line begins there: the connection was not seen from its beginning",
	afterEPSVALL: "the client has promised to use nothing but EPSV (EPSV ALL)",
	tooMany:      "too many data connections have been announced for this client within a second",
	failed:       "failed",
}

// String returns the reason as part of a sentence.
func (r reason) String() string { return reasonTexts[r] }

// judge decides whether the endpoint at, which is announced, may be opened: RFC 2577 on bounce attacks, RFC 2428 section 4 on EPSV ALL, and that the line is
// what it seems to be.
func (e *Engine) judge(f *flow, a announcement, at netip.AddrPort) reason {
	switch {
	case !a.asked:
		return unasked
	case a.dir == expect.Original && !f.greeted:
		return notGreeted
	case a.dir == expect.Original && f.sides[a.dir].midstream:
		return inMidstream
	case a.dir == expect.Original && f.epsvAll:
		return afterEPSVALL
	case !f.master.Vouches(a.dir, at.Addr()) && !e.policy.allows(at.Addr()):
		return notPeer
	case at.Port() < e.policy.MinPort:
		return lowPort
	case !e.rate.allow(f.master.Client().Addr(), e.now().Unix(), e.policy.Rate):
		return tooMany
	}
	return allowed
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
