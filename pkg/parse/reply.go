package parse

// The codes that matter to a helper and announce nothing.
const (
	CodeReady   = 220 // RFC 959: the greeting
	CodeSecured = 234 // RFC 4217: AUTH is accepted, what follows is TLS
)

// Reply is the meaning of one reply line from the server.
type Reply struct {
	// Verb is Reply227 or Reply229, Other for any other reply, Unknown for a line that is no reply.
	Verb Verb
	// Code is the three digits, 100 to 599.
	Code int
	// More is set for the first line of a multi-line reply ("227-…"), which ends
	// with a line that has the same code and a space (RFC 959 section 4.2).
	More bool
	// Last is set for a line whose code is followed by a blank, as RFC 959 has it for the last
	// line of a multi-line reply.
	Last bool
	// Endpoint is where the server listens: valid for a 227 or 229 that is not More only.
	Endpoint Endpoint
}

// ParseReply reads one line from the server, without its line end (a trailing CR does
// not matter). A line that is no reply has the code 0. It returns ErrSyntax or ErrRange
// for a 227 or 229 without an endpoint that can be used; Reply.Code is set all the same.
func ParseReply(line []byte) (Reply, error) {
	r, text := splitReply(line)
	if r.More {
		return r, nil
	}
	var err error
	r.Endpoint, err = r.Verb.read(line, text)
	return r, err
}

// ReplyText returns the index from which on the text of a 227 or 229 stands, of which only the
// beginning, part, has arrived; len(part) for any other reply.
func ReplyText(part []byte) int {
	if r, text := splitReply(part); !r.More && r.Verb.Announces() {
		return text
	}
	return len(part)
}

// ReplyEndpoint is to replies what CommandEndpoint is to commands.
func ReplyEndpoint(part []byte) int {
	r, text := splitReply(part)
	if r.More {
		return len(part)
	}
	return r.Verb.begin(part, text)
}

// splitReply reads the three digits and the byte after them, and returns where the text begins.
func splitReply(line []byte) (r Reply, text int) {
	i := skipPrefix(line)
	if len(line) < i+3 || line[i] < '1' || line[i] > '5' || !isDigit(line[i+1]) || !isDigit(line[i+2]) {
		return Reply{}, len(line)
	}
	code := int(line[i]-'0')*100 + int(line[i+1]-'0')*10 + int(line[i+2]-'0')
	r = Reply{Verb: Other, Code: code}
	if v, ok := byCode[code]; ok {
		r.Verb = v
	}
	text = i + 3
	if text == len(line) {
		return r, text
	}
	switch line[text] {
	case '-':
		r.More = true
	case ' ', '\t':
		r.Last = true
	case '\r', 0:
	default:
		return Reply{}, len(line)
	}
	return r, text + 1
}
