package engine

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// read takes what is new in a packet of the flow: every line that ends in it.
func (e *Engine) read(f *flow, dir expect.Direction, p *mangle.Packet) {
	s := &f.sides[dir]
	if f.opaque {
		if s.stream.Expected().Before(end(p)) {
			s.stream.Start(end(p), false)
		}
		return
	}
	if s.stream.Expected().Before(p.Seq()) {
		e.gap(f, dir)
	}
	s.stream.Push(p.Seq(), p.Payload())
	if dir == expect.Original && f.head && p.Seq() == s.begun {
		if n := parse.ProxyHeader(p.Payload()); n > 0 {
			s.stream.Start(p.Seq().Add(n), true)
			s.stream.Push(p.Seq(), p.Payload())
		}
	}
	for looks := maxLooks(p); !f.opaque; looks-- {
		if dir == expect.Reply {
			s.stream.Pass(f.replies.Inside(s.stream.Rest()))
		}
		line, ok := s.stream.Next()
		if !ok {
			break
		}
		if looks == 0 {
			e.giveUpReading(f)
			break
		}
		if dir == expect.Original {
			e.command(f, line)
		} else {
			e.reply(f, line)
		}
	}
	if f.opaque {
		s.stream.Start(end(p), false) // nothing of it is kept
	}
}

// gap takes note of bytes that are not read, and never will be. The line that they belong to is not
// read either: a client can have a server echo what looks like a reply, and choose where it is cut
// and what gets lost (VU#328867).
func (e *Engine) gap(f *flow, dir expect.Direction) {
	switch {
	case dir == expect.Reply:
		f.replies = parse.Replies{} // a multi-line reply may have ended, or begun, in what is missing
	default:
		f.head = false // it may have begun as HTTP does
	}
}

// maxJunk is how many lines from a client that cannot be FTP, or announce nothing that can be read, make it one that
// talks nonsense, if no other line comes between them.
const maxJunk = 64

// maxLooks returns how many lines are read of one packet. The shortest that programs send, such as "NOOP", have six bytes.
func maxLooks(p *mangle.Packet) int { return 32 + len(p.Payload())/6 }

// giveUpReading has nothing read any more of a connection that is not FTP.
func (e *Engine) giveUpReading(f *flow) {
	f.opaque = true
	kind := Nonsense
	if f.head {
		kind = NotFTP
	}
	e.tell(Event{Kind: kind, Master: &f.master})
}

// recognise takes note of the login of a connection that was read from its first byte on.
func (e *Engine) recognise(f *flow) {
	f.head, f.recognised = false, true
	if l := e.config.RecognisedLabel; l != 0 && !e.config.Monitor {
		e.setLabel(f, expect.Update{SetLabel: l})
	}
}

// setLabel changes the label of a recognised connection.
func (e *Engine) setLabel(f *flow, u expect.Update) {
	if err := e.config.Conntrack.Update(&f.master, u); err != nil && !errors.Is(err, expect.ErrNoEntry) {
		e.tell(Event{Kind: Unlabelled, Master: &f.master, Err: err})
	}
}

// start begins a stream with a packet of a connection that was not seen from its beginning.
func (e *Engine) start(f *flow, dir expect.Direction) {
	s := &f.sides[dir]
	s.begin(e.pkt.Seq())
	// Where the kernel adjusts already, what lies before its last change is up to it.
	if adj := f.master.SeqAdj[dir]; adj.Before != adj.After && !parse.Seq(adj.Position).Before(s.begun) {
		s.begun = parse.Seq(adj.Position).Add(1)
	}
}

// open begins a stream with its first byte.
func (s *side) open(seq parse.Seq) {
	s.begin(seq)
	s.begun = seq
}

// opened reports whether the stream was seen from its beginning, and seq is its first byte.
func (s *side) opened(seq parse.Seq) bool { return s.started && s.begun == seq }

