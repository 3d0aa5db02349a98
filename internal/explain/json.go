package explain

import (
	"bytes"
	"io"
	"net/netip"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/jsonout"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// schemaVersion is that of the JSON. It grows when a field is renamed or removed, or its meaning changes.
const schemaVersion = 1

// The JSON of a report. docs/explain.md documents every field; a test compares the two.
type (
	jsonReport struct {
		Schema      int              `json:"schema"`
		Start       time.Time        `json:"start"`
		Seconds     float64          `json:"seconds"`
		Packets     int              `json:"packets"`
		NoHeaders   int              `json:"packets_without_headers"`
		Truncated   bool             `json:"truncated"`
		UnusedNAT   []string         `json:"unused_nat"`
		Connections []jsonConnection `json:"connections"`
		Summary     jsonSummary      `json:"summary"`
	}
	jsonConnection struct {
		Number          int            `json:"number"`
		At              float64        `json:"at"`
		Client          netip.AddrPort `json:"client"`
		ClientSeenAs    netip.AddrPort `json:"client_seen_as"`
		Server          netip.AddrPort `json:"server"`
		ServerReachedAt netip.AddrPort `json:"server_reached_at"`
		NATFrom         string         `json:"nat_from"`
		FromBeginning   bool           `json:"from_beginning"`
		Helper          string         `json:"helper"`
		UnreadFrom      *float64       `json:"unread_from,omitempty"`
		UnreadWhy       string         `json:"unread_why,omitempty"`
		UnreadPackets   int            `json:"unread_packets"`
		Lines           []jsonLine     `json:"lines"`
		Data            []jsonData     `json:"data_connections"`
	}
	jsonLine struct {
		At         float64         `json:"at"`
		From       string          `json:"from"`
		Text       string          `json:"text"`
		HeldMillis int64           `json:"held_ms,omitempty"`
		TimedOut   bool            `json:"timed_out,omitempty"`
		Outcome    string          `json:"outcome"`
		Announced  *netip.AddrPort `json:"announced,omitempty"`
		Reason     string          `json:"reason,omitempty"`
		Why        string          `json:"why,omitempty"`
		Odd        string          `json:"odd,omitempty"`
		Fix        string          `json:"fix,omitempty"`
		Expected   *jsonExpected   `json:"expected,omitempty"`
		Rewritten  string          `json:"rewritten,omitempty"`
		Router     string          `json:"router,omitempty"`
		RouterSent string          `json:"router_sent,omitempty"`
		RouterWhy  string          `json:"router_why,omitempty"`
	}
	jsonExpected struct {
		From           netip.Addr     `json:"from"`
		To             netip.AddrPort `json:"to"`
		TranslatedFrom netip.Addr     `json:"translated_from"`
		TranslatedTo   netip.AddrPort `json:"translated_to"`
		Came           bool           `json:"came"`
	}
	jsonData struct {
		At             float64         `json:"at"`
		From           netip.AddrPort  `json:"from"`
		To             netip.AddrPort  `json:"to"`
		TranslatedFrom *netip.AddrPort `json:"translated_from,omitempty"`
		TranslatedTo   *netip.AddrPort `json:"translated_to,omitempty"`
		OpenedBy       string          `json:"opened_by"`
		Expected       bool            `json:"expected"`
		AnnouncedAt    *float64        `json:"announced_at,omitempty"`
		Why            string          `json:"why,omitempty"`
		Fate           string          `json:"fate"`
		Tries          int             `json:"tries"`
		Fix            string          `json:"fix,omitempty"`
	}
	jsonSummary struct {
		Connections    int `json:"connections"`
		Encrypted      int `json:"encrypted"`
		Announced      int `json:"announced"`
		Expected       int `json:"expected"`
		Refused        int `json:"refused"`
		Failed         int `json:"failed"`
		Rewritten      int `json:"rewritten"`
		RouterSame     int `json:"router_same"`
		RouterOther    int `json:"router_other"`
		Data           int `json:"data_connections"`
		DataUnexpected int `json:"data_connections_not_expected"`
		DataStopped    int `json:"data_connections_stopped"`
	}
)

// The words of the JSON for what else there is: who sends, and how the NAT is known.
var (
	senders    = [2]string{expect.Original: "client", expect.Reply: "server"}
	natSources = [...]string{natNone: "none", natSeen: "capture", natTold: "flag"}
)

// WriteJSON writes the report as one JSON object, which docs/explain.md documents.
func (r *Report) WriteJSON(w io.Writer) error {
	report := jsonReport{
		Schema: schemaVersion, Start: r.start.UTC(), Seconds: r.length.Seconds(), Packets: r.packets, NoHeaders: r.short, Truncated: r.broken,
		UnusedNAT: []string{}, Connections: []jsonConnection{}, Summary: r.summary(),
	}
	for i, used := range r.natUsed {
		if !used {
			report.UnusedNAT = append(report.UnusedNAT, r.nat[i].String())
		}
	}
	for _, c := range r.Connections {
		report.Connections = append(report.Connections, c.json())
	}
	encoder := jsonout.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}

func (c *Connection) json() jsonConnection {
	o, back := c.tuples[expect.Original], c.tuples[expect.Reply]
	j := jsonConnection{
		Number: c.number, At: c.at.Seconds(), Client: o.Src, ClientSeenAs: back.Dst, Server: back.Src, ServerReachedAt: o.Dst,
		NATFrom: natSources[c.source], FromBeginning: c.begun, Helper: "unknown", UnreadPackets: c.unread, Lines: []jsonLine{}, Data: []jsonData{},
	}
	switch {
	case c.showsHelper():
		j.Helper = "seen"
	case c.showsNoHelper():
		j.Helper = "none"
	}
	if c.opaque != nil {
		at := c.opaque.at.Seconds()
		j.UnreadFrom, j.UnreadWhy = &at, c.why.String()
	}
	for _, s := range c.steps {
		if s.again || s.tls {
			continue
		}
		texts := s.texts()
		for i, l := range s.lines {
			text := l.String()
			if i == 0 && s.middle {
				text = texts[0] // it may be the end of a password
			}
			j.Lines = append(j.Lines, c.jsonLine(l, text))
		}
	}
	for _, d := range c.data {
		j.Data = append(j.Data, d.json())
	}
	return j
}

func (c *Connection) jsonLine(l *Line, text string) jsonLine {
	j := jsonLine{At: l.step.at.Seconds(), From: senders[l.dir], Text: text, Outcome: "passed"}
	if l.step.held {
		j.HeldMillis, j.TimedOut = (l.step.left - l.step.at).Milliseconds(), l.step.vain
	}
	if e := l.event; e != nil {
		j.Outcome = e.Kind.String()
		if e.Announced.IsValid() {
			j.Announced = &e.Announced
		}
		if e.Kind == engine.Refused {
			j.Reason, j.Why, j.Fix = e.Reason.String(), e.Reason.Sentence(), mend(l, c)
		} else if e.Err != nil {
			j.Why = e.Err.Error()
		}
	}
	if l.odd != nil {
		j.Odd = l.odd.Error()
	}
	if x := l.x; x != nil {
		src, dst := x.translated()
		j.Expected = &jsonExpected{From: x.Src, To: x.Dst, TranslatedFrom: src, TranslatedTo: dst, Came: x.fulfilled != nil}
	}
	if l.rewritten() {
		j.Rewritten = show(l.ours, l.dir)
	}
	switch {
	case l.sent == nil:
	case sameMeaning(l.sent, l.ours):
		j.Router = "same"
	case bytes.Equal(l.sent, l.text):
		j.Router = "unchanged"
	default:
		j.Router = "other"
		if l.event != nil {
			j.RouterWhy = l.difference()
		}
	}
	if l.sent != nil && !bytes.Equal(l.sent, l.text) {
		j.RouterSent = show(l.sent, l.dir)
	}
	return j
}

func (d *Data) json() jsonData {
	j := jsonData{
		At: d.at.Seconds(), From: d.tuple.Src, To: d.tuple.Dst, OpenedBy: senders[expect.Original], Expected: d.x != nil, Why: d.diagnosis,
		Tries: d.tries, Fix: d.mend, Fate: "not answered",
	}
	if d.active {
		j.OpenedBy = senders[expect.Reply]
	}
	if d.behind != (expect.Tuple{}) {
		j.TranslatedFrom, j.TranslatedTo = &d.behind.Src, &d.behind.Dst
	}
	if d.x != nil {
		at := d.x.line.step.at.Seconds()
		j.AnnouncedAt = &at
	}
	switch {
	case d.accepted:
		j.Fate = "accepted"
	case d.stopped():
		j.Fate = "stopped"
	case d.refused:
		j.Fate = "refused"
	}
	return j
}

// summary counts what the report has.
func (r *Report) summary() jsonSummary {
	s := jsonSummary{Connections: len(r.Connections)}
	for _, c := range r.Connections {
		if c.opaque != nil && c.why == engine.Encrypted {
			s.Encrypted++
		}
		for _, lines := range c.lines {
			for _, l := range lines {
				s.count(l)
			}
		}
		for _, d := range c.data {
			s.Data++
			if d.x == nil {
				s.DataUnexpected++
			}
			if d.stopped() {
				s.DataStopped++
			}
		}
	}
	return s
}

// count adds a line, if it announces an endpoint.
func (s *jsonSummary) count(l *Line) {
	if l.event == nil {
		return
	}
	s.Announced++
	switch l.event.Kind {
	case engine.Expected:
		s.Expected++
	case engine.Refused:
		s.Refused++
	case engine.Failed, engine.Unreadable:
		s.Failed++
	}
	switch {
	case l.sent == nil || !l.rewritten() && bytes.Equal(l.sent, l.text):
	case sameMeaning(l.sent, l.ours):
		s.RouterSame++
	default:
		s.RouterOther++
	}
	if l.rewritten() {
		s.Rewritten++
	}
}
