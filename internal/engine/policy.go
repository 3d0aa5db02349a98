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
	DefaultRate    = 10_000 // programs that mean well come to several thousand
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

// Reason is why an announced endpoint is not opened. Its line is let go as it is.
type Reason uint8

// The reasons, in the order in which they are looked for.
const (
	allowed      Reason = iota
	Unasked             // a 227 or 229 without a PASV or EPSV
	NotGreeted          // a PORT or EPRT before the server has greeted
	Midstream           // a PORT or EPRT where no line may begin
	AfterEPSVALL        // a PORT or EPRT after EPSV ALL
	NotPeer             // somebody else's address
	LowPort             // a port below Policy.MinPort
	TooMany             // more than Policy.Rate
	failed              // allowed, but the kernel did not do it
)

var reasonTexts = [...]struct{ label, text string }{
	allowed:      {"allowed", "allowed"},
	Unasked:      {"unasked", "no PASV or EPSV asked for it"},
	NotGreeted:   {"not_greeted", "the server has not greeted yet"},
	Midstream:    {"midstream", "it is not certain that a line begins there: the connection was not seen from its beginning"},
	AfterEPSVALL: {"after_epsv_all", "the client has promised to use nothing but EPSV (EPSV ALL)"},
	NotPeer:      {"not_peer", "the address is not that of the one who announces it"},
	LowPort:      {"low_port", "the port is below the lowest one allowed"},
	TooMany:      {"too_many", "too many data connections have been announced for this client within a second"},
	failed:       {"failed", "conntrack or the rewrite refused it"},
}

// String returns the reason as part of a sentence.
func (r Reason) String() string { return reasonTexts[r].text }

// Label returns the reason as one word.
func (r Reason) Label() string { return reasonTexts[r].label }

// Reasons returns all reasons for which an endpoint is refused.
func Reasons() []Reason {
	return []Reason{Unasked, NotGreeted, Midstream, AfterEPSVALL, NotPeer, LowPort, TooMany}
}

// judge decides whether the endpoint that is announced may be opened: RFC 2577 on bounce attacks, RFC 2428 section 4 on EPSV ALL, and that the line is
// what it seems to be.
func (e *Engine) judge(f *flow, a announcement) Reason {
	switch {
	case !a.asked:
		return Unasked
	case a.dir == expect.Original && !f.greeted:
		return NotGreeted
	case a.dir == expect.Original && f.sides[a.dir].midstream:
		return Midstream
	case a.dir == expect.Original && f.epsvAll:
		return AfterEPSVALL
	case !e.vouches(f, a.dir, a.at.Addr()) && !e.config.Policy.allows(a.at.Addr()):
		return NotPeer
	case a.at.Port() < e.config.Policy.MinPort:
		return LowPort
	case !e.rate.allow(f.master.Client().Addr(), e.config.Now().Unix(), e.config.Policy.Rate):
		return TooMany
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
