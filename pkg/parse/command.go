package parse

// Verb is the command word of a line from the client.
type Verb uint8

// The commands that matter to a helper. Every other command is Other; a line that does
// not begin with the word of any FTP command is Unknown.
const (
	Unknown Verb = iota
	Other
	PORT // RFC 959: the client listens, IPv4
	EPRT // RFC 2428: the client listens, any family
	PASV // RFC 959: the server is to listen, answered by 227
	EPSV // RFC 2428: the server is to listen, answered by 229
	// EPSVALL is "EPSV ALL" (RFC 2428 section 4): from now on the client uses nothing
	// but EPSV, and a helper may rely on that.
	EPSVALL
	AUTH // RFC 4217: the control connection is to be encrypted, accepted by 234
	USER // RFC 959: the login begins
)

var verbNames = [...]string{"unknown", "other", "PORT", "EPRT", "PASV", "EPSV", "EPSV ALL", "AUTH", "USER"}

// String returns the command as it is written in the RFC.
func (v Verb) String() string { return verbNames[v] }

// Command is the meaning of one line from the client.
type Command struct {
	Verb Verb
	// Endpoint is where the client listens: valid for PORT and EPRT only.
	Endpoint Endpoint
}

// ParseCommand reads one line from the client, without its line end (a trailing CR
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
	cmd := Command{Verb: verb}
	var err error
	switch verb {
	case PORT:
		cmd.Endpoint, err = portArgument(rest, arg)
	case EPRT:
		cmd.Endpoint, err = eprtArgument(rest, arg)
	case EPSV:
		if fold(rest[arg:]) == word("ALL") {
			cmd.Verb = EPSVALL
		}
	}
	return cmd, err
}

// splitCommand returns the verb of a line, where it ends, and where its argument begins: in the same
// place if there is neither space nor an argument.
func splitCommand(line []byte) (verb Verb, end, arg int) {
	start := skipTelnet(line)
	end = start
	for end < len(line) && isLetter(line[end]) {
		end++
	}
	arg = end
	for arg < len(line) && isSpace(line[arg]) {
		arg++
	}
	return lookUp(line[start:end]), end, arg
}

// CommandEndpoint returns the index from which on an endpoint may stand in a line from the
// client of which only the beginning, part, has come; len(part) if it could only stand
// behind it, or not at all.
func CommandEndpoint(part []byte) int {
	switch verb, end, arg := splitCommand(part); {
	case arg == len(part) || arg == end:
		return len(part)
	case verb == PORT:
		return arg
	case verb == EPRT:
		// Behind the second delimiter.
		for i := arg + 1; i < len(part); i++ {
			if part[i] == part[arg] {
				return i + 1
			}
		}
	}
	return len(part)
}

func portArgument(line []byte, i int) (Endpoint, error) {
	e, err := commas(line, i)
	if err == nil && e.Span.End != len(line) {
		return Endpoint{}, ErrSyntax
	}
	return e, err
}

func eprtArgument(line []byte, i int) (Endpoint, error) {
	e, err := extended(line, i)
	if err == nil && e.Span.End+1 != len(line) {
		return Endpoint{}, ErrSyntax
	}
	return e, err
}

// Telnet (RFC 854): IAC begins a command of two bytes, of three where it negotiates
// an option; SB … IAC SE encloses a subnegotiation.
const (
	iac = 0xff
	sb  = 0xfa
	se  = 0xf0
)

// skipTelnet returns the index of the first byte behind the telnet commands with
// which line begins.
func skipTelnet(line []byte) int {
	i := 0
	for i+1 < len(line) && line[i] == iac {
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

func trimRight(line []byte) []byte {
	for len(line) > 0 && (isSpace(line[len(line)-1]) || line[len(line)-1] == '\r') {
		line = line[:len(line)-1]
	}
	return line
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// word packs a command word of up to four letters, as fold does for what is read.
func word(s string) uint32 {
	return fold([]byte(s))
}

// fold packs up to four letters into a number, upper case; 0 for anything else.
func fold(b []byte) uint32 {
	if len(b) == 0 || len(b) > 4 {
		return 0
	}
	var w uint32
	for _, c := range b {
		if !isLetter(c) {
			return 0
		}
		w = w<<8 | uint32(c&^0x20)
	}
	return w
}

var verbs = func() map[uint32]Verb {
	m := map[uint32]Verb{
		word("PORT"): PORT, word("EPRT"): EPRT, word("PASV"): PASV, word("EPSV"): EPSV,
		word("AUTH"): AUTH, word("USER"): USER,
	}
	// The rest of the IANA registry of FTP commands (RFC 5797), with the experimental
	// X forms of RFC 775 and 1123 and what widespread servers add.
	for _, s := range [...]string{
		"ABOR", "ACCT", "ADAT", "ALGS", "ALLO", "APPE", "AVBL", "CCC", "CDUP", "CLNT", "CONF", "CSID",
		"CWD", "DELE", "ENC", "ESTA", "ESTP", "FEAT", "HASH", "HELP", "HOST", "LANG", "LIST",
		"LPRT", "LPSV", "MDTM", "MFCT", "MFF", "MFMT", "MIC", "MKD", "MLSD", "MLST", "MODE",
		"NLST", "NOOP", "OPTS", "PASS", "PBSZ", "PROT", "PWD", "QUIT", "REIN", "REST", "RETR",
		"RMD", "RNFR", "RNTO", "SITE", "SIZE", "SMNT", "SPSV", "STAT", "STOR", "STOU", "STRU",
		"SYST", "THMB", "TYPE", "XCUP", "XCRC", "XCWD", "XMD", "XMKD", "XPWD", "XRMD",
	} {
		m[word(s)] = Other
	}
	return m
}()

// lookUp returns the verb of a command word, in any case.
func lookUp(b []byte) Verb { return verbs[fold(b)] }
