package engine

import (
	"net/netip"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// reason is why an announced endpoint is not opened. Its line is let go as it is.
type reason uint8

const (
	allowed reason = iota
	notPeer
	lowPort
	unpaired
	notGreeted
	inMidstream
	afterEPSVALL
	failed // allowed, but the kernel did not do it
)

var reasonTexts = [...]string{
	allowed:      "allowed",
	notPeer:      "the address is not that of the one who announces it",
	lowPort:      "the port is below the lowest one allowed",
	unpaired:     "no PASV or EPSV asked for it",
	notGreeted:   "the server has not greeted yet",
	inMidstream:  "it is not certain that a line begins there: the connection was not seen from its beginning",
	afterEPSVALL: "the client has promised to use nothing but EPSV (EPSV ALL)",
	failed:       "failed",
}

// String returns the reason as part of a sentence.
func (r reason) String() string { return reasonTexts[r] }

// judge decides whether an endpoint that the side sending in direction dir announces may be
// opened: RFC 2577 on bounce attacks, RFC 2428 section 4 on EPSV ALL, and that the line is
// what it seems to be.
func (e *Engine) judge(f *flow, dir expect.Direction, announced netip.AddrPort) reason {
	switch {
	case dir == expect.Reply && f.passive == 0:
		return unpaired
	case dir == expect.Original && !f.greeted:
		return notGreeted
	case dir == expect.Original && f.sides[dir].midstream:
		return inMidstream
	case dir == expect.Original && f.epsvAll:
		return afterEPSVALL
	case !f.master.Vouches(dir, announced.Addr()):
		return notPeer
	case announced.Port() < e.minPort:
		return lowPort
	}
	return allowed
}
