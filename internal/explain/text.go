package explain

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// The most lines of one packet, and characters of one line, that are shown.
const (
	maxLines = 8
	maxWidth = 200
)

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s in %s s from %s UTC on\n", count(r.packets, "packet"), seconds(r.length), r.start.UTC().Format("2006-01-02 15:04:05.000"))
	if r.short > 0 {
		fmt.Fprintf(&b, "Of %s the capture lacks even the headers: have it keep whole ones (tcpdump -s 0).\n", count(r.short, "packet"))
	}
	if r.broken {
		b.WriteString("The file ends within a packet: what captured it was killed, or is still at it.\n")
	}
	for i, used := range r.natUsed {
		if !used {
			fmt.Fprintf(&b, "--nat %s goes with no connection of which the capture has one side only.\n", r.nat[i])
		}
	}
	for _, c := range r.Connections {
		b.WriteByte('\n')
		c.writeText(&b, r)
	}
	b.WriteByte('\n')
	r.writeSummary(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (c *Connection) writeText(b *strings.Builder, r *Report) {
	fmt.Fprintf(b, "Connection %d, from %s s on: client %s, server %s\n", c.number, seconds(c.at),
		c.tuples[expect.Original].Src, c.tuples[expect.Original].Dst)
	for _, s := range c.circumstances() {
		fmt.Fprintf(b, "  %s\n", s)
	}
	b.WriteByte('\n')
	for _, s := range c.steps {
		c.writeStep(b, s)
	}
	if c.unread > 0 {
		fmt.Fprintf(b, "            (%s behind that, unread)\n", count(c.unread, "packet"))
	}
	c.writeData(b, r)
}

// circumstances say what is known of the connection, and of the way it was captured.
func (c *Connection) circumstances() []string {
	var says []string
	o, back := c.tuples[expect.Original], c.tuples[expect.Reply]
	var how string
	switch {
	case c.source == natSeen:
		how = "the capture has both sides of the router"
	case c.source == natTold && c.side == expect.Original:
		how = "as told; the capture has the client's side of the router"
	case c.source == natTold:
		how = "as told; the capture has the server's side of the router"
	}
	if o.Dst != back.Src {
		says = append(says, fmt.Sprintf("NAT: the server is %s, and the client knows it as %s (%s)", back.Src, o.Dst, how))
	}
	if o.Src != back.Dst {
		says = append(says, fmt.Sprintf("NAT: the client is %s, and the server knows it as %s (%s)", o.Src, back.Dst, how))
	}
	switch {
	case c.nat():
	case c.forwarded:
		says = append(says, "no NAT: the addresses are the same on both sides of the router")
	default:
		says = append(says, "one side only was captured, so that no NAT shows; if a router translates, say so with --nat REAL=TRANSLATED")
	}
	if !c.begun {
		says = append(says, "the connection is older than the capture: the helper is taken to have read its beginning")
	}
	switch {
	case !c.would:
	case c.showsNoHelper():
		says = append(says, "no helper was at work on the router: below is what nfq-ftphelper would do")
	default:
		says = append(says, "the capture does not show whether a helper was at work: below is what nfq-ftphelper would do")
	}
	return says
}

// arrows are the directions in which packets go.
var arrows = [2]string{expect.Original: "->", expect.Reply: "<-"}

// indent is that of what is said of a line.
const indent = "               "

func (c *Connection) writeStep(b *strings.Builder, s *Step) {
	texts := s.texts()
	for i, t := range texts {
		if i == 0 {
			fmt.Fprintf(b, "  %8s  %s %s\n", seconds(s.at), arrows[s.dir], t)
		} else {
			fmt.Fprintf(b, "%s%s\n", indent, t)
		}
	}
	for _, n := range c.notes(s) {
		fmt.Fprintf(b, "%s  %s\n", indent, n)
	}
}

// texts are the lines of a packet as they are shown; one at least.
func (s *Step) texts() []string {
	switch {
	case s.tls:
		return []string{fmt.Sprintf("(%d bytes of TLS)", s.bytes)}
	case s.again && len(s.lines) > 0:
		return []string{s.lines[0].String() + "  (sent again)"}
	case s.again:
		return []string{fmt.Sprintf("(%d bytes that have been sent before)", s.bytes)}
	}
	var texts []string
	for i, l := range s.lines {
		switch {
		case i == maxLines && len(s.lines) > maxLines+1:
			texts = append(texts, fmt.Sprintf("(%d more lines)", len(s.lines)-maxLines))
		case i > maxLines && len(s.lines) > maxLines+1:
		case i == 0 && s.middle:
			texts = append(texts, "(the end of a line)")
		default:
			texts = append(texts, l.String())
		}
	}
	if len(s.part) > 0 {
		part := s.part[:len(s.part)-min(s.cut, len(s.part))]
		texts = append(texts, show(part, s.dir)+"…")
	}
	if len(texts) == 0 {
		texts = append(texts, fmt.Sprintf("(%d bytes)", s.bytes))
	}
	return texts
}

// String returns the line as it is shown.
func (l *Line) String() string {
	t := show(l.text[:len(l.text)-l.cut], l.dir)
	if l.cut > 0 {
		t += "…"
	}
	return t
}

// notes say what the helper does with a packet, and what was strange about it.
func (c *Connection) notes(s *Step) []string {
	var notes []string
	if s.gap > 0 {
		notes = append(notes, fmt.Sprintf("%s before it had not come: lost, or overtaken", count(s.gap, "byte")))
	}
	if s.cut > 0 {
		notes = append(notes, fmt.Sprintf("the capture lacks its last %s", count(s.cut, "byte")))
	}
	if s.held {
		why := "the rest of its line"
		if s.gap > 0 {
			why = "what is missing"
		}
		if s.vain {
			why += ", in vain"
		}
		notes = append(notes, fmt.Sprintf("%s %d ms for %s", c.verb("waits"), (s.left-s.at).Milliseconds(), why))
	} else if len(s.part) > 0 {
		notes = append(notes, "its last line is not whole")
	}
	if s.again {
		return notes
	}
	for _, l := range s.lines {
		notes = append(notes, c.outcome(l)...)
	}
	if c.opaque == s {
		notes = append(notes, map[engine.Kind]string{
			engine.Encrypted: "encrypted from here on, which no helper can read: give the server a fixed range of passive ports, and let that range in",
			engine.NotFTP:    "this does not begin as FTP: the helper leaves the connection alone from here on",
			engine.Nonsense:  "this cannot be FTP: the helper leaves the connection alone from here on",
		}[c.why])
	}
	return notes
}

// verb returns what the helper does, "expects", as a condition if nothing shows a helper at work:
// "would expect".
func (c *Connection) verb(does string) string {
	if !c.would {
		return does
	}
	return "would " + strings.TrimSuffix(does, "s")
}

// outcome says what becomes of a line.
func (c *Connection) outcome(l *Line) []string {
	var says []string
	if l.odd != nil {
		says = append(says, "odd: "+l.odd.Error())
	}
	if l.event == nil {
		if l.sent != nil && !bytes.Equal(l.sent, l.text) {
			says = append(says, "passes", "the router sent otherwise: "+show(l.sent, l.dir), "its helper rewrites what this one does not read")
		}
		return says
	}
	switch l.event.Kind {
	case engine.Refused:
		says = append(says, fmt.Sprintf("%s %s: %s", c.verb("refuses"), l.event.Announced, l.event.Reason.Sentence()))
		if m := mend(l, c); m != "" {
			says = append(says, "=> "+m)
		}
	case engine.Failed:
		says = append(says, fmt.Sprintf("cannot help %s: %v", l.event.Announced, l.event.Err))
	case engine.Unreadable:
		says = append(says, fmt.Sprintf("passes: %v", l.event.Err))
	case engine.Expected:
		says = append(says, c.verb("expects")+" "+l.x.String())
		if l.rewritten() {
			says = append(says, c.verb("rewrites")+": "+show(l.ours, l.dir))
		}
		if b := l.x.blocker; b != nil {
			says = append(says, fmt.Sprintf("port %d is taken: %s of connection %d announced it, too", b.Dst.Port(), b.line.name(), b.connection.number))
		}
	}
	return append(says, l.comparison()...)
}

// comparison says whether the router sent what the helper sends.
func (l *Line) comparison() []string {
	switch {
	case l.sent == nil || bytes.Equal(l.sent, l.ours) && !l.rewritten():
		return nil
	case bytes.Equal(l.sent, l.ours):
		return []string{"the router sent the same"}
	case bytes.Equal(l.sent, l.text):
		return []string{"the router sent it as it was: no helper rewrote it there"}
	case sameMeaning(l.sent, l.ours):
		return []string{"the router sent the same in other words: " + show(l.sent, l.dir)}
	}
	return []string{"the router sent otherwise: " + show(l.sent, l.dir), l.difference()}
}

// difference says why the router sent another line than the helper does, as far as the two show it.
func (l *Line) difference() string {
	came, ours, sent := endpointOf(l.text), endpointOf(l.ours), endpointOf(l.sent)
	switch {
	case l.event.Kind == engine.Refused:
		return "its helper does not refuse this, as the kernel's would not"
	case l.event.Kind == engine.Failed:
		return "its helper could rewrite what this one could not"
	case sent.Port() == 0:
		return "that announces no address and port that can be read"
	case sent.Addr() != ours.Addr() && sent.Addr() == came.Addr():
		return fmt.Sprintf("port %d in place of %d, but the address as it came: the router translates the port of data connections, not their address", sent.Port(), came.Port())
	case sent.Addr() != ours.Addr():
		return fmt.Sprintf("address %s in place of %s: its helper has another --advertise, or another router between the two sides translates, too", sent.Addr(), ours.Addr())
	case l.x != nil && l.x.blocker != nil && sent.Port() != came.Port():
		return fmt.Sprintf("port %d is taken, so that each helper chooses a free one: %d there, %d here", came.Port(), sent.Port(), ours.Port())
	case sent.Port() != came.Port():
		return fmt.Sprintf("port %d in place of %d: that was taken on the router, by a data connection or an expectation which the capture does not have", sent.Port(), came.Port())
	}
	return fmt.Sprintf("its helper kept port %d, which is taken here", sent.Port())
}

// sameMeaning reports whether two lines are the same, or announce the same in two ways.
func sameMeaning(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	verb := endpointVerb(a)
	return verb != "" && verb == endpointVerb(b) && endpointOf(a).Port() != 0 && endpointOf(a) == endpointOf(b)
}

// endpointOf is what a line announces.
func endpointOf(text []byte) netip.AddrPort {
	r, _ := parse.ParseReply(text)
	c, _ := parse.ParseCommand(text)
	if e := c.Endpoint; e.IsValid() {
		return netip.AddrPortFrom(e.Addr, e.Port)
	}
	return netip.AddrPortFrom(r.Endpoint.Addr, r.Endpoint.Port)
}

// String says which connection is expected.
func (x *Expectation) String() string {
	t := fmt.Sprintf("a connection from %s to %s", x.Src, x.Dst)
	if src, dst := x.translated(); src != x.Src && dst != x.Dst {
		t += fmt.Sprintf(", translated to one from %s to %s", src, dst)
	} else if dst != x.Dst {
		t += fmt.Sprintf(", translated to %s", dst)
	} else if src != x.Src {
		t += fmt.Sprintf(", translated to one from %s", src)
	}
	return t
}

func (c *Connection) writeData(b *strings.Builder, r *Report) {
	b.WriteString("\n  Data connections:\n")
	for _, d := range c.data {
		fmt.Fprintf(b, "  %8s  %s\n", seconds(d.at), d)
		if d.x != nil {
			fmt.Fprintf(b, "            %s: %s announced it\n", c.isExpected(), d.x.line.name())
		} else {
			fmt.Fprintf(b, "            NOT EXPECTED: %s\n", d.diagnosis)
		}
		fmt.Fprintf(b, "            %s\n", d.fate())
		if d.mend != "" {
			fmt.Fprintf(b, "            => %s\n", d.mend)
		}
	}
	for _, x := range c.expected {
		if x.fulfilled == nil && !x.missed && r.data {
			fmt.Fprintf(b, "  %8s  none came for %s (%s)\n", "", x.line.name(), x.Dst)
		}
	}
	switch {
	case !r.data:
		b.WriteString("            the capture has none: it holds the control ports only, or nothing came\n")
	case len(c.data) == 0 && len(c.expected) == 0:
		b.WriteString("            none came\n")
	}
}

// isExpected returns "expected", or "would be expected" if nothing shows a helper at work.
func (c *Connection) isExpected() string {
	if c.would {
		return "would be expected"
	}
	return "expected"
}

// String says from where the connection goes to where, before NAT and behind it.
func (d *Data) String() string {
	t := fmt.Sprintf("%s -> %s", d.tuple.Src, d.tuple.Dst)
	if d.active {
		t = fmt.Sprintf("%s -> %s (the server opens it)", d.tuple.Src, d.tuple.Dst)
	}
	if d.behind != (expect.Tuple{}) {
		t += fmt.Sprintf(", behind the router %s -> %s", d.behind.Src, d.behind.Dst)
	}
	return t
}

// fate says what became of the connection.
func (d *Data) fate() string {
	t := "not answered"
	switch {
	case d.accepted:
		return "accepted"
	case d.stopped() && d.refused:
		return "the router did not let it through, and refused it with RST"
	case d.stopped():
		t = "the router did not let it through"
	case d.refused:
		return "refused with RST"
	}
	if d.tries > 1 {
		t += fmt.Sprintf(", though asked %d times", d.tries)
	}
	return t
}

// writeSummary counts.
func (r *Report) writeSummary(b *strings.Builder) {
	s := r.summary()
	isExpected := (&Connection{would: !slices.ContainsFunc(r.Connections, func(c *Connection) bool { return !c.would })}).isExpected()
	fmt.Fprintf(b, "Summary: %s", count(s.Connections, "control connection"))
	if s.Encrypted > 0 {
		fmt.Fprintf(b, ", %d of them encrypted", s.Encrypted)
	}
	fmt.Fprintf(b, ".\n%s announced", count(s.Announced, "endpoint"))
	if s.Announced > 0 {
		fmt.Fprintf(b, ": %d %s, %d refused, %d could not be helped. %s to rewrite", s.Expected, isExpected, s.Refused, s.Failed, count(s.Rewritten, "line"))
		if s.RouterSame+s.RouterOther > 0 {
			fmt.Fprintf(b, "; the router sent the same %s, and something else %s", times(s.RouterSame), times(s.RouterOther))
		}
	}
	fmt.Fprintf(b, ".\n%s", count(s.Data, "data connection"))
	if s.Data > 0 {
		fmt.Fprintf(b, ": %d %s, %d not", s.Data-s.DataUnexpected, isExpected, s.DataUnexpected)
		if s.DataStopped > 0 {
			fmt.Fprintf(b, "; the router did not let %d of them through", s.DataStopped)
		}
	}
	b.WriteString(".\n")
}

// count writes a number of things.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// show makes a line one that a terminal can have: without control characters, and without what
// is nobody's business.
func show(text []byte, dir expect.Direction) string {
	if dir == expect.Original {
		text = hideSecret(text)
	}
	var b strings.Builder
	for n := 0; len(text) > 0; n++ {
		if n == maxWidth {
			b.WriteRune('…')
			break
		}
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size <= 1:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case r == '\t':
			b.WriteString(`\t`)
		case !unicode.IsPrint(r):
			for _, c := range text[:size] {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		default:
			b.WriteRune(r)
		}
		text = text[size:]
	}
	return b.String()
}

// hideSecret hides what is said in PASS and ACCT. A telnet client may put something in front.
func hideSecret(text []byte) []byte {
	const iac, longest = 0xff, 16
	first := len(text) - len(bytes.TrimLeft(text, " \t"))
	last := first
	if first < len(text) && text[first] == iac {
		last += longest
	}
	for i := first; i <= last && i+5 <= len(text); i++ {
		if v := text[i : i+4]; bytes.EqualFold(v, []byte("PASS")) || bytes.EqualFold(v, []byte("ACCT")) {
			return append(bytes.Clone(text[:i+4]), " ***"...)
		}
	}
	return text
}
