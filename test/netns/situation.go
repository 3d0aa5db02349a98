package netns

import (
	"fmt"
	"net/netip"
)

// Family is an address family.
type Family int

// The address families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both.
var Families = []Family{IPv4, IPv6}

func (f Family) String() string { return fmt.Sprintf("IPv%d", int(f)) }

// Verbs are those with which a data connection can be arranged in this family:
// PORT and PASV have room for an IPv4 address only.
func (f Family) Verbs() []Verb {
	if f == IPv6 {
		return []Verb{EPRT, EPSV}
	}
	return Verbs
}

// Situation says where there is NAT between the client and the server. Every
// router filters statefully, with or without NAT.
type Situation int

// The situations.
const (
	// Routed has one router and no NAT.
	Routed Situation = iota
	// DNAT has the server behind its router's public address.
	DNAT
	// SNAT has the client behind its router, which masquerades.
	SNAT
	// DNATMasquerade has the server behind its router, which also masquerades
	// what it sends to the server. The server has no default route.
	DNATMasquerade
	// TwoRouters has the client behind one router, which masquerades, and the
	// server behind another one's public address.
	TwoRouters
)

// Situations lists them all.
var Situations = []Situation{Routed, DNAT, SNAT, DNATMasquerade, TwoRouters}

func (s Situation) String() string {
	switch s {
	case Routed:
		return "Routed"
	case DNAT:
		return "DNAT"
	case SNAT:
		return "SNAT"
	case DNATMasquerade:
		return "DNAT+masquerade"
	case TwoRouters:
		return "TwoRouters"
	}
	return fmt.Sprintf("Situation(%d)", int(s))
}

func (s Situation) translatesServer() bool {
	return s == DNAT || s == DNATMasquerade || s == TwoRouters
}

func (s Situation) masqueradesClient() bool { return s == SNAT || s == TwoRouters }

// Addresses are those of a lab, each with the length of its network.
type Addresses struct {
	// Client is the client's address, ClientGateway that of its router.
	Client, ClientGateway netip.Prefix
	// ClientOuter and ServerOuter are the addresses of the client's and the
	// server's router on the network between them, if there are two.
	ClientOuter, ServerOuter netip.Prefix
	// Server is the server's address, ServerGateway that of its router.
	Server, ServerGateway netip.Prefix
	// Public is the address of the server's router at which clients reach the
	// server; not used where the server's own address is public.
	Public netip.Addr
}

// DefaultAddresses are the addresses of a situation's lab where nothing else is
// asked for.
func DefaultAddresses(s Situation, f Family) Addresses {
	prefix := netip.MustParsePrefix
	var a Addresses
	if f == IPv6 {
		a = Addresses{
			Client:        prefix("2001:db8:113::101/64"),
			ClientGateway: prefix("2001:db8:113::1/64"),
			Server:        prefix("2001:db8:100::2/64"),
			ServerGateway: prefix("2001:db8:100::1/64"),
			Public:        netip.MustParseAddr("2001:db8:2::2"),
		}
		if s.translatesServer() {
			a.Server, a.ServerGateway = prefix("fd00:1::2/64"), prefix("fd00:1::1/64")
		}
		if s.masqueradesClient() {
			a.Client, a.ClientGateway = prefix("fd00:2::2/64"), prefix("fd00:2::1/64")
		}
		a.ClientOuter, a.ServerOuter = prefix("2001:db8:113::101/64"), prefix("2001:db8:113::1/64")
		return a
	}
	a = Addresses{
		Client:        prefix("203.0.113.101/24"),
		ClientGateway: prefix("203.0.113.1/24"),
		Server:        prefix("198.51.100.2/24"),
		ServerGateway: prefix("198.51.100.1/24"),
		Public:        netip.MustParseAddr("192.0.2.2"),
	}
	if s.translatesServer() {
		a.Server, a.ServerGateway = prefix("192.168.1.2/24"), prefix("192.168.1.1/24")
	}
	if s.masqueradesClient() {
		a.Client, a.ClientGateway = prefix("192.168.2.2/24"), prefix("192.168.2.1/24")
	}
	a.ClientOuter, a.ServerOuter = prefix("203.0.113.101/24"), prefix("203.0.113.1/24")
	return a
}
