package engine

import (
	"net/netip"
	"slices"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// Advertise is under which address clients reach the servers, where NAT happens elsewhere: in a
// cloud, at a load balancer, outside of the pod. A 227 then announces that address instead of
// the server's own, on the same port.
type Advertise struct {
	// Addr4 and Addr6 are the addresses; an invalid one changes nothing in its family.
	Addr4, Addr6 netip.Addr
	// Except are the clients that reach the servers directly. They get the servers' own address,
	// even where a server announces the other one by itself.
	Except []netip.Prefix
}

// addr returns the address in the family of the control connection, invalid if there is none.
func (a Advertise) addr(m *expect.Master) netip.Addr {
	if m.Server().Addr().Is4() {
		return a.Addr4
	}
	return a.Addr6
}

// to returns the address that the client of m is to be told instead of own.
func (a Advertise) to(m *expect.Master, own netip.Addr) netip.Addr {
	addr, client := a.addr(m), m.Client().Addr()
	if !addr.IsValid() || slices.ContainsFunc(a.Except, func(n netip.Prefix) bool { return n.Contains(client) }) {
		return own
	}
	return addr
}
