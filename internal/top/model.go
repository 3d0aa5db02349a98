package top

import (
	"cmp"
	"net/netip"
	"slices"
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

// byActivity is the order of top alone: by the data connections in a second, and what happened last.
const byActivity control.Order = "activity"

// orders are those that the key s goes through.
var orders = append([]control.Order{byActivity}, control.Orders...)

// model is what is shown. It changes by messages only: answer, happened, keys, and sizes.
type model struct {
	version       string
	width, height int

	answers     []answer // the last window of them, without their flows
	connections map[ends]*connection
	shown       []*connection // sorted and filtered
	closing     int           // how many are not shown because of that
	unchecked   int
	err         error     // of the last time that the daemon was asked
	now         time.Time // of the last answer
	clock       time.Time // of that or the last event

	order     control.Order
	filter    string // as it is typed
	selects   control.Filter
	filterErr error // of the filter as it is typed; selects stays the one before
	filtering bool  // the filter is being typed
	all       bool  // closing connections are shown
	help      bool  // keys are
	paused    bool
	selected  ends
	top       int  // the first line of the list on the screen
	detail    bool // the selected one fills the screen
}

func newModel(version string) *model {
	return &model{version: version, width: 80, height: 24, order: byActivity, connections: make(map[ends]*connection)}
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
	m.shown, m.closing = m.shown[:0], 0
	for _, c := range m.connections {
		switch {
		case !c.seen.Equal(m.now) || !m.selects.Matches(&c.Flow):
		case !c.Live() && !m.all:
			m.closing++
		default:
			m.shown = append(m.shown, c)
		}
	}
	slices.SortFunc(m.shown, func(a, b *connection) int {
		first := 0
		if m.order == byActivity {
			first = cmp.Or(cmp.Compare(b.rate, a.rate), b.active.Compare(a.active))
		}
		return cmp.Or(first, m.order.Compare(&a.Flow, &b.Flow))
	})
}

// setFilter has connections filtered by a text, if it is a filter.
func (m *model) setFilter(text string) {
	m.filter = text
	selects, err := control.ParseFilter(text)
	if m.filterErr = err; err == nil {
		m.selects = selects
	}
	m.sort()
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
	case m.help:
		m.help = false
	case name == "q":
		return tea.Quit
	case name == "?":
		m.help = true
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
		m.filtering = m.filterErr != nil
	case "esc":
		m.filtering = false
		m.setFilter("")
	case "backspace":
		if runes := []rune(m.filter); len(runes) > 0 {
			m.setFilter(string(runes[:len(runes)-1]))
		}
	default:
		m.setFilter(m.filter + text)
	}
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
		m.order = orders[(slices.Index(orders, m.order)+1)%len(orders)]
		m.sort()
	case "c":
		m.all = !m.all
		m.sort()
	case "/":
		m.filtering = true
	case "esc":
		m.setFilter("")
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
