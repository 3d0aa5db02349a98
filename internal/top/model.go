package top

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
)

const (
	// window is over how many answers rates are taken.
	window = 10
	// maxEvents is how many events of a connection are kept.
	maxEvents = 100
	// keepGone is for how long events of a connection that the daemon does not list are kept.
	keepGone = 10 * time.Second
)

// ends are by what a connection is known.
type ends struct{ client, server netip.AddrPort }

// connection is a control connection, and what is known of its past.
type connection struct {
	control.Flow
	ends      ends
	seen      time.Time // listed
	active    time.Time // when something happened last; zero if not since top looks
	transfers []uint32  // by answer, the last window of them
	rate      float64   // of transfers, in a second
	events    []control.Event
}

// order is by what connections are sorted.
type order int

const (
	byActivity order = iota
	byTransfers
	byRefused
	byClient
	orders
)

func (o order) String() string { return [...]string{"activity", "transfers", "refused", "client"}[o] }

// model is what is shown. It changes by messages only: answer, happened, keys, and sizes.
type model struct {
	version       string
	width, height int

	answers     []answer // the last window of them, without their flows
	connections map[ends]*connection
	shown       []*connection // sorted and filtered
	unchecked   int
	err         error     // of the last time that the daemon was asked
	now         time.Time // of the last answer
	clock       time.Time // of that or the last event

	order     order
	filter    string
	filtering bool // the filter is being typed
	paused    bool
	selected  ends
	top       int  // the first line of the list on the screen
	detail    bool // the selected one fills the screen
}

func newModel(version string) *model {
	return &model{version: version, width: 80, height: 24, connections: make(map[ends]*connection)}
}

// Init implements tea.Model.
func (m *model) Init() tea.Cmd { return nil }

// Update implements tea.Model.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		return m, m.key(msg)
	case answer:
		if !m.paused {
			m.take(msg)
		}
	case happened:
		if !m.paused {
			m.note(msg)
		}
	}
	m.scroll()
	return m, nil
}

// take takes what the daemon says of itself.
func (m *model) take(a answer) {
	m.clock, m.err = a.at, a.err
	if a.err != nil {
		return
	}
	m.now = a.at
	if n := len(m.answers); n > 0 && a.counters.packets < m.answers[n-1].counters.packets {
		m.answers = nil // another daemon
	}
	m.unchecked = a.flows.Unchecked
	for i := range a.flows.Flows {
		m.list(&a.flows.Flows[i], a.at)
	}
	for k, c := range m.connections {
		if !c.seen.Equal(a.at) && a.at.Sub(c.active) > keepGone && k != m.selected {
			delete(m.connections, k)
		}
	}
	a.flows.Flows = nil
	m.answers = append(m.answers, a)
	m.answers = m.answers[max(0, len(m.answers)-window-1):]
	m.sort()
}

// list takes one of the connections that the daemon lists.
func (m *model) list(f *control.Flow, at time.Time) {
	c := m.connection(ends{f.Client, f.Server})
	if !c.seen.IsZero() && (f.Expected != c.Expected || f.Refused != c.Refused) && at.Sub(c.active) > every {
		c.active = at
	}
	if f.Expected < c.Expected {
		c.transfers = nil // another one between the same ends
	}
	c.Flow, c.seen = *f, at
	c.transfers = append(c.transfers, f.Expected)
	c.transfers = c.transfers[max(0, len(c.transfers)-window-1):]
	c.rate = 0
	if n := len(c.transfers) - 1; n > 0 && n <= len(m.answers) {
		if d := at.Sub(m.answers[len(m.answers)-n].at).Seconds(); d > 0 {
			c.rate = float64(c.transfers[n]-c.transfers[0]) / d
		}
	}
}

func (m *model) connection(of ends) *connection {
	c := m.connections[of]
	if c == nil {
		c = &connection{ends: of}
		m.connections[of] = c
	}
	return c
}

// note takes events.
func (m *model) note(events happened) {
	for _, ev := range events {
		if !ev.Client.IsValid() || ev.Kind == "unknown" {
			continue
		}
		c := m.connection(ends{ev.Client, ev.Server})
		c.active = ev.Time
		if ev.Time.After(m.clock) {
			m.clock = ev.Time.Local()
		}
		c.events = append(c.events, ev)
		c.events = c.events[max(0, len(c.events)-maxEvents):]
	}
}

// sort puts those connections that are listed in their order.
func (m *model) sort() {
	m.shown = m.shown[:0]
	for _, c := range m.connections {
		if c.seen.Equal(m.now) && c.matches(m.filter) {
			m.shown = append(m.shown, c)
		}
	}
	slices.SortFunc(m.shown, func(a, b *connection) int {
		var first int
		switch m.order {
		case byActivity:
			first = cmp.Or(cmp.Compare(b.rate, a.rate), b.active.Compare(a.active))
		case byTransfers:
			first = cmp.Compare(b.Expected, a.Expected)
		case byRefused:
			first = cmp.Compare(b.Refused, a.Refused)
		}
		return cmp.Or(first, a.Client.Compare(b.Client), a.Server.Compare(b.Server))
	})
}

// matches tells whether what is shown of a connection has the text in it.
func (c *connection) matches(text string) bool {
	return text == "" || strings.Contains(strings.ToLower(strings.Join([]string{
		c.Client.String(), c.Server.String(), c.NAT(), c.State, c.Last.String(),
	}, " ")), strings.ToLower(text))
}

// key does what a key is for.
func (m *model) key(press tea.KeyPressMsg) tea.Cmd {
	name := press.String()
	if name == "ctrl+c" {
		return tea.Quit
	}
	switch {
	case m.filtering:
		m.typed(name, press.Text)
	case name == "q":
		return tea.Quit
	case m.detail:
		m.detail = name != "esc" && name != "enter" && name != "left"
	default:
		m.command(name)
	}
	m.scroll()
	return nil
}

// typed changes the filter.
func (m *model) typed(name, text string) {
	switch name {
	case "enter":
		m.filtering = false
	case "esc":
		m.filtering, m.filter = false, ""
	case "backspace":
		if runes := []rune(m.filter); len(runes) > 0 {
			m.filter = string(runes[:len(runes)-1])
		}
	default:
		m.filter += text
	}
	m.sort()
}

// command does what a key is for in the list.
func (m *model) command(name string) {
	switch name {
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-m.rows())
	case "pgdown", "space":
		m.move(m.rows())
	case "home", "g":
		m.move(-len(m.shown))
	case "end", "G":
		m.move(len(m.shown))
	case "enter", "right":
		m.detail = m.place() >= 0
	case "s":
		m.order = (m.order + 1) % orders
		m.sort()
	case "/":
		m.filtering = true
	case "esc":
		m.filter = ""
		m.sort()
	case "p":
		m.paused = !m.paused
	}
}

// place is where the selected connection is in the list, -1 if it is not.
func (m *model) place() int {
	return slices.IndexFunc(m.shown, func(c *connection) bool { return c.ends == m.selected })
}

// move selects another connection.
func (m *model) move(by int) {
	if len(m.shown) == 0 {
		return
	}
	m.selected = m.shown[min(max(0, m.place()+by), len(m.shown)-1)].ends
}

// scroll keeps the selected connection on the screen. Until one is selected, the first ones are.
func (m *model) scroll() {
	at, rows := m.place(), m.rows()
	if at >= 0 {
		m.top = min(max(m.top, at-rows+1), at)
	}
	m.top = max(0, min(m.top, len(m.shown)-rows))
}
