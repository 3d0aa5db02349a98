package explain

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// maxDrawn is how many connections a drawing has before it leaves out some.
const maxDrawn = 50

// Ladder draws connections as ladder diagrams, in SVG: the one with a number, as the text has it, or with
// 0 all of them, one below the other. If there are more than a drawing has room for, those that announce
// data connections come first. It returns an error if there is none of that number.
func (r *Report) Ladder(number int) ([]byte, error) {
	if number != 0 {
		i := slices.IndexFunc(r.Connections, func(c *Connection) bool { return c.number == number })
		if i < 0 {
			return nil, fmt.Errorf("connection %d cannot be drawn: the capture has %s", number, count(len(r.Connections), "control connection"))
		}
		one := r.Connections[i].ladder()
		return one.svg(), nil
	}
	drawn := r.Connections
	if len(drawn) > maxDrawn {
		drawn = slices.Clone(drawn)
		slices.SortStableFunc(drawn, func(a, b *Connection) int {
			return cmp.Compare(map[bool]int{true: 0, false: 1}[a.HasEndpoint()], map[bool]int{true: 0, false: 1}[b.HasEndpoint()])
		})
		drawn = drawn[:maxDrawn]
		slices.SortFunc(drawn, func(a, b *Connection) int { return cmp.Compare(a.number, b.number) })
	}
	var all picture
	for _, c := range drawn {
		all.below(c.ladder())
	}
	if n := len(r.Connections) - len(drawn); n > 0 {
		note := picture{width: all.width, height: 2 * margin}
		writeText(&note.content, margin, margin+5, "start", 13, ink, "normal", fmt.Sprintf("%s left out: draw one with --connection, or those of a client with --client", count(n, "connection")))
		all.below(note)
	}
	return all.svg(), nil
}

// picture is a part of a drawing, or a whole one.
type picture struct {
	content       bytes.Buffer
	width, height int
	parts         int
}

// below adds another picture below what there is.
func (p *picture) below(other picture) {
	if p.parts++; p.parts == 1 {
		*p = picture{other.content, other.width, other.height, 1}
		return
	}
	fmt.Fprintf(&p.content, `<g transform="translate(0 %d)">`+"\n%s</g>\n", p.height+gap, other.content.Bytes())
	p.height += gap + other.height
	p.width = max(p.width, other.width)
}

// svg is the picture as a file.
func (p *picture) svg() []byte {
	var svg bytes.Buffer
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif">`+"\n",
		p.width, p.height, p.width, p.height)
	svg.Write(p.content.Bytes())
	svg.WriteString("</svg>\n")
	return svg.Bytes()
}

// Measures of the drawing, in pixels.
const (
	margin    = 20
	gap       = 10   // between two connections
	lanesFrom = 170  // the client's line; in front of it are the times
	laneGap   = 400  // with a router in the middle
	wideGap   = 620  // without
	glyph     = 6.63 // width of a letter of the lines, of 11 pixels
	prose     = 5.7  // of the other letters, on the average at most
	noteStep  = 15
	dot       = 5  // where a line is rewritten
	roomLane  = 55 // letters between two lines with a router in the middle
)

// Colours, which people with any kind of sight can tell apart (Okabe and Ito), dark enough for text.
const (
	ink     = "#1a1a1a"
	faint   = "#6b6b6b"
	rail    = "#b0b0b0"
	oldInk  = "#b3400a"
	newInk  = "#00664b"
	dataInk = "#0072b2"
	lostInk = "#c4500a"
)

// drawing is a ladder diagram that is being drawn, from top to bottom.
type drawing struct {
	b      strings.Builder
	c      *Connection
	router bool // there is a line for it
	client int  // x of the lines
	middle int
	server int
	y      int
}

// maxRows is how many rows a diagram has before it leaves out what matters least.
const maxRows = 60

// row is a message or a data connection, or stands for messages that were left out.
type row struct {
	at    time.Duration
	step  *Step
	data  *Data
	count int
}

