package top

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
)

// The colours are those of the terminal's palette, so that they suit its background.
var (
	plain    = lipgloss.NewStyle()
	bold     = plain.Bold(true)
	faint    = plain.Faint(true)
	good     = plain.Foreground(lipgloss.Green)
	warning  = plain.Foreground(lipgloss.Yellow)
	bad      = plain.Foreground(lipgloss.Red).Bold(true)
	heading  = plain.Reverse(true)
	selected = plain.Bold(true).Reverse(true)
)

const (
	headLines = 4 // above the list
	footLines = 1 // below it
)

// rows returns the number of connections on the screen.
func (m *model) rows() int { return max(1, m.height-headLines-footLines) }

// View implements tea.Model.
func (m *model) View() tea.View {
	lines := m.head()
	switch {
	case m.help:
		lines = append(lines, m.helpLines()...)
	case m.detail:
		lines = append(lines, m.detailLines()...)
	default:
		lines = append(lines, m.listLines()...)
	}
	for len(lines) < m.height-footLines {
		lines = append(lines, "")
	}
	lines = append(lines[:max(0, m.height-footLines)], m.foot())
	for i, line := range lines {
		lines[i] = ansi.Truncate(line, m.width, "…")
	}
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true
	v.WindowTitle = "nfq-ftphelper top"
	return v
}

// head returns the lines above the list: the daemon's state and counters.
func (m *model) head() []string {
	state := faint.Render("waiting for the daemon")
	var c, before counters
	var seconds float64
	if n := len(m.answers); n > 0 {
		c, before = m.answers[n-1].counters, m.answers[max(0, n-4)].counters
		seconds = m.answers[n-1].at.Sub(m.answers[max(0, n-4)].at).Seconds()
		if state = good.Render("ready"); !c.ready {
			state = bad.Render("NOT READY")
		}
	}
	if m.err != nil {
		state = bad.Render("NO ANSWER")
	}
	left := bold.Render("nfq-ftphelper") + " " + m.version + "  " + state + "  " + m.count()
	right := ""
	if !m.clock.IsZero() {
		right = m.clock.Format("15:04:05")
	}
	if m.paused {
		right = warning.Render("PAUSED") + "  " + right
	}
	perSecond := func(name string, to, from float64, style lipgloss.Style) string {
		value := rate(0)
		if seconds > 0 {
			value = rate((to - from) / seconds)
		}
		if value == "0" {
			style = plain
		}
		return fmt.Sprintf("%s %s%s", faint.Render(name), style.Render(fmt.Sprintf("%5s", value)), faint.Render("/s"))
	}
	counter := func(name string, n float64, known bool, style lipgloss.Style) string {
		value := "–"
		if known {
			value = fmt.Sprintf("%.0f", n)
		}
		if n == 0 {
			style = plain
		}
		return fmt.Sprintf("%s %s", faint.Render(name), style.Render(value))
	}
	handling := "–"
	if len(m.answers) > 1 {
		first := m.answers[0].counters
		p50, ok := quantile(0.5, first, c)
		if p99, _ := quantile(0.99, first, c); ok {
			handling = fmt.Sprintf("p50 %s, p99 %s", p50, p99)
		}
	}
	return []string{
		m.justify(left, right),
		strings.Join([]string{
			perSecond("packets", c.packets, before.packets, bold), perSecond("transfers", c.transfers, before.transfers, bold),
			perSecond("refused", c.refused, before.refused, warning), perSecond("failed", c.failed, before.failed, bad),
		}, "   "),
		strings.Join([]string{
			counter("waiting", c.waiting, c.hasKernel, warning), counter("dropped", c.dropped, c.hasKernel, bad),
			counter("overflows", c.overflows, len(m.answers) > 0, bad), faint.Render("time per packet ") + handling,
		}, " · "),
	}
}

// justify puts two texts at the two ends of a line.
func (m *model) justify(left, right string) string {
	return left + strings.Repeat(" ", max(1, m.width-lipgloss.Width(left)-lipgloss.Width(right))) + right
}

// foot returns the last line: keys, or an error.
func (m *model) foot() string {
	keys := func(pairs ...string) string {
		var b strings.Builder
		for i := 0; i < len(pairs); i += 2 {
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(bold.Render(pairs[i]) + " " + faint.Render(pairs[i+1]))
		}
		return b.String()
	}
	switch {
	case m.filtering && m.filterErr != nil:
		return bold.Render("filter: ") + m.filter + "▏  " + warning.Render(m.filterErr.Error())
	case m.filtering:
		return bold.Render("filter: ") + m.filter + "▏" + faint.Render("  enter to keep, esc for none")
	case m.err != nil:
		return bad.Render(m.err.Error())
	case m.help:
		return keys("any key", "back")
	case m.detail:
		return keys("esc", "back", "p", "pause", "q", "quit", "?", "help")
	}
	return keys("q", "quit", "↑↓", "select", "⏎", "details", "s", "sort: "+string(m.order), "/", "filter", "p", "pause", "?", "help")
}

