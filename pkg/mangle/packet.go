// Package mangle changes packets and TCP streams. Packet is a bounds-checked view of an IP packet with TCP. Edits are
// the edits of one direction of a connection, which determine the bytes of every segment, the offset of every
// sequence number, and the kernel's sequence adjustment.
//
// It mirrors net/netfilter/nf_nat_helper.c (nf_nat_mangle_tcp_packet) and
// nf_conntrack_seqadj.c, as pure functions: no I/O, no clock.
package mangle

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Errors of Packet: why a packet cannot be changed.
var (
	// ErrTruncated is returned for a packet that is shorter than its headers say.
	ErrTruncated = errors.New("packet is truncated")
	// ErrNotTCP is returned for anything but TCP directly over IPv4 or IPv6.
	ErrNotTCP = errors.New("packet is not TCP over IPv4 or IPv6")
	// ErrFragment is returned for a part of a fragmented packet.
	ErrFragment = errors.New("packet is a fragment")
	// ErrSourceRoute is returned for an IPv6 packet with a routing header whose segments are left: the destination
	// that its TCP checksum covers is not in the IP header.
	ErrSourceRoute = errors.New("packet is source routed")
	// ErrTooLong is returned by AppendSegment for a packet whose length exceeds the IP header's length field.
	ErrTooLong = errors.New("packet would be longer than IP allows")
)

const (
	ip4Header = 20
	ip6Header = 40
	tcpHeader = 20

	protoHopByHop = 0
	protoTCP      = 6
	protoRouting  = 43
	protoFragment = 44
	protoDestOpts = 60
)

// Flags of TCP (RFC 9293 section 3.1).
const (
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4 // the acknowledgement number is valid
)

// Packet is a view of the bytes of one IPv4 or IPv6 packet with a TCP segment. It is valid as long as the bytes are.
// The zero Packet is empty; Decode may be called repeatedly on the same value.
type Packet struct {
	bytes []byte // the IP packet, without trailing bytes
	tcp   int    // offset of the TCP header
	data  int    // offset of the payload
}

// Decode makes p a view of b, which starts with an IP header. Bytes after the length in the IP header are left out. On
// an error p is empty.
func (p *Packet) Decode(b []byte) error {
	*p = Packet{}
	if len(b) == 0 {
		return ErrTruncated
	}
	var tcp, end int
	var err error
	switch b[0] >> 4 {
	case 4:
		tcp, end, err = decode4(b)
	case 6:
		tcp, end, err = decode6(b)
	default:
		err = ErrNotTCP
	}
	if err != nil {
		return err
	}
	if tcp+tcpHeader > end {
		return ErrTruncated
	}
	data := tcp + int(b[tcp+12]>>4)*4
	if data < tcp+tcpHeader || data > end {
		return ErrTruncated
	}
	*p = Packet{b[:end:end], tcp, data}
	return nil
}

// decode4 returns the offsets of TCP and of the packet's end (RFC 791 section 3.1).
func decode4(b []byte) (tcp, end int, err error) {
	if len(b) < ip4Header {
		return 0, 0, ErrTruncated
	}
	tcp = int(b[0]&0x0f) * 4
	end = int(binary.BigEndian.Uint16(b[2:]))
	if tcp < ip4Header || end < tcp || end > len(b) {
		return 0, 0, ErrTruncated
	}
	const offsetAndMF = 0x3fff
	if binary.BigEndian.Uint16(b[6:])&offsetAndMF != 0 {
		return 0, 0, ErrFragment
	}
	if b[9] != protoTCP {
		return 0, 0, ErrNotTCP
	}
	return tcp, end, nil
}

