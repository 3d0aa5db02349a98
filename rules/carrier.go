package rules

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// pptp is a helper for IPv4 only.
const pptp = "pptp"

// Carriers are the kernel's helpers that ignore FTP, for Config.Helper, in order of preference. Their expectations last
// 300 s.
//
// "sane" (nf_conntrack_sane.c) is for IPv4 and IPv6 and allows one expectation at a time, as the FTP helper does. It acts
// only on a request of 8 binary bytes, which the rules drop: it would expect a connection to any port that the server
// then answers.
//
// "pptp" (nf_conntrack_pptp.c) is for IPv4 only: connections over IPv6 get no helper. It allows two expectations, and
// ignores packets without the binary header of a PPTP control message. When a connection ends, its destroy callback
// also removes the entry of any GRE tunnel between the same two addresses.
var Carriers = []string{"sane", pptp}

// ProbeCarrier returns an error if the kernel lacks a conntrack helper. The kernel may load its module.
func ProbeCarrier(name string, opts ...nftables.ConnOption) error {
	err := probeHelper(name, opts)
	if errors.Is(err, unix.ENOENT) {
		err = missingHelper(name, err)
	}
	return explain(fmt.Sprintf("trying the helper %q", name), err)
}