// count returns the numbers of connections as text.
func (m *model) count() string {
	if len(m.answers) == 0 {
		return ""
	}
	text := fmt.Sprintf("%d connections", len(m.shown))
	if len(m.shown) == 1 {
		text = "1 connection"
	}
	if m.closing > 0 {
		text += fmt.Sprintf(", %d closing", m.closing)
	}
	switch {
	case m.filter != "":
		text += fmt.Sprintf(" with %q", m.filter)
	case m.unchecked > 0:
		text += fmt.Sprintf(", %d may be over", m.unchecked)
	}
	return text
}

// column is a column of the list.
type column struct {
	title string
	order control.Order // the order by this column
	right bool          // aligned
	tail  bool          // a long text is cut at its start
	text  func(c *connection) string
	width int
}

// columns returns the columns that the screen has room for, with widths for the connections shown.
func (m *model) columns(shown []*connection) []column {
	var columns []column
	room := m.width + 1
	add := func(c column) {
		if c.order == m.order && c.order != "" {
			c.title += "▼"
			if c.order != byActivity && c.order != control.ByTransfers && c.order != control.ByRefused {
				c.title = strings.TrimSuffix(c.title, "▼") + "▲"
			}
		}
		if c.width == 0 {
			c.width = lipgloss.Width(c.title)
			for _, conn := range shown {
				c.width = max(c.width, lipgloss.Width(c.text(conn)))
			}
		}
		columns = append(columns, c)
		room -= c.width + 1
	}
	add(column{title: "CLIENT", order: control.ByClient, tail: true, text: func(c *connection) string { return c.Client.String() }})
	add(column{title: "SERVER", order: control.ByServer, tail: true, text: func(c *connection) string { return c.Server.String() }})
	add(column{title: "STATE", order: control.ByState, text: func(c *connection) string { return c.State }})
	add(column{title: "LAST", text: (*connection).last, width: len("PORT 65535")})
	add(column{title: "XFERS", order: control.ByTransfers, right: true, text: func(c *connection) string { return number(c.Expected) }, width: 6})
	add(column{title: "/s", order: byActivity, right: true, text: func(c *connection) string { return blank(rate(c.rate)) }, width: 4})
	add(column{title: "REFUSED", order: control.ByRefused, right: true, text: func(c *connection) string { return blank(number(c.Refused)) }, width: 8})
	add(column{title: "LAST SEEN", right: true, text: func(c *connection) string { return c.ago(m.now) }, width: 9})
	if ago := len(columns) - 1; room < 0 {
		room += columns[ago].width + 1
		columns = columns[:ago]
	}
	if room < 0 { // cut the longer address
		client, server := &columns[0].width, &columns[1].width
		both := max(2, *client+*server+room)
		longest := max((both+1)/2, both-min(*client, *server))
		*client, *server = min(*client, longest), min(*server, longest)
		return columns
	}
	// Translated addresses follow, if there are any and room for them.
	nat := [...]column{
		{title: "CLIENT SEEN AS", text: func(c *connection) string { return address(c.ClientSeenAs) }},
		{title: "SERVER REACHED AT", text: func(c *connection) string { return address(c.ServerReachedAt) }},
	}
	at := 2
	for _, c := range nat {
		width := 0
		for _, conn := range shown {
			width = max(width, len(c.text(conn)))
		}
		c.width = max(width, len(c.title))
		if width == 0 || c.width+1 > room {
			continue
		}
		columns = slices.Insert(columns, at, c)
		room -= c.width + 1
		at++
	}
	// A reason is shown whole, if there is room for it.
	last := &columns[slices.IndexFunc(columns, func(c column) bool { return c.title == "LAST" })]
	widest := last.width
	for _, conn := range shown {
		widest = max(widest, lipgloss.Width(last.text(conn)))
	}
	widest = min(widest, last.width+room)
	room -= widest - last.width
	last.width = widest
	for i := range at { // distribute the rest
		more := min(2, room/(at-i))
		columns[i].width += more
		room -= more
	}
	return columns
}

// address returns an address without its port, "" for none.
func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr().String()
}

// last describes the last announcement: verb and port, or the reason if it was not opened.
func (c *connection) last() string {
	switch {
	case c.Last == nil:
		return ""
	case c.Last.Advertised == 0:
		return strings.TrimRight(c.Last.Verb+" ✗ "+c.Last.Reason, " ")
	}
	return fmt.Sprintf("%s %d", c.Last.Verb, c.Last.Announced)
}

func (c *connection) ago(now time.Time) string {
	if c.active.IsZero() {
		return ""
	}
	return ago(now.Sub(c.active))
}

// blank returns "" for "0".
func blank(text string) string {
	if text == "0" {
		return ""
	}
	return text
}