func (s *side) begin(seq parse.Seq) {
	s.started, s.had = true, seq
	s.begun, s.gone = seq.Add(-otherConnection), seq // what is sent again may begin before seq
	s.stream.Start(seq, true)
}

// command takes a line from the client.
func (e *Engine) command(f *flow, line parse.Line) {
	if len(bytes.TrimSpace(line.Text)) == 0 {
		return // no command, and not answered
	}
	cmd, err := parse.ParseCommand(line.Text)
	if line.Cut {
		cmd.Endpoint, err = parse.Endpoint{}, errLong
	}
	ok := !f.head && cmd.Verb != parse.Unknown || parse.IsClientLine(line.Text)
	announces := cmd.Verb == parse.PORT || cmd.Verb == parse.EPRT
	if ok && (err == nil || !announces) {
		f.junk = 0
	} else {
		f.junk++
	}
	if f.head && (!ok || line.Cut) || f.junk == maxJunk {
		// A browser that is made to talk to port 21 may upload any number of PORT commands.
		e.giveUpReading(f)
		return
	}
	if f.head && (cmd.Verb == parse.USER || cmd.Verb == parse.AUTH) {
		e.recognise(f)
	}
	f.asked.push(cmd.Verb == parse.PASV || cmd.Verb == parse.EPSV)
	switch cmd.Verb {
	case parse.EPSVALL:
		f.epsvAll = true
	case parse.AUTH:
		f.auth = true
	case parse.PORT:
		e.announced(f, announcement{dir: expect.Original, verb: VerbPORT, line: line, endpoint: cmd.Endpoint, asked: true}, err)
	case parse.EPRT:
		e.announced(f, announcement{dir: expect.Original, verb: VerbEPRT, line: line, endpoint: cmd.Endpoint, asked: true}, err)
	}
}

// reply takes a line from the server.
func (e *Engine) reply(f *flow, line parse.Line) {
	r, ok, err := f.replies.Next(line.Text)
	if !ok {
		return
	}
	if line.Cut {
		r.Endpoint, err = parse.Endpoint{}, errLong
	}
	if r.Code < 300 {
		f.greeted = true
	}
	if r.Code < 200 {
		return // preliminary: the command is not answered yet
	}
	if r.Code == parse.CodeReady {
		return // the greeting: no answer, though commands may have been sent before it
	}
	asked := f.asked.answer(r.Code == parse.CodePassive || r.Code == parse.CodeExtended)
	switch {
	case r.Code == parse.CodeSecured && f.auth:
		f.opaque = true
		e.tell(Event{Kind: Encrypted, Master: &f.master})
	case !r.Endpoint.IsValid() && (err == nil || !asked):
	case r.Code == parse.CodePassive:
		e.announced(f, announcement{dir: expect.Reply, verb: Verb227, line: line, endpoint: r.Endpoint, asked: asked}, err)
	case r.Code == parse.CodeExtended:
		e.announced(f, announcement{dir: expect.Reply, verb: Verb229, line: line, endpoint: r.Endpoint, asked: asked}, err)
	}
}

// label makes the rules queue nothing more of a connection that is not read any more, as soon as
// there is nothing left that might have to be rendered again.
func (e *Engine) label(f *flow) {
	for d := range f.sides {
		if f.sides[d].edits.Len() > 0 {
			return
		}
	}
	f.labelled = true
	if e.config.OpaqueLabel == 0 || e.config.Monitor {
		return
	}
	if err := e.config.Conntrack.Update(&f.master, expect.Update{SetLabel: e.config.OpaqueLabel}); err != nil {
		e.tell(Event{Kind: StaysQueued, Master: &f.master, Err: err})
	}
}

// announcement is a line in which one side says where it listens.
type announcement struct {
	dir      expect.Direction
	verb     Verb
	line     parse.Line
	endpoint parse.Endpoint
	at       netip.AddrPort // the endpoint, with the side's own address if it has none
	asked    bool           // the other side has asked for it, or need not
}

