package parse

import "bytes"

// Command is the meaning of one line from the client.
type Command struct {
	Verb Verb
	// Endpoint is where the client listens: valid for PORT and EPRT only.
	Endpoint Endpoint
}

// ParseCommand reads one line from the client, without its line end (a trailing CR or NUL
// does not matter). Telnet's command sequences before the first letter are skipped
// (RFC 959 section 4.1.3 has clients send them before ABOR and STAT). It returns
// ErrSyntax, ErrRange or ErrFamily for a PORT or EPRT whose endpoint cannot be used;
// Command.Verb is set all the same.
func ParseCommand(line []byte) (Command, error) {
	rest := trimRight(line)
	verb, end, arg := splitCommand(rest)
	if arg == end && arg < len(rest) {
		return Command{}, nil
	}
	if verb == EPSV && bytes.EqualFold(rest[arg:], []byte("ALL")) {
		verb = EPSVALL
	}
	e, err := verb.read(rest, arg)
	return Command{Verb: verb, Endpoint: e}, err
}

// CommandEndpoint returns the index from which on an endpoint may stand in a line from the
// client of which only the beginning, part, has arrived; len(part) if it could only follow
// later, or not at all.
func CommandEndpoint(part []byte) int {
	verb, end, arg := splitCommand(part)
	if arg == end || arg == len(part) {
		return len(part)
	}
	return verb.begin(part, arg)
}

// splitCommand returns the verb of a line, where it ends, and where its argument begins: in the
// same place if the verb is followed by neither a blank nor the line end. A verb is letters,
// digits after the first one (XSHA256), or P@SW.
func splitCommand(line []byte) (verb Verb, end, arg int) {
	start := skipPrefix(line)
	end = start
	for end < len(line) && (isLetter(line[end]) || end > start && (isDigit(line[end]) || line[end] == '@')) {
		end++
	}
	return verbOf(line[start:end]), end, skipBlanks(line, end)
}

// Telnet (RFC 854): IAC begins a command of two bytes, of three where it negotiates
// an option; SB … IAC SE encloses a subnegotiation.
const (
	iac = 0xff
	sb  = 0xfa
	se  = 0xf0
)

// skipPrefix returns the index of the first byte of line that is neither part of a telnet command nor
// the NUL that some programs send after a line end.
func skipPrefix(line []byte) int {
	i := 0
	for i < len(line) && (line[i] == 0 || line[i] == iac && i+1 < len(line)) {
		if line[i] == 0 {
			i++
			continue
		}
		switch c := line[i+1]; {
		case c == sb:
			j := i + 2
			for j+1 < len(line) && (line[j] != iac || line[j+1] != se) {
				j++
			}
			i = min(j+2, len(line))
		case c > sb && c < iac: // WILL, WONT, DO, DONT and the option
			i = min(i+3, len(line))
		case c >= se && c < sb:
			i += 2
		default: // IAC IAC among them: that is the data byte 255
			return i
		}
	}
	return i
}

func skipBlanks(line []byte, i int) int {
	for i < len(line) && isBlank(line[i]) {
		i++
	}
	return i
}

func trimRight(line []byte) []byte { return bytes.TrimRight(line, " \t\r\x00") }

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isBlank(c byte) bool { return c == ' ' || c == '\t' }