// listLines returns the list with its heading.
func (m *model) listLines() []string {
	shown := m.shown[m.top:min(m.top+m.rows(), len(m.shown))]
	columns := m.columns(shown)
	var cells []string
	for _, c := range columns {
		cells = append(cells, fit(c.title, c.width, c.right))
	}
	lines := []string{heading.Render(fit(strings.Join(cells, " "), m.width, false))}
	for _, c := range shown {
		cells = cells[:0]
		for _, column := range columns {
			cells = append(cells, column.cell(c))
		}
		line := fit(strings.Join(cells, " "), m.width, false)
		switch {
		case c.endpoints == m.selected:
			line = selected.Render(line)
		case c.State != "read": // a closing one as well
			line = faint.Render(line)
		}
		lines = append(lines, line)
	}
	if len(shown) == 0 && len(m.answers) > 0 {
		text := "no FTP control connections"
		if m.filter != "" {
			text = "no connection matches the filter"
		}
		lines = append(lines, faint.Render(text))
	}
	return lines
}

// cell returns the text of a column for a connection.
func (c *column) cell(of *connection) string {
	text := c.text(of)
	if n := lipgloss.Width(text) - c.width; c.tail && n > 0 {
		text = ansi.TruncateLeft(text, n+1, "…")
	}
	return fit(text, c.width, c.right)
}

// fit pads or truncates a text to a width.
func fit(text string, width int, right bool) string {
	text = ansi.Truncate(text, width, "…")
	padding := strings.Repeat(" ", max(0, width-lipgloss.Width(text)))
	if right {
		return padding + text
	}
	return text + padding
}

// detailLines describe the selected connection, with the newest events at the end.
func (m *model) detailLines() []string {
	c := m.connections[m.selected]
	if c == nil {
		return []string{"", "This connection is over."}
	}
	lines := []string{heading.Render(fit(fmt.Sprintf("%s → %s", c.Client, c.Server), m.width, false))}
	line := func(name, format string, args ...any) {
		lines = append(lines, faint.Render(fmt.Sprintf("%-17s", name))+fmt.Sprintf(format, args...))
	}
	state := c.State
	for _, w := range control.States {
		if w.Name == c.State {
			state += ": " + w.Meaning
		}
	}
	if !c.seen.Equal(m.now) {
		state = "over"
	}
	line("State", "%s, queue %d", state, c.Queue)
	line("NAT", "%s", c.NAT())
	for _, w := range control.Sequences {
		if w.Name == c.Sequence {
			line("Sequence numbers", "%s: %s", w.Name, w.Meaning)
		}
	}
	line("Data connections", "%d expected (%s/s), %d refused or failed", c.Expected, rate(c.rate), c.Refused)
	if c.Last != nil && c.Last.Why != "" { // too long for one line
		line("Last announced", "%s port %d", c.Last.Verb, c.Last.Announced)
		line("Not opened", "%s: %s", c.Last.Reason, c.Last.Why)
	} else {
		line("Last announced", "%s", c.Last.String())
	}
	lines = append(lines, "", bold.Render("Events"))
	room := m.height - footLines - headLines - len(lines) + 1
	events := c.events[max(0, len(c.events)-max(0, room)):]
	if len(events) == 0 {
		lines = append(lines, faint.Render("none"))
	}
	for i := range events {
		ev := &events[i]
		kind := fmt.Sprintf("%-12s", ev.Kind)
		switch ev.Kind {
		case "used":
			kind = good.Render(kind)
		case "expired", "refused", "encrypted", "not-ftp", "nonsense", "unlabelled", "unreadable", "odd":
			kind = warning.Render(kind)
		case "failed":
			kind = bad.Render(kind)
		}
		lines = append(lines, fmt.Sprintf("%s  %s  %s", faint.Render(local(ev).Format("15:04:05.000")), kind, ev.Describe()))
	}
	return lines
}

// helpLines describe the keys and the filter.
func (m *model) helpLines() []string {
	lines := []string{heading.Render(fit("Keys", m.width, false))}
	for _, k := range [...][2]string{
		{"↑ ↓ k j", "select a connection; PgUp, PgDn, Home and End go further"},
		{"⏎ →", "show its details and events; Esc goes back"},
		{"s", "sort by the next column; the arrow marks it"},
		{"/", "filter: TEXT in any field, or FIELD=TEXT; all conditions must be true"},
		{"", "fields: " + strings.Join(control.FilterFields(), ", ")},
		{"", "client and server also take a network: client=203.0.113.0/24"},
		{"Esc", "remove the filter"},
		{"c", "show or hide closing connections"},
		{"p", "pause or resume"},
		{"q", "quit"},
	} {
		lines = append(lines, bold.Render(fmt.Sprintf("%-9s", k[0]))+k[1])
	}
	lines = append(lines, "", bold.Render("Columns"))
	for _, k := range [...][2]string{
		{"LAST", "the last announcement: PORT, EPRT, 227 or 229; ✗: not opened"},
		{"XFERS", "data connections expected; /s: per second, over the last 10 s"},
		{"REFUSED", "announcements refused or failed"},
		{"LAST SEEN", "time since the last event"},
	} {
		lines = append(lines, faint.Render(fmt.Sprintf("%-10s", k[0]))+k[1])
	}
	return lines
}

func local(ev *control.Event) time.Time { return ev.Time.In(time.Local) }