func (c *Connection) ladder() picture {
	d := &drawing{c: c, client: lanesFrom, middle: lanesFrom + laneGap, server: lanesFrom + 2*laneGap}
	d.router = c.nat() || c.rewrites() || slices.ContainsFunc(c.data, (*Data).stopped)
	if !d.router {
		d.server = lanesFrom + wideGap
		d.middle = (d.client + d.server) / 2
	}
	d.y = margin + 18
	d.text(margin, d.y, "start", 15, ink, "bold", fmt.Sprintf("FTP control connection %d: %s to %s", c.number, c.tuples[expect.Original].Src, c.tuples[expect.Original].Dst))
	boxes := d.boxes()
	top := d.y + 14
	for _, b := range boxes {
		d.y = max(d.y, top+b.height())
	}
	bottomOfBoxes := d.y
	d.y += 20
	for _, r := range c.rows() {
		switch {
		case r.step != nil:
			d.message(r.step)
		case r.data != nil:
			d.dataConnection(r.data)
		default:
			d.y += 18
			d.rowText(d.middle, d.y, faint, fmt.Sprintf("(%s left out)", count(r.count, "message")))
			d.y += 8
		}
	}
	bottom := d.y + 6
	d.y += 28
	d.legend()
	p := picture{width: d.server + lanesFrom - margin, height: d.y + margin}
	svg := &p.content
	fmt.Fprintf(svg, `<rect x="0.5" y="0.5" width="%d" height="%d" rx="8" fill="#ffffff" stroke="#d0d0d0"/>`+"\n", p.width-1, p.height-1)
	for _, b := range boxes {
		fmt.Fprintf(svg, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="1.5"/>`+"\n", b.x, bottomOfBoxes, b.x, bottom, rail)
		b.draw(svg, top, bottomOfBoxes-top)
	}
	svg.WriteString(d.b.String())
	return p
}

// rewrites reports whether the helper changes any line of the connection.
func (c *Connection) rewrites() bool {
	return slices.ContainsFunc(slices.Concat(c.lines[:]...), (*Line).rewritten)
}

// rows are what is drawn, in the order of time.
func (c *Connection) rows() []row {
	var rows []row
	for _, s := range c.steps {
		if !s.again {
			rows = append(rows, row{at: s.at, step: s})
		}
	}
	for _, d := range c.data {
		rows = append(rows, row{at: d.at, data: d})
	}
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(a.at, b.at) })
	if len(rows) <= maxRows {
		return rows
	}
	var short []row
	for _, r := range rows {
		switch n := len(short); {
		case r.data != nil || r.step.matters(c):
			short = append(short, r)
		case n > 0 && short[n-1].count > 0:
			short[n-1].count++
		default:
			short = append(short, row{at: r.at, count: 1})
		}
	}
	return short
}

// matters reports whether a packet has to do with data connections.
func (s *Step) matters(c *Connection) bool {
	return s == c.opaque || slices.ContainsFunc(s.lines, func(l *Line) bool {
		cmd, _ := parse.ParseCommand(l.text)
		return l.event != nil || l.dir == expect.Original && cmd.Verb.AsksServer()
	})
}

// box names one of the vertical lines.
type box struct {
	x     int
	name  string
	lines []string
}

func (b box) height() int { return 30 + 14*len(b.lines) }

func (b box) draw(w io.Writer, y, height int) {
	width := 200
	for _, l := range b.lines {
		width = max(width, int(float64(utf8.RuneCountInString(l))*glyph)+20)
	}
	fmt.Fprintf(w, `<rect x="%d" y="%d" width="%d" height="%d" rx="5" fill="#f4f6f8" stroke="#7a7a7a"/>`+"\n", b.x-width/2, y, width, height)
	y += (height-b.height())/2 + 19
	writeText(w, b.x, y, "middle", 13, ink, "bold", b.name)
	for _, l := range b.lines {
		y += 14
		writeMono(w, b.x, y+2, "middle", ink, l)
	}
}

// boxes name the client, the router if it is drawn, and the server.
func (d *drawing) boxes() []box {
	o, back := d.c.tuples[expect.Original], d.c.tuples[expect.Reply]
	boxes := []box{{d.client, "client", []string{o.Src.String()}}, {d.server, "server", []string{back.Src.String()}}}
	if !d.router {
		return boxes
	}
	b := box{x: d.middle, name: "NAT router"}
	translation := func(whose string, outside, inside netip.AddrPort) {
		if outside == inside {
			return
		}
		first, second := whose+" "+outside.Addr().String(), "= "+inside.Addr().String()
		if len(first)+len(second) < roomLane-10 {
			b.lines = append(b.lines, first+" "+second)
		} else {
			b.lines = append(b.lines, first, second)
		}
	}
	translation("server", o.Dst, back.Src)
	translation("client", back.Dst, o.Src)
	switch {
	case len(b.lines) > 0:
	case d.c.forwarded:
		b.name, b.lines = "router", []string{"no NAT"}
	default:
		b.name, b.lines = "helper", []string{"no NAT"}
	}
	return append(boxes, b)
}

// message draws a packet as an arrow, or as two where the helper changes what it says.
func (d *drawing) message(s *Step) {
	from, to := d.client, d.server
	if s.dir == expect.Reply {
		from, to = to, from
	}
	d.y += 16
	d.time(s.at)
	var changed *Line
	if i := slices.IndexFunc(s.lines, (*Line).rewritten); i >= 0 {
		changed = s.lines[i]
	}
	if changed != nil {
		d.changed(changed, from, d.middle, to)
	} else {
		texts := s.texts()
		t := texts[0]
		if len(texts) > 1 {
			t += fmt.Sprintf("  (and %s)", count(len(texts)-1, "more line"))
		}
		room := int(float64(d.server-d.client-60) / glyph)
		d.rowText((from+to)/2, d.y, ink, shorten(t, room))
		d.arrow(from, to, d.y+7, 1.4, ink, "")
	}
	d.y += 10
	for _, l := range s.lines {
		d.lineNotes(l)
	}
	if s == d.c.opaque {
		d.note(map[engine.Kind]string{
			engine.Encrypted: "encrypted from here on: nothing can be read",
			engine.NotFTP:    "this does not begin as FTP: nothing is read from here on",
			engine.Nonsense:  "this cannot be FTP: nothing is read from here on",
		}[d.c.why], lostInk)
	}
}

// changed draws a line that the helper rewrites: as it comes, and as it leaves. If the capture has
// what the router sent instead, that is what leaves, and a note says what the helper would send.
func (d *drawing) changed(l *Line, from, via, to int) {
	leaves, colour, mark := l.ours, newInk, `text-decoration="line-through"`
	if l.otherwise() {
		leaves, colour, mark = l.sent, lostInk, ""
	}
	d.endpoint((from+via)/2, l.text, roomLane, oldInk, mark)
	edge := via - dot
	if from > via {
		edge = via + dot
	}
	d.arrow(from, edge, d.y+7, 1.4, ink, "")
	d.endpoint((via+to)/2, leaves, roomLane, colour, `font-weight="bold"`)
	d.arrow(via, to, d.y+7, 1.4, colour, "")
	fmt.Fprintf(&d.b, `<circle cx="%d" cy="%d" r="%d" fill="%s"/>`+"\n", via, d.y+7, dot, colour)
}

// otherwise reports whether the router sent something else than the helper would.
func (l *Line) otherwise() bool { return l.sent != nil && !sameMeaning(l.sent, l.ours) }

// endpoint writes a line with its endpoint marked.
func (d *drawing) endpoint(x int, text []byte, room int, colour, mark string) {
	before, at, after := splitEndpoint(text)
	if n := room - utf8.RuneCountInString(at); utf8.RuneCountInString(before)+utf8.RuneCountInString(after) > n {
		after = shorten(after, 2)
		before = shorten(before, max(n-utf8.RuneCountInString(after), 4))
	}
	fmt.Fprintf(&d.b, `<text x="%d" y="%d" text-anchor="middle" font-size="11" font-family="%s" fill="%s" xml:space="preserve">%s<tspan fill="%s" %s>%s</tspan>%s</text>`+"\n",
		x, d.y, monospace, ink, html.EscapeString(before), colour, mark, html.EscapeString(at), html.EscapeString(after))
}

// splitEndpoint returns what stands in front of the endpoint of a line, the endpoint, and what
// stands behind it, as they are shown.
func splitEndpoint(text []byte) (before, at, after string) {
	dir := expect.Reply
	r, _ := parse.ParseReply(text)
	e := r.Endpoint
	if !e.IsValid() {
		c, _ := parse.ParseCommand(text)
		e, dir = c.Endpoint, expect.Original
	}
	if !e.IsValid() {
		return show(text, dir), "", ""
	}
	return show(text[:e.Span.Start], dir), show(text[e.Span.Start:e.Span.End], dir), show(text[e.Span.End:], dir)
}

// lineNotes say below a line what it leads to.
func (d *drawing) lineNotes(l *Line) {
	if l.event == nil {
		return
	}
	switch l.event.Kind {
	case engine.Expected:
		d.note(fmt.Sprintf("%s: %s to %s", d.c.isExpected(), l.x.Src, l.x.Dst), newInk)
	case engine.Refused:
		refused := "refused"
		if d.c.would {
			refused = "would be refused"
		}
		d.note(fmt.Sprintf("%s %s: %s", l.event.Announced, refused, l.event.Reason.Sentence()), lostInk)
	case engine.Failed:
		d.note(fmt.Sprintf("%s cannot be helped: %v", l.event.Announced, l.event.Err), lostInk)
	case engine.Unreadable:
		d.note(l.event.Err.Error(), lostInk)
	}
	if l.otherwise() {
		if l.rewritten() {
			d.note("the helper would send: "+show(l.ours, l.dir), newInk)
		}
		for _, t := range l.comparison() {
			d.note(t, lostInk)
		}
	}
}

// note writes below an arrow, in as many lines as it takes.
func (d *drawing) note(t, colour string) {
	for _, t := range wrap(t, int(float64(d.server-d.client-40)/prose)) {
		d.y += noteStep - 1
		d.backed(d.middle, d.y, prose, t, func(t string) {
			d.text(d.middle, d.y, "middle", 11, colour, "normal", t)
		})
	}
	d.y += 2
}

// dataConnection draws a thick arrow, in the direction in which the connection is opened.
func (d *drawing) dataConnection(c *Data) {
	from, to := d.client, d.server
	if c.active {
		from, to = to, from
	}
	colour, dash := dataInk, ""
	if c.x == nil {
		colour, dash = lostInk, "9 5"
	}
	d.y += 20
	d.time(c.at)
	const thick = 4.5
	near, far := ends(c.tuple), ends(c.behind)
	switch {
	case !d.router:
		d.rowText((from+to)/2, d.y, colour, near)
		d.arrow(from, to, d.y+9, thick, colour, dash)
	case c.stopped():
		d.mono((from+d.middle)/2, d.y, "middle", colour, shorten(near, roomLane))
		stop := d.middle + 14
		if from < to {
			stop = d.middle - 14
		}
		d.arrow(from, stop, d.y+9, thick, colour, dash)
		fmt.Fprintf(&d.b, `<path d="M%d %d l14 14 m0 -14 l-14 14" stroke="%s" stroke-width="3.5" fill="none"/>`+"\n", d.middle-7, d.y+2, lostInk)
	case c.behind == (expect.Tuple{}):
		d.rowText((from+to)/2, d.y, colour, near)
		d.arrow(from, to, d.y+9, thick, colour, dash)
	default:
		d.mono((from+d.middle)/2, d.y, "middle", colour, shorten(near, roomLane))
		d.mono((d.middle+to)/2, d.y, "middle", colour, shorten(far, roomLane))
		d.arrow(from, d.middle, d.y+9, thick, colour, dash)
		d.arrow(d.middle, to, d.y+9, thick, colour, dash)
	}
	d.y += 14
	t := "data connection, not expected: " + c.diagnosis
	if c.x != nil {
		t = fmt.Sprintf("data connection, as the %s announced", endpointVerb(c.x.line.text))
	}
	if !c.accepted {
		t += "; " + c.fate()
	}
	d.note(t, colour)
	d.y += 4
}

// ends writes from where to where a connection goes; the ports alone if the addresses are long.
func ends(t expect.Tuple) string {
	s := fmt.Sprintf("%s → %s", t.Src, t.Dst)
	if utf8.RuneCountInString(s) > roomLane {
		return fmt.Sprintf("port %d → port %d", t.Src.Port(), t.Dst.Port())
	}
	return s
}

// arrow draws one from x to another.
func (d *drawing) arrow(from, to, y int, thick float64, colour, dash string) {
	length, half := 9.0, 4.0
	if thick > 2 {
		length, half = 15, 8
	}
	tip, base := float64(to), float64(to)-length
	if to < from {
		base = tip + length
	}
	if dash != "" {
		dash = fmt.Sprintf(` stroke-dasharray="%s"`, dash)
	}
	fmt.Fprintf(&d.b, `<line x1="%d" y1="%d" x2="%g" y2="%d" stroke="%s" stroke-width="%g"%s/>`, from, y, base, y, colour, thick, dash)
	fmt.Fprintf(&d.b, `<polygon points="%g,%d %g,%g %g,%g" fill="%s"/>`+"\n", tip, y, base, float64(y)-half, base, float64(y)+half, colour)
}

const monospace = "'DejaVu Sans Mono', 'Liberation Mono', Menlo, Consolas, monospace"

// rowText writes text that stands in the way of the router's line.
func (d *drawing) rowText(x, y int, colour, t string) {
	d.backed(x, y, glyph, t, func(t string) { d.mono(x, y, "middle", colour, t) })
}

// backed paints the ground white before text is written there.
func (d *drawing) backed(x, y int, letter float64, t string, write func(string)) {
	if d.router {
		width := int(float64(utf8.RuneCountInString(t))*letter) + 8
		fmt.Fprintf(&d.b, `<rect x="%d" y="%d" width="%d" height="14" fill="#ffffff"/>`+"\n", x-width/2, y-11, width)
	}
	write(t)
}

func (d *drawing) time(at time.Duration) {
	d.text(margin+52, d.y+10, "end", 10, faint, "normal", seconds(at)+" s")
}

func (d *drawing) mono(x, y int, anchor, colour, t string) { writeMono(&d.b, x, y, anchor, colour, t) }

func (d *drawing) text(x, y int, anchor string, size int, colour, weight, t string) {
	writeText(&d.b, x, y, anchor, size, colour, weight, t)
}

func writeMono(w io.Writer, x, y int, anchor, colour, t string) {
	fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="%s" font-size="11" font-family="%s" fill="%s" xml:space="preserve">%s</text>`+"\n",
		x, y, anchor, monospace, colour, html.EscapeString(t))
}

func writeText(w io.Writer, x, y int, anchor string, size int, colour, weight, t string) {
	fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="%s" font-size="%d" font-weight="%s" fill="%s">%s</text>`+"\n",
		x, y, anchor, size, weight, colour, html.EscapeString(t))
}

// legend says what the marks mean, of those that are there.
func (d *drawing) legend() {
	x := margin
	item := func(width int, draw func(x int), t string) {
		draw(x)
		d.text(x+width+6, d.y, "start", 11, faint, "normal", t)
		x += width + 30 + int(float64(len(t))*prose)
	}
	if d.c.rewrites() {
		item(42, func(x int) {
			fmt.Fprintf(&d.b, `<text x="%d" y="%d" font-size="11" font-family="%s" fill="%s" text-decoration="line-through">1,2,3</text>`+"\n", x, d.y, monospace, oldInk)
		}, "what the sender wrote")
		item(42, func(x int) {
			fmt.Fprintf(&d.b, `<text x="%d" y="%d" font-size="11" font-family="%s" fill="%s" font-weight="bold">4,5,6</text>`+"\n", x, d.y, monospace, newInk)
		}, "what the helper would make of it")
	}
	if slices.ContainsFunc(d.c.data, func(c *Data) bool { return c.x != nil }) {
		item(40, func(x int) { d.arrow(x, x+40, d.y-4, 4.5, dataInk, "") }, map[bool]string{true: "data connection that would be expected", false: "data connection that is expected"}[d.c.would])
	}
	if slices.ContainsFunc(d.c.data, func(c *Data) bool { return c.x == nil }) {
		item(40, func(x int) { d.arrow(x, x+40, d.y-4, 4.5, lostInk, "9 5") }, "data connection that is not")
	}
}

// wrap cuts text into lines of so many letters at most, between words.
func wrap(t string, n int) []string {
	var lines []string
	for word := range strings.FieldsSeq(t) {
		last := len(lines) - 1
		if last < 0 || utf8.RuneCountInString(lines[last])+1+utf8.RuneCountInString(word) > n {
			lines = append(lines, shorten(word, n))
		} else {
			lines[last] += " " + word
		}
	}
	return lines
}

// shorten cuts text to so many letters, with an ellipsis.
func shorten(t string, n int) string {
	if utf8.RuneCountInString(t) <= n {
		return t
	}
	return string([]rune(t)[:max(n-1, 0)]) + "…"
}
