// Package ftp is the state machine of an FTP control connection (RFC 959), over lines: lines of
// either side go in, announced endpoints and changes of the connection's state come out. It is pure:
// it knows neither packets nor conntrack, has no clock, and allocates nothing.
//
// It believes an announcement only if the side that sends it is entitled to it:
//
//   - PORT and EPRT count on a connection that is recognised as FTP (recognise.go).
//   - A 227 or 229 counts if it answers PASV or EPSV (requests.go) and is a reply: no text inside a
//     multi-line reply, where a server can be made to repeat what a client has chosen (CERT VU#328867).
//
// # Multi-line replies
//
// A multi-line reply begins with a code and a hyphen, and ends with the line that has the same code and a
// space; that line is the reply (RFC 959 section 4.2). Empty lines, other codes, and a code without a space
// do not end it.
//
// Some servers end it with another code, or never. It is therefore over, too, if
//
//  1. its last line so far that is not empty had the form of a reply line (a code, then a space, a hyphen or the line end),
//  2. then the client sent a command, while no part of a further line had arrived, and
//  3. the line that arrived next has the form of a reply line, and does not continue the reply (its code and a hyphen).
//
// The client, which reads the replies, has then taken the reply for finished, and the line answers its
// command. A 227 that is sent inside a multi-line reply meets this only if the server repeats whole lines
// without a prefix, the forger chose the one after the first line, or two in a row, and a command of his passes exactly in
// front of the 227, which a client that closes its receive window can achieve. It then opens
// a port of the server's own address to the client, no more than the rest of the policy allows.
package ftp