// announced takes an announcement, or, with an error, what should have been one. If the endpoint
// may be opened, conntrack is told to expect the data connection, and the line is edited so that
// the other side learns where to connect to.
func (e *Engine) announced(f *flow, a announcement, err error) {
	ev := Event{Kind: Unreadable, Master: &f.master, Verb: a.verb, Line: bytes.TrimRight(a.line.Text, "\r\n"), Err: err}
	if err != nil {
		e.tell(ev)
		return
	}
	a.at = netip.AddrPortFrom(a.endpoint.Addr, a.endpoint.Port)
	if !a.at.Addr().IsValid() {
		a.at = netip.AddrPortFrom(f.master.Tuples[a.dir].Src.Addr(), a.at.Port())
	}
	e.stats.Endpoints[a.verb]++
	f.last = Last{Verb: a.verb, Announced: a.at.Port()}
	ev.Announced = a.at
	if r := e.judge(f, a); r != allowed {
		e.stats.Refused[r]++
		f.refused++
		f.last.Reason = r
		ev.Kind, ev.Reason, ev.Again = Refused, r, f.again(r)
		e.tell(ev)
		return
	}
	x := expect.For(&f.master, a.dir, a.at.Port())
	if !e.vouches(f, a.dir, a.at.Addr()) {
		x = expect.Elsewhere(&f.master, a.dir, a.at)
	}
	install := e.install
	if e.config.Monitor {
		install = e.wouldInstall
	}
	err = install(f, a, x)
	for try := 1; errors.Is(err, expect.ErrPortTaken) && x.NAT && try < expect.MaxTries; try++ {
		x = x.WithAnyPort()
		err = install(f, a, x)
	}
	if err != nil {
		e.stats.Failed++
		f.refused++
		f.last.Reason = failed
		ev.Kind, ev.Err, ev.Again = Failed, err, f.again(failed)
		e.tell(ev)
		return
	}
	ev.Kind, ev.Advertised, ev.Expected = Expected, e.told(f, a, x), x.Dst
	if e.config.Monitor {
		e.stats.WouldOpen++
		ev.Kind = WouldOpen
	} else {
		e.stats.Expectations++
	}
	f.expected++
	f.last.Advertised = ev.Advertised.Port()
	e.tell(ev)
}

// vouches reports whether addr is one that the side sending in direction dir may announce as its
// own.
func (e *Engine) vouches(f *flow, dir expect.Direction, addr netip.Addr) bool {
	return f.master.Vouches(dir, addr) || dir == expect.Reply && addr == e.config.Advertise.addr(&f.master)
}

// Why a line cannot be edited.
var (
	errLong  = fmt.Errorf("the line is longer than %d bytes", parse.MaxLine)
	errFixed = errors.New("the line has to keep its length, since the kernel does not adjust the sequence numbers of this connection")
	errGrown = errors.New("the packet would become too long for the way ahead")
	errGone  = errors.New("the line began in a segment that has been let go already")
)

// told returns what the other side is to be told where x is expected: only a server's own address can
// be another one elsewhere.
func (e *Engine) told(f *flow, a announcement, x expect.Expectation) netip.AddrPort {
	if a.dir == expect.Original || !e.vouches(f, a.dir, a.at.Addr()) {
		return x.Dst
	}
	return netip.AddrPortFrom(e.config.Advertise.to(&f.master, x.Dst.Addr()), x.Dst.Port())
}

