package mangle

import "encoding/binary"

// The Internet checksum (RFC 1071) is the one's complement of the one's complement sum of all 16-bit words. sum adds,
// fold reduces the sum to 16 bits; the caller takes the complement.

// sum adds the big-endian words of b to s; an odd last byte is padded with zero. RFC 1071 section 2(C): the sum may be
// taken over larger words and folded afterwards.
func sum(s uint64, b []byte) uint64 {
	for len(b) >= 4 {
		s += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		s += uint64(b[0]) << 8
	}
	return s
}

// pseudoHeader returns the sum of the pseudo header: both addresses, the protocol and the segment's length in bytes (RFC
// 9293 section 3.1 for IPv4, RFC 8200 section 8.1 for IPv6).
func pseudoHeader(addresses []byte, length int) uint64 {
	return sum(uint64(protoTCP)+uint64(length), addresses)
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
