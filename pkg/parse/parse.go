// Package parse reads the control language of FTP: whole lines out of TCP
// segments (Stream, Replies), and the meaning of one line (ParseCommand,
// ParseReply).
//
// It mirrors what the patterns of Linux's net/netfilter/nf_conntrack_ftp.c look
// for, but reads the control connection as what it is, two streams of lines:
// RFC 959 (commands, replies, PORT, PASV), RFC 1123 section 4.1.2 (what real
// programs send), RFC 2428 (EPRT, EPSV) and RFC 4217 (AUTH).
//
// Numbers are read strictly: nothing wraps, nothing spills into its neighbour.
// The form around them is read liberally, as FTP programs do. The package does no
// I/O, knows no clock, and allocates nothing for lines that arrive whole.
package parse

import (
	"bytes"
	"errors"
	"net/netip"
	"unsafe"
)

// Errors of ParseCommand and ParseReply. They say why a line that should have
// carried an endpoint carries none that could be used.
var (
	// ErrSyntax is returned where the numbers are not in the form that the RFC
	// asks for: too few, too many, other separators, no terminator.
	ErrSyntax = errors.New("endpoint is not in the form that the RFC gives")
	// ErrRange is returned where a number is out of range: an octet above 255,
	// port 0, a port above 65535.
	ErrRange = errors.New("number out of range")
	// ErrFamily is returned where the protocol number of EPRT (RFC 2428 section 2)
	// is neither 1 nor 2, or is not that of the address behind it.
	ErrFamily = errors.New("protocol number does not go with the address")
)

// Span is a range of bytes of a line: [Start, End), counted from its first byte.
type Span struct {
	Start, End int
}

// Len returns the number of bytes in the span.
func (s Span) Len() int { return s.End - s.Start }

// form is the way in which an endpoint is written.
type form uint8

const (
	formNone     form = iota
	formCommas        // h1,h2,h3,h4,p1,p2: PORT and 227
	formExtended      // address<d>port: EPRT
	formPort          // port: 229
)

// Endpoint is where a data connection is to go, as one line announces it.
type Endpoint struct {
	// Addr is the announced address; invalid (the zero Addr) for 229, which
	// announces none: the address is that of the control connection.
	Addr netip.Addr
	// Port is the announced port, 1 to 65535, in host order.
	Port uint16
	// Span covers the bytes of the line to be replaced when the endpoint changes,
	// and nothing else.
	Span Span

	form  form
	delim byte
}

// IsValid reports whether e is an endpoint at all; the zero Endpoint is not.
func (e Endpoint) IsValid() bool { return e.form != formNone }

// CanAnnounce reports whether a can be written in the form of e: PORT and 227 know
// only IPv4 (RFC 959), EPRT the family that its protocol number gives, which the span
// does not cover; 229 says nothing of the address (RFC 2428).
func (e Endpoint) CanAnnounce(a netip.Addr) bool {
	return e.form == formPort || a.BitLen() == e.Addr.BitLen()
}

// AppendText appends to dst the endpoint ap, written as e was: the text that
// replaces e.Span. 229 takes the port alone. ap's address must be one that e can
// announce; for another one dst is returned as it was.
func (e Endpoint) AppendText(dst []byte, ap netip.AddrPort) []byte {
	if !e.CanAnnounce(ap.Addr()) {
		return dst
	}
	switch e.form {
	case formCommas:
		for _, o := range ap.Addr().As4() {
			dst = append(appendUint(dst, uint32(o)), ',')
		}
		dst = append(appendUint(dst, uint32(ap.Port()>>8)), ',')
		return appendUint(dst, uint32(ap.Port()&0xff))
	case formExtended:
		dst = append(ap.Addr().AppendTo(dst), e.delim)
		return appendUint(dst, uint32(ap.Port()))
	case formPort:
		return appendUint(dst, uint32(ap.Port()))
	}
	return dst
}

