package parse

// Verb is the command word of a line from the client, or the code of a reply from the server.
type Verb uint8

// The verbs that matter to a helper. Every other command and reply is Other; Unknown is a line
// in the form of neither.
const (
	Unknown Verb = iota
	Other
	USER // RFC 959: the client logs in
	AUTH // RFC 4217: the control connection is to be encrypted, accepted by 234
	PASV // RFC 959: the server is to listen, answered by 227
	EPSV // RFC 2428: the server is to listen, answered by 229
	// EPSVALL is "EPSV ALL" (RFC 2428 section 4): the client announces that it will use
	// nothing but EPSV.
	EPSVALL
	PORT     // RFC 959: the client listens, IPv4
	EPRT     // RFC 2428: the client listens, either family
	Reply227 // RFC 959: the server listens, IPv4
	Reply229 // RFC 2428: the server listens, either family
	NumVerbs // the number of verbs
)

// verbs has one row for each verb. Where an endpoint is announced, read returns it from a line
// whose argument or text begins at index i, and begin returns the index of an unfinished line
// from which on the endpoint may stand, its length if the endpoint has not begun.
var verbs = [NumVerbs]struct {
	name  string
	code  int // of a reply
	read  func(line []byte, i int) (Endpoint, error)
	begin func(part []byte, i int) int
}{
	Unknown:  {name: "unknown"},
	Other:    {name: "other"},
	USER:     {name: "USER"},
	AUTH:     {name: "AUTH"},
	PASV:     {name: "PASV"},
	EPSV:     {name: "EPSV"},
	EPSVALL:  {name: "EPSV ALL"},
	PORT:     {name: "PORT", read: readPORT, begin: beginPORT},
	EPRT:     {name: "EPRT", read: readEPRT, begin: beginEPRT},
	Reply227: {name: "227", code: 227, read: read227, begin: begin227},
	Reply229: {name: "229", code: 229, read: read229, begin: begin229},
}

// String returns the verb as it is written in the RFC.
func (v Verb) String() string { return verbs[v].name }

// MarshalText implements encoding.TextMarshaler.
func (v Verb) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Announces reports whether lines with the verb announce an endpoint: PORT and all that follow it do.
func (v Verb) Announces() bool { return v < NumVerbs && verbs[v].read != nil }

// IsReply reports whether the verb is the code of a reply.
func (v Verb) IsReply() bool { return verbs[v].code != 0 }

// AsksServer reports whether the verb is a command that asks the server for an endpoint.
func (v Verb) AsksServer() bool { return v == PASV || v == EPSV }

// read returns the endpoint in a line whose argument or text begins at i, none for a verb that
// announces none.
func (v Verb) read(line []byte, i int) (Endpoint, error) {
	if f := verbs[v].read; f != nil {
		return f(line, i)
	}
	return Endpoint{}, nil
}

// begin returns the index of an unfinished line from which on its endpoint may stand.
func (v Verb) begin(part []byte, i int) int {
	if f := verbs[v].begin; f != nil {
		return f(part, i)
	}
	return len(part)
}

var (
	byWord = map[uint32]Verb{packWord([]byte("P@SW")): PASV} // vsftpd and others accept it, some routers write it
	byCode = map[int]Verb{}
)

func init() {
	for v := USER; v < NumVerbs; v++ {
		switch row := verbs[v]; {
		case v.IsReply():
			byCode[row.code] = v
		case len(row.name) == 4:
			byWord[packWord([]byte(row.name))] = v
		}
	}
}

// verbOf returns the verb of a command word in either case, Unknown if there is no word.
func verbOf(word []byte) Verb {
	if len(word) == 0 {
		return Unknown
	}
	if v, ok := byWord[packWord(word)]; ok {
		return v
	}
	return Other
}

// packWord packs a command word of four characters into a number, in upper case; 0 for a word of
// another length.
func packWord(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	var w uint32
	for _, c := range b {
		w = w<<8 | uint32(c&^0x20)
	}
	return w
}
