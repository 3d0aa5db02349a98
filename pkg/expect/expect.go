// Package expect announces data connections to conntrack: what to expect of a control
// connection and an endpoint in it (For, pure), and the ctnetlink client that looks
// control connections up, installs expectations and sets the kernel's sequence
// adjustment (Client).
//
// It mirrors help() of net/netfilter/nf_conntrack_ftp.c and nf_nat_ftp() of
// net/netfilter/nf_nat_ftp.c.
package expect

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

// Tuple is the source and the destination of the packets of one direction, as they look
// where that direction enters this host: before NAT changes them.
type Tuple struct {
	Src, Dst netip.AddrPort
}

// Direction says which of a connection's two tuples a packet belongs to (enum
// ip_conntrack_dir). For FTP, the client is the source of the original direction.
type Direction uint8

const (
	Original Direction = iota // from the one who opened the connection
	Reply                     // back to them
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

// SeqAdj is the kernel's record of by how much the sequence numbers of one direction are
// off (struct nf_ct_seqadj): numbers up to and including Position by Before, later ones by
// After. Position is the sender's own number, host order.
type SeqAdj struct {
	Position      uint32
	Before, After int32
}

// Offset returns by how much the kernel changes the sequence number seq
// (nf_ct_seq_offset of net/netfilter/nf_conntrack_seqadj.c).
func (a SeqAdj) Offset(seq uint32) int32 {
	if int32(a.Position-seq) < 0 {
		return a.After
	}
	return a.Before
}

// Undo returns the sequence number that the kernel turns into seq: the inverse of adding
// Offset.
func (a SeqAdj) Undo(seq uint32) uint32 {
	if before := seq - uint32(a.Before); int32(a.Position-before) >= 0 {
		return before
	}
	return seq - uint32(a.After)
}

// Master is a control connection as conntrack has it.
type Master struct {
	// Tuples are the tuples of the original and the reply direction. Without NAT, one is
	// the other reversed.
	Tuples [2]Tuple
	// Helper is the name of the conntrack helper that is attached; the kernel refuses
	// expectations where it is empty.
	Helper string
	// SeqAdj are the adjustments that the kernel makes already in each direction.
	SeqAdj [2]SeqAdj
	// Labels are the bits of its label (ct label in nftables), in the kernel's order.
	Labels [16]byte

	// Opening says that the TCP handshake is under way: the server has accepted the connection, and
	// the client has not answered yet.
	Opening bool
	// Adjustable says that the kernel has been seen to take an adjustment.
	Adjustable bool
	// Closing says that one end has closed or reset the connection: its TCP state is FIN_WAIT or a later one.
	Closing bool
}

// Client returns the client's address and port as they are on its own side.
func (m *Master) Client() netip.AddrPort { return m.Tuples[Original].Src }

// Server returns the server's address and port as they are on its own side.
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

// Vouches reports whether addr may be announced by the side that sends in direction dir:
// its own address, or the one that the other side knows it by. Everything else is
// somebody else's, and a data connection to it an FTP bounce (RFC 2577 section 3).
func (m *Master) Vouches(dir Direction, addr netip.Addr) bool {
	return addr == m.Tuples[dir].Src.Addr() || addr == m.Tuples[dir.Other()].Dst.Addr()
}

// Expectation is one data connection that is to be accepted as belonging to a control
// connection.
type Expectation struct {
	// Master is the original tuple of the control connection.
	Master Tuple
	// Src is the address that it comes from, as seen where it enters this host; from any
	// port.
	Src netip.Addr
	// Dst is where it goes, as seen there: what the other side has to be told.
	Dst netip.AddrPort
	// NAT says that the connection is to be translated as its master is, and its
	// destination port to Port.
	NAT bool
	// Port is the port on which the one who announced it really listens.
	Port uint16
	// Dir is the direction in which the data connection is opened, relative to the
	// master's: Original for a passive transfer.
	Dir Direction
}

// MaxTries is how many ports may be tried for one expectation: nf_nat_exp_find_port of
// net/netfilter/nf_nat_helper.c.
const MaxTries = 128

// For returns what to expect when the side that sends in direction dir announces that it
// listens on port: the other side opens a connection from where its own packets of the
// control connection come from, to the address to which it sends them. So it is that
// direction's tuple that has both addresses, whatever NAT is at work.
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

// Elsewhere returns what to expect when that side announces an address that is not its own, and
// may: a data connection from the other side to there, which is translated as any other
// connection is.
func Elsewhere(m *Master, dir Direction, announced netip.AddrPort) Expectation {
	return Expectation{
		Master: m.Tuples[Original],
		Src:    m.Tuples[dir.Other()].Src.Addr(),
		Dst:    announced,
		Port:   announced.Port(),
		Dir:    dir.Other(),
	}
}

// WithPort returns e for another destination port; what is listened on stays the same.
func (e Expectation) WithPort(port uint16) Expectation {
	e.Dst = netip.AddrPortFrom(e.Dst.Addr(), port)
	return e
}

// WithAnyPort is WithPort with a port from 1024 on, picked at random.
func (e Expectation) WithAnyPort() Expectation {
	return e.WithPort(uint16(1024 + rand.IntN(1<<16-1024)))
}