// decode6 does the same for IPv6 with extension headers (RFC 8200 section 4). It returns ErrNotTCP for unknown ones, AH
// included.
func decode6(b []byte) (tcp, end int, err error) {
	if len(b) < ip6Header {
		return 0, 0, ErrTruncated
	}
	end = ip6Header + int(binary.BigEndian.Uint16(b[4:]))
	if end > len(b) {
		return 0, 0, ErrTruncated
	}
	next, i := b[6], ip6Header
	for next != protoTCP {
		if i+8 > end {
			return 0, 0, ErrTruncated
		}
		length := (int(b[i+1]) + 1) * 8
		switch next {
		case protoHopByHop, protoDestOpts:
		case protoRouting:
			if segmentsLeft := b[i+3]; segmentsLeft != 0 {
				return 0, 0, ErrSourceRoute
			}
		case protoFragment:
			const offsetAndM = 0xfff9
			if binary.BigEndian.Uint16(b[i+2:])&offsetAndM != 0 {
				return 0, 0, ErrFragment
			}
			length = 8
		default:
			return 0, 0, ErrNotTCP
		}
		next, i = b[i], i+length
		if i > end {
			return 0, 0, ErrTruncated
		}
	}
	return i, end, nil
}

// Bytes returns the packet without trailing bytes.
func (p *Packet) Bytes() []byte { return p.bytes }

// Payload returns the TCP payload.
func (p *Packet) Payload() []byte { return p.bytes[p.data:] }

// Seq returns the sequence number: that of the first byte of the payload, or of the SYN.
func (p *Packet) Seq() Seq { return Seq(binary.BigEndian.Uint32(p.bytes[p.tcp+4:])) }

// Ack returns the acknowledgement number, and whether it is valid.
func (p *Packet) Ack() (Seq, bool) {
	return Seq(binary.BigEndian.Uint32(p.bytes[p.tcp+8:])), p.bytes[p.tcp+13]&flagACK != 0
}

// SYN reports whether the packet is a SYN or a SYN-ACK.
func (p *Packet) SYN() bool { return p.bytes[p.tcp+13]&flagSYN != 0 }

// RST reports whether the packet resets a connection.
func (p *Packet) RST() bool { return p.bytes[p.tcp+13]&flagRST != 0 }

// Is4 reports whether the packet is one of IPv4.
func (p *Packet) Is4() bool { return p.bytes[0]>>4 == 4 }

// Src returns the source address and port.
func (p *Packet) Src() netip.AddrPort { return p.endpoint(12, 8, 0) }

// Dst returns the destination address and port.
func (p *Packet) Dst() netip.AddrPort { return p.endpoint(16, 24, 2) }

func (p *Packet) endpoint(at4, at6, atPort int) netip.AddrPort {
	port := binary.BigEndian.Uint16(p.bytes[p.tcp+atPort:])
	if p.Is4() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(p.bytes[at4:at4+4])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(p.bytes[at6:at6+16])), port)
}

// AppendSegment appends to dst the packet with another sequence number and payload, and with lengths and checksums
// updated.
//
// The checksums are computed in full, since the kernel does not complete those of a changed packet. DF is cleared in
// an IPv4 packet that becomes longer (RFC 791), because its sender could not make it shorter. AppendSegment returns
// ErrTooLong, and dst unchanged, if the length exceeds the IP header's length field.
func (p *Packet) AppendSegment(dst []byte, seq Seq, payload []byte) ([]byte, error) {
	length := p.data + len(payload)
	inHeader := length
	if !p.Is4() {
		inHeader -= ip6Header
	}
	if inHeader > 0xffff {
		return dst, ErrTooLong
	}
	start := len(dst)
	dst = append(dst, p.bytes[:p.data]...)
	dst = append(dst, payload...)
	b := dst[start:]

	tcp := b[p.tcp:]
	binary.BigEndian.PutUint32(tcp[4:], uint32(seq))
	binary.BigEndian.PutUint16(tcp[16:], 0)
	var addresses []byte
	if p.Is4() {
		const dontFragment = 0x40
		if length > len(p.bytes) {
			b[6] &^= dontFragment
		}
		binary.BigEndian.PutUint16(b[2:], uint16(inHeader))
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b[:p.ip4HeaderLen()])))
		addresses = b[12:20]
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(inHeader))
		addresses = b[8:40]
	}
	binary.BigEndian.PutUint16(tcp[16:], ^fold(sum(pseudoHeader(addresses, len(tcp)), tcp)))
	return dst, nil
}

func (p *Packet) ip4HeaderLen() int { return int(p.bytes[0]&0x0f) * 4 }
