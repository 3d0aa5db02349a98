package rules

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// pptp is a helper for IPv4 only.
const pptp = "pptp"

// Carriers are helpers of the kernel for Config.Helper that do nothing to FTP, in order of
// preference. Expectations have 300 s with each.
//
// "sane" (nf_conntrack_sane.c) is for IPv4 and IPv6, allows one expectation at a time as FTP's own
// helper does, and reacts only to a request of 8 binary bytes, which the rules drop: the server's answer
// to it names a port, any port, and the helper would expect a connection to that.
//
// "pptp" (nf_conntrack_pptp.c) is for IPv4 only: connections over IPv6 get no helper. It allows two
// expectations, and lets pass whatever does not begin with the binary header of a PPTP control
// message. When a connection ends, its destroy callback also removes the entry of a GRE tunnel that
// is not PPTP's, if there is one between the same two addresses.
var Carriers = []string{"sane", pptp}

// ProbeCarrier asks the kernel for a conntrack helper, as ProbeStatement does for the statement.
// For a name that is not in Carriers the kernel loads what module it has.
func ProbeCarrier(name string, opts ...nftables.ConnOption) error {
	err := probeHelper(name, opts)
	if errors.Is(err, unix.ENOENT) {
		err = missingHelper(name, err)
	}
	return explain(fmt.Sprintf("trying the helper %q", name), err)
}
