package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// line is a line of a JSON log.
type line struct {
	Level, Msg, Kind, Reason, Client, Server string
	Verb, Announced, Advertised              string
	Expected                                 string `json:"expected_at"`
	Address                                  string `json:"client_address"`
	Count                                    int
	Monitor                                  bool
}

// logged has an eventLog at info level observe events, and returns the lines that it writes at once, and
// those at the end of the period.
func logged(t *testing.T, opened bool, events []engine.Event) (now, later []line) {
	t.Helper()
	var text bytes.Buffer
	l := newEventLog(slog.New(slog.NewJSONHandler(&text, nil)))
	l.opened.Store(opened)
	read := func() (all []line) {
		for row := range strings.Lines(text.String()) {
			var fields map[string]any
			var one line
			must.Do(t, json.Unmarshal([]byte(row), &fields))
			for key, value := range fields {
				if word, ok := value.(string); ok {
					if err := engine.IsWord(key, word); err != nil {
						t.Errorf("%v: %s", err, row)
					}
				} else if engine.IsWord(key, "") != nil {
					t.Errorf("%s: got another type than string: %s", key, row)
				}
			}
			must.Do(t, json.Unmarshal([]byte(row), &one))
			all = append(all, one)
		}
		text.Reset()
		return all
	}
	for i := range events {
		l.emit(&events[i])
	}
	now = read()
	l.flush()
	later = read()
	l.flush()
	if again := read(); again != nil {
		t.Errorf("second flush: got %v, want nothing", again)
	}
	return now, later
}

// TestPeriod logs the counts once a period, without further events.
func TestPeriod(t *testing.T) {
	r, w := io.Pipe()
	l := newEventLog(slog.New(slog.NewJSONHandler(w, nil)))
	l.period = 10 * time.Millisecond
	m := master("203.0.113.101:40000")
	go func() {
		for range 2 {
			for range 3 {
				l.emit(&engine.Event{Kind: engine.Refused, Master: m, Verb: parse.PORT, Reason: engine.LowPort, Again: true})
			}
		}
	}()
	counted := 0
	for lines := json.NewDecoder(r); counted < 6; {
		var one line
		must.Do(t, lines.Decode(&one))
		if one.Count == 0 || one.Kind != "refused" || !strings.Contains(one.Msg, " more in the last ") {
			t.Fatalf("%+v", one)
		}
		counted += one.Count
	}
	if counted != 6 {
		t.Errorf("got %d events counted, want 6", counted)
	}
}

func master(client string) *expect.Master {
	at := netip.MustParseAddrPort
	return &expect.Master{Tuples: [2]expect.Tuple{
		{Src: at(client), Dst: at("192.0.2.2:21")}, {Src: at("192.168.1.2:21"), Dst: at(client)},
	}}
}

// TestRepeats repeats an event on one connection: the first one has a line, the others are counted.
func TestRepeats(t *testing.T) {
	m := master("203.0.113.101:40000")
	events := []engine.Event{{Kind: engine.Refused, Master: m, Verb: parse.PORT, Reason: engine.LowPort}}
	for range 5 {
		events = append(events, engine.Event{Kind: engine.Refused, Master: m, Verb: parse.PORT, Reason: engine.LowPort, Again: true})
	}
	events = append(events,
		engine.Event{Kind: engine.Refused, Master: m, Verb: parse.PORT, Reason: engine.NotPeer},
		engine.Event{Kind: engine.Unknown, Master: m, Again: true}, engine.Event{Kind: engine.Unknown, Master: master("192.0.2.9:1"), Again: true})
	now, later := logged(t, false, events)
	if len(now) != 2 || now[0].Reason != "low_port" || now[0].Verb != "PORT" || now[1].Reason != "not_peer" {
		t.Errorf("at once: got %+v, want low_port and not_peer", now)
	}
	want := []line{
		{Level: "WARN", Msg: "endpoint refused: 5 more in the last 1s", Kind: "refused", Reason: "low_port", Address: "203.0.113.101", Count: 5},
		{Level: "WARN", Msg: "packet passed unread: 2 more in the last 1s", Kind: "unknown", Count: 2},
	}
	if fmt.Sprint(later) != fmt.Sprint(want) {
		t.Errorf("later:\n%+v\nwant\n%+v", later, want)
	}
}

// TestFlood has more events than lines, from more clients than counters: none is lost.
func TestFlood(t *testing.T) {
	var events []engine.Event
	const n = 3 * (maxLines + maxRepeats)
	for i := range n {
		events = append(events, engine.Event{Kind: engine.NotFTP, Master: master(fmt.Sprintf("203.0.%d.%d:40000", i/256, i%256)), Monitor: true})
	}
	now, later := logged(t, false, events)
	counted := 0
	for _, l := range later {
		if l.Kind != "not-ftp" || !l.Monitor {
			t.Errorf("%+v", l)
		}
		counted += l.Count
	}
	if len(now) != maxLines || len(later) != maxRepeats+1 || len(now)+counted != n {
		t.Errorf("got %d lines at once and %d later, which count %d; want %d, %d, %d", len(now), len(later), counted, maxLines, maxRepeats+1, n-maxLines)
	}
}

// TestLogOpened wants a line for each data connection with --log-opened, and none without.
func TestLogOpened(t *testing.T) {
	at := netip.MustParseAddrPort
	ev := engine.Event{Kind: engine.Expected, Master: master("203.0.113.101:40000"), Verb: parse.Reply227,
		Announced: at("192.168.1.2:30000"), Advertised: at("192.0.2.2:30000"), Expected: at("192.0.2.2:30000")}
	var events []engine.Event
	for range 2 * maxLines {
		events = append(events, ev)
	}
	if now, later := logged(t, false, events); now != nil || later != nil {
		t.Errorf("without --log-opened: got %v and %v, want nothing", now, later)
	}
	now, later := logged(t, true, events)
	if len(now) != len(events) || later != nil {
		t.Fatalf("got %d lines, later %v; want %d, none", len(now), later, len(events))
	}
	want := line{Level: "INFO", Msg: "data connection expected", Kind: "expected", Client: "203.0.113.101:40000", Server: "192.168.1.2:21",
		Verb: "227", Announced: "192.168.1.2:30000", Advertised: "192.0.2.2:30000", Expected: "192.0.2.2:30000"}
	if now[0] != want {
		t.Errorf("got  %+v\nwant %+v", now[0], want)
	}
}