// AppendSameLength appends to dst what replaces the bytes of line from the returned index up to
// the end of e.Span, so that a 227 or 229 announces ap and is as long as it was: the text for
// people in front of the endpoint gives bytes up, or gets spaces. line is the reply from which e
// was parsed. The last result is false, and nothing appended, if there is no text to give so
// many bytes, or ap cannot be announced.
func (e Endpoint) AppendSameLength(dst, line []byte, ap netip.AddrPort) (start int, out []byte, ok bool) {
	start = replyText
	var buf [64]byte
	text := e.AppendText(buf[:0], ap)
	human := line[min(start, e.Span.Start):e.Span.Start]
	// An opening parenthesis, and the delimiters of a 229, are no text for people.
	fixed := bytes.LastIndexByte(human, '(')
	if e.form == formPort {
		fixed = len(human) - len("(|||") // the delimiter may be a parenthesis, too
	} else if fixed < 0 {
		fixed = len(human)
	}
	room := e.Span.End - start - len(text)
	if len(text) == 0 || room < len(human)-fixed {
		return 0, dst, false
	}
	cut := max(0, len(human)-room)
	if cut > 0 && human[cut-1] != ' ' {
		// What is left of a word says nothing, or, of numbers, something else.
		if i := bytes.IndexByte(human[cut:fixed], ' '); i >= 0 {
			cut += i
		} else {
			cut = fixed
		}
	}
	for n := room - (len(human) - cut); n > 0; n-- {
		dst = append(dst, ' ')
	}
	dst = append(dst, human[cut:]...)
	return start, append(dst, text...), true
}

func appendUint(dst []byte, n uint32) []byte {
	if n >= 10 {
		dst = appendUint(dst, n/10)
	}
	return append(dst, byte('0'+n%10))
}

// number reads decimal digits from b[i:] and returns the value and the index behind
// the last digit. Leading zeros are decimal. Values above 65535 come back as 65536,
// however long they are, so that a caller's range check fails and nothing wraps.
// With no digit at i the index comes back unchanged.
func number(b []byte, i int) (value uint32, end int) {
	for end = i; end < len(b) && isDigit(b[end]); end++ {
		value = min(value*10+uint32(b[end]-'0'), 1<<16)
	}
	return value, end
}

// commas reads h1,h2,h3,h4,p1,p2 from b[i:]; the index behind it comes back as
// Span.End. A seventh number makes it ErrSyntax.
func commas(b []byte, i int) (Endpoint, error) {
	var n [6]byte
	var err error
	start := i
	for k := range n {
		v, end := number(b, i)
		if end == i {
			return Endpoint{}, ErrSyntax
		}
		if v > 255 {
			err = ErrRange
		}
		n[k] = byte(v)
		i = end
		switch comma := i < len(b) && b[i] == ','; {
		case k < len(n)-1 && comma:
			i++
		case k < len(n)-1, comma && i+1 < len(b) && isDigit(b[i+1]):
			return Endpoint{}, ErrSyntax
		}
	}
	port := uint16(n[4])<<8 | uint16(n[5])
	if port == 0 {
		err = ErrRange
	}
	if err != nil {
		return Endpoint{}, err
	}
	return Endpoint{
		Addr: netip.AddrFrom4([4]byte(n[:4])),
		Port: port,
		Span: Span{start, i},
		form: formCommas,
	}, nil
}

// tcpPort reads a port from b[i:].
func tcpPort(b []byte, i int) (port uint16, end int, err error) {
	v, end := number(b, i)
	switch {
	case end == i:
		return 0, i, ErrSyntax
	case v == 0 || v > 65535:
		return 0, end, ErrRange
	}
	return uint16(v), end, nil
}

// extended reads <d>net-prt<d>net-addr<d>tcp-port<d>, the argument of EPRT
// (RFC 2428 section 2), from b[i:].
func extended(b []byte, i int) (Endpoint, error) {
	if i >= len(b) || !isDelimiter(b[i]) || isAddress(b[i]) {
		return Endpoint{}, ErrSyntax
	}
	d := b[i]
	proto, end := number(b, i+1)
	if end == i+1 || end >= len(b) || b[end] != d {
		return Endpoint{}, ErrSyntax
	}
	start := end + 1
	i = start
	for i < len(b) && b[i] != d {
		i++
	}
	addr, err := address(b[start:i], proto)
	if err != nil {
		return Endpoint{}, err
	}
	if i >= len(b) {
		return Endpoint{}, ErrSyntax
	}
	port, end, err := tcpPort(b, i+1)
	if err != nil {
		return Endpoint{}, err
	}
	if end >= len(b) || b[end] != d {
		return Endpoint{}, ErrSyntax
	}
	return Endpoint{Addr: addr, Port: port, Span: Span{start, end}, form: formExtended, delim: d}, nil
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

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isSpace(c byte) bool { return c == ' ' || c == '\t' }
