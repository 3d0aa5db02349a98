package explain

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

// packet is a TCP segment of a capture.
type packet struct {
	mangle.Packet
	at      time.Time
	number  int // in the file, from 1
	place   place
	missing int // how many bytes of its end the capture does not have
}

// decodePacket makes a packet of bytes that begin with an IP header, and
// returns false if it is none of TCP. If the capture has cut it, the end is made up.
func decodePacket(ip []byte) (p packet, ok bool) {
	if n := ipLength(ip); n > len(ip) {
		p.missing = n - len(ip)
		ip = append(bytes.Clone(ip), madeUp(p.missing)...)
	}
	if p.Decode(ip) != nil || p.missing > len(p.Payload()) {
		return packet{}, false
	}
	return p, true
}

// madeUp is what stands for n bytes that a capture lacks. Behind the beginning of an endpoint, it
// makes it one that is out of range.
func madeUp(n int) []byte {
	b := bytes.Repeat([]byte{'9'}, n)
	if endsLine(n) {
		b[n-1] = '\n'
	}
	return b
}

// endsLine reports whether what stands for n bytes ends a line.
func endsLine(n int) bool { return n > 3 }

// keep makes the packet one that outlives the capture's buffer.
func (p *packet) keep() {
	if err := p.Decode(bytes.Clone(p.Bytes())); err != nil {
		panic(err) // it has been decoded before
	}
}

// ipLength is how long the header of a packet says that it is.
func ipLength(b []byte) int {
	const ip4Header, ip6Header = 20, 40
	switch {
	case len(b) >= ip4Header && b[0]>>4 == 4:
		return int(binary.BigEndian.Uint16(b[2:]))
	case len(b) >= ip6Header && b[0]>>4 == 6:
		return ip6Header + int(binary.BigEndian.Uint16(b[4:]))
	}
	return 0
}

// tuple is what the packet looks like.
func (p *packet) tuple() expect.Tuple { return expect.Tuple{Src: p.Src(), Dst: p.Dst()} }

// end is the first sequence number behind the packet.
func (p *packet) end() mangle.Seq { return p.Seq().Add(len(p.Payload())) }

// first is the number of the first byte of what the packet's sender says: behind that of a SYN.
func (p *packet) first() mangle.Seq {
	if p.SYN() {
		return p.Seq().Add(1)
	}
	return p.Seq()
}

// sameSegment reports whether q is p, seen again at another place: not sent again.
func (p *packet) sameSegment(q *packet) bool {
	return p.Seq() == q.Seq() && p.SYN() == q.SYN() && bytes.Equal(p.Payload(), q.Payload())
}

// reverse is the tuple of the other direction, where there is no NAT.
func reverse(t expect.Tuple) expect.Tuple { return expect.Tuple{Src: t.Dst, Dst: t.Src} }

// withTuple returns the packet as it looks with other addresses and ports: a plain one, without
// options, whose checksums nobody looks at.
func (p *packet) withTuple(t expect.Tuple) packet {
	const tcpHeader = 20
	var b []byte
	total := tcpHeader + len(p.Payload())
	if t.Src.Addr().Is4() {
		b = make([]byte, 20, 20+total)
		b[0], b[8], b[9] = 0x45, 64, 6
		binary.BigEndian.PutUint16(b[2:], uint16(20+total))
		copy(b[12:], t.Src.Addr().AsSlice())
		copy(b[16:], t.Dst.Addr().AsSlice())
	} else {
		b = make([]byte, 40, 40+total)
		b[0], b[6], b[7] = 0x60, 6, 64
		binary.BigEndian.PutUint16(b[4:], uint16(total))
		copy(b[8:], t.Src.Addr().AsSlice())
		copy(b[24:], t.Dst.Addr().AsSlice())
	}
	b = binary.BigEndian.AppendUint16(b, t.Src.Port())
	b = binary.BigEndian.AppendUint16(b, t.Dst.Port())
	b = binary.BigEndian.AppendUint32(b, uint32(p.Seq()))
	ack, acks := p.Ack()
	var flags byte
	for bit, set := range map[byte]bool{1 << 1: p.SYN(), 1 << 2: p.RST(), 1 << 4: acks} {
		if set {
			flags |= bit
		}
	}
	b = binary.BigEndian.AppendUint32(b, uint32(ack))
	b = append(b, tcpHeader/4<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	b = append(b, p.Payload()...)
	q := packet{at: p.at, number: p.number, place: p.place, missing: p.missing}
	if q.Decode(b) != nil {
		return *p
	}
	return q
}
