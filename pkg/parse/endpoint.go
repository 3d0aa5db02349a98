// Package parse reads the lines of FTP's control language: what one line means, and which bytes of it
// announce an endpoint. ParseCommand and ParseReply do so from one table of verbs (verb.go).
//
// It mirrors what the patterns of Linux's net/netfilter/nf_conntrack_ftp.c look
// for, but reads lines: RFC 959 (commands, replies, PORT, PASV), RFC 1123 section 4.1.2 (what real
// programs send), RFC 2428 (EPRT, EPSV) and RFC 4217 (AUTH).
//
// Numbers are read strictly: nothing wraps, nothing spills into its neighbour.
// The form around them is read liberally, as FTP programs do. The package does no
// I/O, knows no clock, and allocates nothing.
package parse

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
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
	// ErrLong says of a line of more than MaxLine bytes that it is not read to its end.
	ErrLong = fmt.Errorf("the line is longer than %d bytes", MaxLine)
)

// MaxLine is how many bytes of a line are read at most, without its LF: no endpoint needs as many.
const MaxLine = 512

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
	formHostPort      // h1,h2,h3,h4,p1,p2: PORT and 227
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
	case formHostPort:
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
	_, start = splitReply(line)
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
