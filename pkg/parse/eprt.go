package parse

import (
	"net/netip"
	"unsafe"
)

// EPRT of RFC 2428 section 2: EPRT <d>net-prt<d>net-addr<d>tcp-port<d>.

// readEPRT reads the argument of EPRT, which is all of line from i on.
func readEPRT(line []byte, i int) (Endpoint, error) {
	if i >= len(line) || !isDelimiter(line[i]) || isAddress(line[i]) {
		return Endpoint{}, ErrSyntax
	}
	d := line[i]
	proto, end := number(line, i+1)
	if end == i+1 || end >= len(line) || line[end] != d {
		return Endpoint{}, ErrSyntax
	}
	start := end + 1
	i = start
	for i < len(line) && line[i] != d {
		i++
	}
	addr, err := address(line[start:i], proto)
	if err != nil {
		return Endpoint{}, err
	}
	if i >= len(line) {
		return Endpoint{}, ErrSyntax
	}
	port, end, err := tcpPort(line, i+1)
	if err != nil {
		return Endpoint{}, err
	}
	if end+1 != len(line) || line[end] != d {
		return Endpoint{}, ErrSyntax
	}
	return Endpoint{Addr: addr, Port: port, Span: Span{start, end}, form: formExtended, delim: d}, nil
}

// beginEPRT returns the index after the second delimiter.
func beginEPRT(part []byte, i int) int {
	for j := i + 1; j < len(part); j++ {
		if part[j] == part[i] {
			return j + 1
		}
	}
	return len(part)
}

// address reads the text of an address of RFC 2428's protocol 1 (IPv4) or 2 (IPv6).
func address(b []byte, proto uint32) (netip.Addr, error) {
	switch proto {
	case 1:
		return address4(b)
	case 2:
		return address6(b)
	}
	return netip.Addr{}, ErrFamily
}

func address4(b []byte) (netip.Addr, error) {
	if isAddress6(b) {
		return netip.Addr{}, ErrFamily
	}
	var a [4]byte
	i := 0
	for k := range a {
		v, end := number(b, i)
		if end == i {
			return netip.Addr{}, ErrSyntax
		}
		if v > 255 {
			return netip.Addr{}, ErrRange
		}
		a[k] = byte(v)
		i = end
		if k < len(a)-1 {
			if i >= len(b) || b[i] != '.' {
				return netip.Addr{}, ErrSyntax
			}
			i++
		}
	}
	if i != len(b) {
		return netip.Addr{}, ErrSyntax
	}
	return netip.AddrFrom4(a), nil
}

func address6(b []byte) (netip.Addr, error) {
	if !isAddress6(b) {
		if _, err := address4(b); err == nil {
			return netip.Addr{}, ErrFamily
		}
		return netip.Addr{}, ErrSyntax
	}
	// The string does not outlive the call: without a zone netip keeps nothing of it.
	a, err := netip.ParseAddr(unsafe.String(&b[0], len(b)))
	if err != nil {
		return netip.Addr{}, ErrSyntax
	}
	return a, nil
}

// isAddress6 reports whether b has the characters of an IPv6 address: a colon, and
// no zone, which has no meaning to the other end.
func isAddress6(b []byte) bool {
	colon := false
	for _, c := range b {
		switch {
		case c == ':':
			colon = true
		case !isAddress(c):
			return false
		}
	}
	return colon
}

// isAddress reports whether c may stand in an address; as a delimiter it would be ambiguous.
func isAddress(c byte) bool {
	return isDigit(c) || c == '.' || c == ':' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

// RFC 2428 section 2: "The delimiter character MUST be one of the ASCII characters
// in range 33-126 inclusive."
func isDelimiter(c byte) bool { return 33 <= c && c <= 126 }