// install has x expected and the line edited accordingly, both or neither.
func (e *Engine) install(f *flow, a announcement, x expect.Expectation) error {
	s := &f.sides[a.dir]
	if e.lean() {
		s.edits.Trim(maxLeanEdits - 1)
	}
	for {
		edits := s.edits.Len()
		resized, err := e.edit(s, a, e.told(f, a, x), f.mayResize)
		if err != nil {
			return err
		}
		u := e.update(f, a, s.edits.Len() > edits, resized)
		if err = e.config.Conntrack.Announce(&f.master, x, u); err == nil {
			f.marked = f.marked || u.SetLabel != 0
			if s.edits.Len() > edits {
				e.stats.Edits++
			}
			return nil
		}
		if s.edits.Len() > edits {
			s.edits.DropLast()
		}
		if !errors.Is(err, expect.ErrNoSeqAdj) || !f.mayResize {
			return err
		}
		f.mayResize = false
	}
}

// wouldInstall returns the error that install would return before it calls conntrack: the line cannot be
// edited. It changes nothing.
func (e *Engine) wouldInstall(f *flow, a announcement, x expect.Expectation) error {
	s := side{held: f.sides[a.dir].held, gone: a.line.Seq}
	_, err := e.edit(&s, a, e.told(f, a, x), f.mayResize)
	return err
}

// update returns what conntrack has to know of the line, which was edited, and changed its length,
// or not.
func (e *Engine) update(f *flow, a announcement, edited, resized bool) expect.Update {
	var u expect.Update
	if resized {
		position, before, after := f.sides[a.dir].edits.Adjustment()
		e.adjust = expect.SeqAdj{Position: uint32(position), Before: before, After: after}
		u.Dir, u.Adjust = a.dir, &e.adjust
	}
	if e.lean() && a.dir == expect.Reply {
		f.master.Apply(expect.Update{SetLabel: e.config.AskedLabel}) // as the rules did when the client asked
		u.ClearLabel = e.config.AskedLabel
		if edited && !f.marked {
			u.SetLabel = e.config.EditedLabel
		}
	}
	return u
}

// edit records the edit that makes the line announce to, and reports whether that changes its
// length. There is nothing to do where the line says so already, as a 229 does that keeps its
// port. Where the line may not be resized, a reply has text for people that can be shortened or padded.
func (e *Engine) edit(s *side, a announcement, to netip.AddrPort, mayResize bool) (resized bool, err error) {
	if to == a.at {
		return false, nil
	}
	span := a.endpoint.Span
	text := a.endpoint.AppendText(make([]byte, 0, span.Len()+8), to)
	reason := errGrown
	switch {
	case bytes.Equal(text, a.line.Text[span.Start:span.End]):
		return false, nil
	case len(text) == span.Len():
		return false, s.edit(a.line, span, text)
	case !mayResize:
		reason = errFixed
	case e.fits(s, len(text)-span.Len()):
		return true, s.edit(a.line, span, text)
	}
	if a.dir == expect.Original {
		return false, reason
	}
	start, text, ok := a.endpoint.AppendSameLength(text[:0], a.line.Text, to)
	if !ok {
		return false, fmt.Errorf("%w, and has too little text in front of the numbers to make room: "+
			"have the server announce the right address itself, or word its reply with more text", reason)
	}
	return false, s.edit(a.line, parse.Span{Start: start, End: span.End}, text)
}

// fits reports whether the packets that leave next may become n bytes longer. IPv4 can fragment
// them on their way; IPv6 cannot, but every link takes 1280 bytes (RFC 8200 section 5).
func (e *Engine) fits(s *side, n int) bool {
	const any4, any6 = MaxPacket, 1280
	longest := len(e.pkt.Bytes())
	for _, h := range s.held {
		longest = max(longest, len(h.pkt.Bytes()))
	}
	return n <= 0 || longest+n <= any6 || e.pkt.Is4() && longest+n <= any4
}

// edit records an edit of a line, if none of it has been let go yet.
func (s *side) edit(line parse.Line, span parse.Span, text []byte) error {
	at := line.Seq.Add(span.Start)
	if at.Before(s.gone) {
		return errGone
	}
	return s.edits.Add(at, bytes.Clone(line.Text[span.Start:span.End]), text)
}
