package mangle

import "encoding/binary"

// The Internet checksum (RFC 1071): the one's complement of the one's complement sum of
// all 16-bit words. sum adds up; fold brings the sum back to 16 bits; the complement is
// the caller's.

// sum adds the words of b to s, big-endian; a last odd byte counts as if a zero followed.
// RFC 1071 section 2(C): the sum may be taken over larger words and folded afterwards.
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

// pseudoHeader sums what the TCP checksum covers before the segment: both addresses, the
// protocol and the segment's length in bytes (RFC 9293 section 3.1 for IPv4, RFC 8200
// section 8.1 for IPv6).
func pseudoHeader(addresses []byte, length int) uint64 {
	return sum(uint64(protoTCP)+uint64(length), addresses)
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
