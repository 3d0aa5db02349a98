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
	// window is the number of answers over which rates are computed.
	window = 10
	// maxEvents is the number of events that are kept of a connection.
	maxEvents = 100
	// keepTime is the time for which a connection is kept that the daemon does not list.
	keepTime = 10 * time.Second
)

// endpoints identify a connection.
type endpoints struct{ client, server netip.AddrPort }

// connection is a control connection with its history.
type connection struct {
	control.Flow
	endpoints endpoints
	seen      time.Time // when the daemon listed it last
	active    time.Time // time of the last event; zero for none since top runs
	transfers []uint32  // in each of the last window answers
	rate      float64   // transfers per second
	events    []control.Event
}

// byActivity orders by data connections per second, then by the last event; only top has it.
const byActivity control.Order = "activity"

// orders are the orders that the key s cycles through.
var orders = append([]control.Order{byActivity}, control.Orders...)

// model is the state of the screen. It changes by messages only: answer, happened, keys, and sizes.
type model struct {
	version       string
	width, height int

	answers     []answer // the last window answers, without their flows
	connections map[endpoints]*connection
	shown       []*connection // sorted and filtered
	closing     int           // number of closing connections that are not shown
	unchecked   int
	err         error     // of the last query
	now         time.Time // of the last answer
	clock       time.Time // of the last answer or event

	order     control.Order
	filter    string // as typed
	selects   control.Filter
	filterErr error // of filter; selects stays the last valid one
	filtering bool  // the filter is being typed
	all       bool  // closing connections are shown
	help      bool  // keys are
	paused    bool
	selected  endpoints
	top       int  // the first line of the list on the screen
	detail    bool // the selected connection fills the screen
}

func newModel(version string) *model {
	return &model{version: version, width: 80, height: 24, order: byActivity, connections: make(map[endpoints]*connection)}
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

// take handles an answer.
func (m *model) take(a answer) {
	m.clock, m.err = a.at, a.err
	if a.err != nil {
		return
	}
	m.now = a.at
	if n := len(m.answers); n > 0 && a.counters.packets < m.answers[n-1].counters.packets {
		m.answers = nil // the daemon was restarted
	}
	m.unchecked = a.flows.Unchecked
	for i := range a.flows.Flows {
		m.list(&a.flows.Flows[i], a.at)
	}
	for k, c := range m.connections {
		if !c.seen.Equal(a.at) && a.at.Sub(c.active) > keepTime && k != m.selected {
			delete(m.connections, k)
		}
	}
	a.flows.Flows = nil
	m.answers = append(m.answers, a)
	m.answers = m.answers[max(0, len(m.answers)-window-1):]
	m.sort()
}

// list handles a listed connection.
func (m *model) list(f *control.Flow, at time.Time) {
	c := m.connection(endpoints{f.Client, f.Server})
	if !c.seen.IsZero() && (f.Expected != c.Expected || f.Refused != c.Refused) && at.Sub(c.active) > minPeriod {
		c.active = at
	}
	if f.Expected < c.Expected {
		c.transfers = nil // a new connection between the same endpoints
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

func (m *model) connection(of endpoints) *connection {
	c := m.connections[of]
	if c == nil {
		c = &connection{endpoints: of}
		m.connections[of] = c
	}
	return c
}

// note handles events.
func (m *model) note(events happened) {
	for _, ev := range events {
		if !ev.Client.IsValid() || ev.Kind == "unknown" {
			continue
		}
		c := m.connection(endpoints{ev.Client, ev.Server})
		c.active = ev.Time
		if ev.Time.After(m.clock) {
			m.clock = ev.Time.Local()
		}
		c.events = append(c.events, ev)
		c.events = c.events[max(0, len(c.events)-maxEvents):]
	}
}

// sort filters and sorts the listed connections.
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

// setFilter applies a filter, if the text is valid.
func (m *model) setFilter(text string) {
	m.filter = text
	selects, err := control.ParseFilter(text)
	if m.filterErr = err; err == nil {
		m.selects = selects
	}
	m.sort()
}

// key handles a key.
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

// typed handles a key while the filter is typed.
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

// command handles a key in the list.
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

// place returns the index of the selected connection in the list, -1 if it is not listed.
func (m *model) place() int {
	return slices.IndexFunc(m.shown, func(c *connection) bool { return c.endpoints == m.selected })
}

// move moves the selection.
func (m *model) move(by int) {
	if len(m.shown) == 0 {
		return
	}
	m.selected = m.shown[min(max(0, m.place()+by), len(m.shown)-1)].endpoints
}

// scroll keeps the selected connection on the screen.
func (m *model) scroll() {
	at, rows := m.place(), m.rows()
	if at >= 0 {
		m.top = min(max(m.top, at-rows+1), at)
	}
	m.top = max(0, min(m.top, len(m.shown)-rows))
}
