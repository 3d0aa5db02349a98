package parse

import "bytes"

// The replies that matter to a helper (RFC 959 section 5.4, RFC 2428 section 3,
// RFC 4217 section 4).
const (
	CodeReady    = 220 // the greeting
	CodePassive  = 227 // "Entering Passive Mode (h1,h2,h3,h4,p1,p2)"
	CodeExtended = 229 // "Entering Extended Passive Mode (|||port|)"
	CodeSecured  = 234 // AUTH is accepted: what follows is TLS
)

// replyText is where the text of a reply begins, behind its code and a space.
const replyText = 4

// Reply is the meaning of one reply line from the server.
type Reply struct {
	// Code is the three digits, 100 to 599.
	Code int
	// More is set for the first line of a multi-line reply ("227-…"), which ends
	// with a line that has the same code and a space (RFC 959 section 4.2).
	More bool
	// Endpoint is where the server listens: valid for a one-line 227 or 229 only.
	Endpoint Endpoint
}

// ParseReply reads one line from the server, without its line end (a trailing CR does
// not matter). A line that is no reply has the code 0. It returns ErrSyntax or ErrRange
// for a 227 or 229 without an endpoint that can be used; Reply.Code is set all the same.
//
// A 227 need not put its numbers in parentheses, nor anywhere in particular (RFC 1123
// section 4.1.2.6): the first six that stand together, separated by commas, count.
func ParseReply(line []byte) (Reply, error) {
	r := replyCode(line)
	if r.Code == 0 || r.More {
		return r, nil
	}
	var err error
	switch r.Code {
	case CodePassive:
		r.Endpoint, err = passive(line)
	case CodeExtended:
		r.Endpoint, err = extendedPassive(line)
	}
	return r, err
}

// replyCode reads the three digits and what stands behind them.
func replyCode(line []byte) Reply {
	if len(line) < 3 || line[0] < '1' || line[0] > '5' || !isDigit(line[1]) || !isDigit(line[2]) {
		return Reply{}
	}
	r := Reply{Code: int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')}
	if len(line) == 3 {
		return r
	}
	switch line[3] {
	case '-':
		r.More = true
	case ' ', '\t', '\r':
	default:
		return Reply{}
	}
	return r
}

// passive finds the endpoint of a 227: the first digit that begins six numbers.
func passive(line []byte) (Endpoint, error) {
	failed := ErrSyntax
	for i := 3; i < len(line); i++ {
		if !isDigit(line[i]) {
			continue
		}
		e, err := commas(line, i)
		if err == nil {
			return e, nil
		}
		if err == ErrRange {
			failed = err
		}
		// Whatever it was, it is over: the tail of a list is no list of its own.
		i = listEnd(line, i)
	}
	return Endpoint{}, failed
}

// listEnd returns where the digits and commas end that begin at i.
func listEnd(b []byte, i int) int {
	for i < len(b) && (isDigit(b[i]) || b[i] == ',') {
		i++
	}
	return i
}

// extendedPassive finds the endpoint of a 229: (<d><d><d>port<d>).
func extendedPassive(line []byte) (Endpoint, error) {
	failed := ErrSyntax
	for i := 3; i < len(line); i++ {
		if !opensPort(line, i) {
			continue
		}
		port, end, err := tcpPort(line, i+4)
		if err != nil {
			failed = err
			continue
		}
		if end < len(line) && line[end] == line[i+1] {
			return Endpoint{Port: port, Span: Span{i + 4, end}, form: formPort}, nil
		}
	}
	return Endpoint{}, failed
}

// opensPort reports whether what stands in front of a 229's port is at i: (<d><d><d>.
func opensPort(b []byte, i int) bool {
	if i+3 >= len(b) || b[i] != '(' {
		return false
	}
	d := b[i+1]
	return isDelimiter(d) && !isDigit(d) && b[i+2] == d && b[i+3] == d
}

// ReplyText returns the index from which on the text of a 227 or 229 stands, of which only the
// beginning, part, has come; len(part) for any other reply.
func ReplyText(part []byte) int {
	if r := replyCode(part); !r.More && (r.Code == CodePassive || r.Code == CodeExtended) {
		return min(replyText, len(part))
	}
	return len(part)
}

// ReplyEndpoint is to replies what CommandEndpoint is to commands.
func ReplyEndpoint(part []byte) int {
	switch r := replyCode(part); {
	case len(part) < replyText || r.More:
	case r.Code == CodePassive:
		for i := replyText; i < len(part); i++ {
			if !isDigit(part[i]) {
				continue
			}
			end := listEnd(part, i)
			if _, err := commas(part[:end], i); end == len(part) || err == nil {
				return i
			}
			i = end
		}
	case r.Code == CodeExtended:
		for i := replyText; i < len(part); i++ {
			if opensPort(part, i) {
				return i + 4
			}
		}
	}
	return len(part)
}

// Replies follows the replies of one server, line by line, so that what stands inside
// a multi-line reply is not taken for a reply (RFC 959 section 4.2). The zero value is
// ready to use.
type Replies struct {
	open int // code of the multi-line reply that has not ended, or 0
}

// Open reports whether a multi-line reply has begun and not ended.
func (r *Replies) Open() bool { return r.open != 0 }

// Inside returns how many bytes of text, with which a line begins, are whole lines that do not end the multi-line reply
// that has begun; 0 if none has begun. Next need not have them.
func (r *Replies) Inside(text []byte) int {
	if r.open == 0 {
		return 0
	}
	code := [...]byte{'\n', '0' + byte(r.open/100), '0' + byte(r.open/10%10), '0' + byte(r.open%10)}
	for i := 0; ; {
		if line := text[i:]; bytes.HasPrefix(line, code[1:]) && (len(line) == 3 || line[3] != '-') {
			return i
		}
		next := bytes.Index(text[i:], code[:])
		if next < 0 {
			return bytes.LastIndexByte(text, '\n') + 1
		}
		i += next + 1
	}
}

// Next takes the server's next line. It returns the reply that the line is and true, or
// false for a line that is none: the first lines of a multi-line reply. Its last line has
// the code, and announces no endpoint. The error is that of ParseReply.
func (r *Replies) Next(line []byte) (Reply, bool, error) {
	if r.open != 0 {
		if c := replyCode(line); c.Code == r.open && !c.More {
			r.open = 0
			return c, true, nil
		}
		return Reply{}, false, nil
	}
	reply, err := ParseReply(line)
	if reply.More {
		r.open = reply.Code
		return Reply{}, false, nil
	}
	return reply, reply.Code != 0, err
}