import (
	"bytes"
	"errors"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// State says how a control connection is read.
type State uint8

// The states.
const (
	Reading   State = iota // its lines are read
	Encrypted              // AUTH was accepted, what follows is TLS
	NotFTP                 // its client does not speak FTP
	Nonsense               // after the login, one side sends what cannot be FTP
)

// Control is the dialogue of one control connection. The zero value is one whose client's first lines were
// missed. It is small and comparable; a copy of it is all there is to know.
type Control struct {
	requests requests
	block    uint16 // code of the multi-line reply that has not ended, 0 for none
	// lastIsReply is set while the last line of that reply that is not empty has the form of a reply line.
	lastIsReply bool
	// answerNext is set from a command until the server's next line, if that line may be the answer
	// though the multi-line reply has not ended.
	answerNext bool

	state      State
	head       bool // all lines of the client so far are those of FTP, but no login has arrived
	recognised bool
	junk       uint8 // the last lines from the client that cannot be FTP, in a row
	greeted    bool  // the server has sent a positive reply
	auth       bool  // the client has sent AUTH
	epsvAll    bool  // the client has sent EPSV ALL
	odd        odd   // what has been reported
}

// Meaning is what a line means to a helper.
type Meaning struct {
	// Verb is that of a line that announces an endpoint, or should; else Unknown.
	Verb     parse.Verb
	Endpoint parse.Endpoint
	// Err says why there is no endpoint that can be used.
	Err error
	// Solicited is set unless the line is a 227 or 229 that answers no PASV or EPSV.
	Solicited bool
	// State is another than before after a line that changed it.
	State State
	// Recognised is set for the line with which the connection is recognised as FTP.
	Recognised bool
	// Odd says what is odd about the dialogue, each thing once: it is helped all the same.
	Odd error
}

// Open returns the dialogue of a connection whose client is read from its first byte.
func Open() Control { return Control{head: true} }

// Resume returns the dialogue of a connection that was recognised as FTP before.
func Resume() Control { return Control{recognised: true, greeted: true} }

// ReadAlone makes c the dialogue in which one segment is read without those before it: the client has sent
// PASV or EPSV, or not.
func (c *Control) ReadAlone(solicited bool) {
	*c = Control{recognised: true, greeted: true, state: c.state, auth: c.auth, odd: c.odd}
	if solicited {
		c.requests.add(true)
	}
}

// State returns how the connection is read.
func (c *Control) State() State { return c.state }

// Ignore has nothing read any more.
func (c *Control) Ignore() { c.state = NotFTP }

// GiveUp has nothing read any more of a connection on which too much is sent that cannot be FTP.
func (c *Control) GiveUp() {
	c.state = Nonsense
	if c.head {
		c.state = NotFTP
	}
}

// Greeted reports whether the server has sent a positive reply.
func (c *Control) Greeted() bool { return c.greeted }

// Recognised reports whether the connection is recognised as FTP.
func (c *Control) Recognised() bool { return c.recognised }

// HeadMissed reports whether the connection is not recognised as FTP and never will be: its client's first lines were
// not read.
func (c *Control) HeadMissed() bool { return !c.head && !c.recognised }

// Command takes a line from the client, without its line end. cut says that the line is longer than text;
// replyBegun says that a part of the server's next line has arrived.
func (c *Control) Command(text []byte, cut, replyBegun bool) Meaning {
	if isEmpty(text) {
		return Meaning{} // no command, and not answered
	}
	cmd, err := parse.ParseCommand(text)
	if cut && cmd.Verb.Announces() {
		cmd.Endpoint, err = parse.Endpoint{}, parse.ErrLong
	}
	if !c.isFTP(text, cut, cmd.Verb, err) {
		return Meaning{State: c.state}
	}
	m := Meaning{Recognised: c.login(cmd.Verb)}
	c.answerNext = c.block != 0 && c.lastIsReply && !replyBegun
	c.requests.add(cmd.Verb.AsksServer())
	switch {
	case cmd.Verb == parse.EPSVALL:
		c.epsvAll = true
	case cmd.Verb == parse.AUTH:
		c.auth = true
	case cmd.Verb.Announces():
		m.Verb, m.Endpoint, m.Err, m.Solicited = cmd.Verb, cmd.Endpoint, err, true
		fallthrough
	case cmd.Verb == parse.PASV:
		if c.epsvAll {
			m.Odd = c.report(oddEPSVAll)
		}
	}
	return m
}

// CommandTail takes what may be a line from the client, or only its end: what precedes it was not read. PASV and EPSV
// count, since they open nothing.
func (c *Control) CommandTail(text []byte) Meaning {
	cmd, _ := parse.ParseCommand(text)
	if cmd.Verb.AsksServer() {
		c.requests.add(true)
	}
	return tail(cmd.Verb, cmd.Endpoint)
}

// ReplyTail is CommandTail for the server.
func (c *Control) ReplyTail(text []byte) Meaning {
	if c.requests.passive == 0 {
		return Meaning{}
	}
	r, _ := parse.ParseReply(text)
	return tail(r.Verb, r.Endpoint)
}

func tail(v parse.Verb, e parse.Endpoint) Meaning {
	if !e.IsValid() {
		return Meaning{}
	}
	return Meaning{Verb: v, Endpoint: e, Solicited: true}
}

func isEmpty(line []byte) bool { return len(bytes.Trim(line, " \t\r\x00")) == 0 }

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// Reply takes a line from the server, without its line end; cut says that it is longer than text.
func (c *Control) Reply(text []byte, cut bool) Meaning {
	r, err := parse.ParseReply(text)
	var m Meaning
	if c.block != 0 {
		switch {
		case r.Code == int(c.block) && r.Last:
		case c.answerNext && r.Code != 0 && (r.Code != int(c.block) || !r.More):
			m.Odd = c.report(oddUnended)
			c.requests.answer(int(c.block))
		default:
			c.answerNext = false
			if !isEmpty(text) {
				c.lastIsReply = r.Code != 0
			}
			return Meaning{}
		}
		c.block = 0
	}
	c.answerNext = false
	if cut {
		r.Endpoint, err = parse.Endpoint{}, parse.ErrLong
	}
	if 100 <= r.Code && r.Code < 300 {
		c.greeted = true
	}
	if r.More {
		c.block, c.lastIsReply = uint16(r.Code), true
		return m
	}
	if r.Verb.Announces() {
		m.Solicited = c.requests.answerPassive(err == nil)
		if m.Solicited || err == nil {
			m.Verb, m.Endpoint, m.Err = r.Verb, r.Endpoint, err
		}
		return m
	}
	c.requests.answer(r.Code)
	if r.Code == parse.CodeSecured && c.auth {
		c.state = Encrypted
		m.State = c.state
	}
	return m
}

// Skip returns how many bytes of text, with which lines from the server begin, are whole lines inside a
// multi-line reply that do not matter; Reply need not have them.
func (c *Control) Skip(text []byte) int {
	if c.block == 0 || c.answerNext {
		return 0
	}
	const most = 2048 // bounds what is looked at for one line
	text = text[:min(len(text), most)]
	for _, prefix := range [...]byte{0, 0xff} { // NUL and telnet's IAC may precede a code
		if i := bytes.IndexByte(text, prefix); i >= 0 {
			text = text[:bytes.LastIndexByte(text[:i], '\n')+1]
		}
	}
	code := [...]byte{'\n', '0' + byte(c.block/100), '0' + byte(c.block/10%10), '0' + byte(c.block%10)}
	n := 0
	for {
		if line := text[n:]; bytes.HasPrefix(line, code[1:]) && (len(line) == 3 || isBlank(line[3])) {
			break // its last line
		}
		next := bytes.Index(text[n:], code[:])
		if next < 0 {
			n = bytes.LastIndexByte(text, '\n') + 1
			break
		}
		n += next + 1
	}
	if last := bytes.TrimRight(text[:n], " \t\r\n\x00"); len(last) > 0 {
		r, _ := parse.ParseReply(last[bytes.LastIndexByte(last, '\n')+1:])
		c.lastIsReply = r.Code != 0
	}
	return n
}

// ReplyLost takes note of bytes from the server that were not read: a multi-line reply may have ended, or
// begun, in them.
func (c *Control) ReplyLost() { c.block = 0 }

// HoldCommand returns the index of an unfinished line from the client from which on it may have to be rewritten,
// its length if it need not be.
func (c *Control) HoldCommand(part []byte) int {
	if !c.greeted || c.state != Reading {
		return len(part)
	}
	return parse.CommandEndpoint(part)
}

// HoldReply is HoldCommand for a line from the server. If lines have to keep their length, the text
// in front of the endpoint is rewritten, too.
func (c *Control) HoldReply(part []byte, keepLength bool) int {
	if c.requests.passive == 0 || c.state != Reading || c.block != 0 && c.block != 227 && c.block != 229 && !c.answerNext {
		return len(part)
	}
	if keepLength {
		return parse.ReplyText(part)
	}
	return parse.ReplyEndpoint(part)
}

// odd has a bit for each thing that is odd about a dialogue.
type odd uint8

const (
	oddEPSVAll odd = 1 << iota
	oddUnended
)

// Errors of Meaning.Odd.
var (
	// ErrEPSVAll: RFC 2428 section 4 has the server refuse every other command after EPSV ALL.
	ErrEPSVAll = errors.New("the client sent EPSV ALL, and then another command than EPSV for a data connection: fix the client")
	// ErrUnended: RFC 959 section 4.2 has it end with its code and a space.
	ErrUnended = errors.New("the server did not end a multi-line reply with its code and a space: fix the server")
)

// report returns the error for what is odd, nil if it has been reported.
func (c *Control) report(o odd) error {
	if c.odd&o != 0 {
		return nil
	}
	c.odd |= o
	if o == oddEPSVAll {
		return ErrEPSVAll
	}
	return ErrUnended
}
