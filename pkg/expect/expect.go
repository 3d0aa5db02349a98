// Package expect announces data connections to conntrack: For computes the expectation for an announced endpoint
// of a control connection, and Client is the ctnetlink client that looks up control connections, installs
// expectations and sets the kernel's sequence adjustment.
//
// It mirrors help() of net/netfilter/nf_conntrack_ftp.c and nf_nat_ftp() of
// net/netfilter/nf_nat_ftp.c.
package expect

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

// Tuple is the source and the destination of the packets of one direction as they enter this host, before
// NAT.
type Tuple struct {
	Src, Dst netip.AddrPort
}

// Direction says which of a connection's two tuples a packet belongs to (enum
// ip_conntrack_dir). For FTP, the client is the source of the original direction.
type Direction uint8

const (
	Original Direction = iota // from the side that opened the connection
	Reply                     // to that side
)

// Other returns the opposite direction.
func (d Direction) Other() Direction { return d ^ 1 }

// String returns "original" or "reply".
func (d Direction) String() string {
	if d == Original {
		return "original"
	}
	return "reply"
}

// SeqAdj is the kernel's adjustment of the sequence numbers of one direction (struct nf_ct_seqadj): Before is
// added to numbers up to and including Position, After to later ones. Position is the sender's number, in host
// byte order.
type SeqAdj struct {
	Position      uint32
	Before, After int32
}

// Offset returns what the kernel adds to the sequence number seq (nf_ct_seq_offset of
// net/netfilter/nf_conntrack_seqadj.c).
func (a SeqAdj) Offset(seq uint32) int32 {
	if int32(a.Position-seq) < 0 {
		return a.After
	}
	return a.Before
}

// ToSender returns the sender's number that the kernel adjusts to seq: the inverse of adding Offset.
func (a SeqAdj) ToSender(seq uint32) uint32 {
	if before := seq - uint32(a.Before); int32(a.Position-before) >= 0 {
		return before
	}
	return seq - uint32(a.After)
}

// Master is the conntrack entry of a control connection.
type Master struct {
	// Tuples are those of the original and the reply direction. Without NAT, one is the other reversed.
	Tuples [2]Tuple
	// Helper is the name of the conntrack helper; without one the kernel refuses expectations.
	Helper string
	// SeqAdj are the kernel's adjustments in each direction.
	SeqAdj [2]SeqAdj
	// Labels are the bits of the conntrack label (ct label in nftables), in the kernel's order.
	Labels [16]byte

	// Opening is true in the TCP state SYN_RECV: the server has sent its SYN-ACK, the client has not acknowledged
	// it.
	Opening bool
	// SeqAdjWorks is true once the kernel has accepted an adjustment.
	SeqAdjWorks bool
	// Closing is true if a side has closed or reset the connection: its TCP state is FIN_WAIT or a later one.
	Closing bool
}

// Client returns the client's address and port on its own side of this host.
func (m *Master) Client() netip.AddrPort { return m.Tuples[Original].Src }

// Server returns the server's address and port on its own side of this host.
func (m *Master) Server() netip.AddrPort { return m.Tuples[Reply].Src }

// Label reports whether a bit of the label is set, 0 to 127.
func (m *Master) Label(bit int) bool {
	return binary.NativeEndian.Uint32(m.Labels[bit/32*4:])&(1<<(bit%32)) != 0
}

// NAT reports whether this host changes the addresses or ports of the connection.
func (m *Master) NAT() bool {
	o, r := m.Tuples[Original], m.Tuples[Reply]
	return o.Src != r.Dst || o.Dst != r.Src
}

// IsOwnAddress reports whether addr is an address of the side that sends in direction dir: on its own side of
// this host, or as the peer sees it. A data connection to any other address is an FTP bounce (RFC 2577
// section 3).
func (m *Master) IsOwnAddress(dir Direction, addr netip.Addr) bool {
	return addr == m.Tuples[dir].Src.Addr() || addr == m.Tuples[dir.Other()].Dst.Addr()
}

// Expectation is a data connection that conntrack is to accept as related to a control connection.
type Expectation struct {
	// Master is the original tuple of the control connection.
	Master Tuple
	// Src is its source address as it enters this host; any port.
	Src netip.Addr
	// Dst is its destination as it enters this host: the endpoint to advertise to the peer.
	Dst netip.AddrPort
	// NAT translates the connection as its master is, and its destination port to Port.
	NAT bool
	// Port is the port on which the announcing side listens.
	Port uint16
	// Dir is the direction of the data connection's SYN, relative to the master: Original for a passive
	// transfer.
	Dir Direction
}

// MaxTries is the number of ports to try for one expectation, as in nf_nat_exp_find_port of
// net/netfilter/nf_nat_helper.c.
const MaxTries = 128

// For returns the expectation for a side, sending in direction dir, that announces port. The peer opens a
// connection between the same addresses as its packets of the control connection, so its tuple has both,
// with any NAT.
func For(m *Master, dir Direction, port uint16) Expectation {
	peer := m.Tuples[dir.Other()]
	return Expectation{
		Master: m.Tuples[Original],
		Src:    peer.Src.Addr(),
		Dst:    netip.AddrPortFrom(peer.Dst.Addr(), port),
		NAT:    m.NAT(),
		Port:   port,
		Dir:    dir.Other(),
	}
}

// ForAddress returns the expectation for that side if it announces an address that is not its own, where the
// policy allows it: a data connection from the peer to announced, which NAT treats as any other connection.
func ForAddress(m *Master, dir Direction, announced netip.AddrPort) Expectation {
	return Expectation{
		Master: m.Tuples[Original],
		Src:    m.Tuples[dir.Other()].Src.Addr(),
		Dst:    announced,
		Port:   announced.Port(),
		Dir:    dir.Other(),
	}
}

// WithPort returns e with another destination port; Port stays the same.
func (e Expectation) WithPort(port uint16) Expectation {
	e.Dst = netip.AddrPortFrom(e.Dst.Addr(), port)
	return e
}

// WithAnyPort returns e with a random destination port from 1024 on.
func (e Expectation) WithAnyPort() Expectation {
	return e.WithPort(uint16(1024 + rand.IntN(1<<16-1024)))
}
