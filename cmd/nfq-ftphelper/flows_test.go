package main

import (
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

var update = flag.Bool("update", false, "write the golden files")

// wantGolden compares a text with one in testdata.
func wantGolden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		must.Do(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	if err != nil || got != string(want) {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
}

func TestFlowTable(t *testing.T) {
	at := netip.MustParseAddrPort
	flows := []control.Flow{
		{Client: at("203.0.113.101:40000"), Server: at("192.168.1.2:21"), ServerReachedAt: at("192.0.2.2:21"), State: "read",
			Expected: 12, Last: &control.Endpoint{Verb: "227", Announced: 30000, Advertised: 30001}},
		{Client: at("[2001:db8:113::101]:40001"), Server: at("[2001:db8:100::2]:21"), State: "encrypted"},
		{Client: at("10.0.0.5:40002"), Server: at("198.51.100.2:2121"), ClientSeenAs: at("192.0.2.1:1025"), State: "read",
			Expected: 4_000_000_000, Refused: 1, Last: &control.Endpoint{Verb: "PORT", Announced: 20, Reason: "low_port", Why: "the port is below the lowest one allowed"}},
		{Client: at("10.0.0.6:40002"), Server: at("192.168.1.2:21"), ClientSeenAs: at("192.168.1.1:40002"), ServerReachedAt: at("192.0.2.2:2121"), State: "ignored"},
	}
	wantGolden(t, "flows.golden", flowTable((&flowView{order: control.ByClient}).of(flows), 0)+"\n"+flowTable(flows, 80)+"\n"+flowTable(nil, 80))
}

func TestEventLines(t *testing.T) {
	at := netip.MustParseAddrPort
	events := []control.Event{
		{Kind: "tracked"},
		{Kind: "expected", Verb: "227", Announced: at("192.168.1.2:30000"), Advertised: at("192.0.2.2:30001"), Expected: at("192.0.2.2:30001")},
		{Kind: "expected", Verb: "PORT", Announced: at("203.0.113.101:41000"), Advertised: at("203.0.113.101:41000"), Expected: at("203.0.113.101:41000")},
		{Kind: "expected", Verb: "229", Announced: at("192.168.1.2:30002"), Advertised: at("192.0.2.2:30002"), Expected: at("192.0.2.2:30002")},
		{Kind: "expected", Verb: "229", Announced: at("192.168.1.2:30002"), Advertised: at("192.0.2.2:2"), Expected: at("192.0.2.2:2")},
		{Kind: "refused", Verb: "PORT", Announced: at("203.0.113.101:20"), Reason: "low_port", Why: "the port is below the lowest one allowed", Again: true},
		{Kind: "failed", Verb: "EPRT", Announced: at("203.0.113.101:41000"), Why: "the table of expectations is full"},
		{Kind: "unreadable", Verb: "227", Line: "227 \x1b[2J\u202e\xff", Why: "no\x1b[2J numbers"},
		{Kind: control.KindMissed, Missed: 12},
		{Kind: "stays-queued", Client: at("[2001:db8:113::101]:40001"), Server: at("[2001:db8:100::2]:21"), Why: "no room"},
		{Kind: "encrypted"},
		{Kind: "used", Verb: "227", Announced: at("192.168.1.2:30000"), Advertised: at("192.0.2.2:30001"), Expected: at("192.0.2.2:30001"), From: at("203.0.113.101:51234")},
		{Kind: "used", Verb: "229", Announced: at("192.168.1.2:30002"), Advertised: at("192.0.2.2:2"), Expected: at("192.0.2.2:2"), From: at("203.0.113.101:51234")},
		{Kind: "used", Expected: at("192.0.2.2:30001"), From: at("203.0.113.101:51234")},
		{Kind: "expired", Verb: "227", Announced: at("192.168.1.2:30000"), Advertised: at("192.0.2.2:30001"), Reason: "timeout", Why: "no data connection came within 300 s"},
		{Kind: "closed", Transfers: 1, Refused: 2},
		{Kind: "closed", Transfers: 4_000_000_000, Client: at("[2001:db8:113:1111:2222:3333:4444:101]:40001"), Server: at("[2001:db8:100::2]:21")},
	}
	screens := []struct {
		width int
		lines eventLines
		text  strings.Builder
	}{{width: 0}, {width: 200}, {width: 80}, {width: 80, lines: eventLines{colour: true}}}
	for i, ev := range events {
		ev.Time = time.Date(2024, 5, 4, 12, 0, i, 1_000_000*i, time.UTC)
		if !ev.Client.IsValid() && ev.Kind != control.KindMissed {
			ev.Client, ev.Server = at("203.0.113.101:40000"), at("192.168.1.2:21")
		}
		// As it comes from a daemon.
		line, err := json.Marshal(ev)
		must.Do(t, err)
		var come control.Event
		must.Do(t, json.Unmarshal(line, &come))
		for i := range screens {
			sc := &screens[i]
			line := sc.lines.line(&come, time.UTC, sc.width)
			if n := ansi.StringWidth(strings.TrimSuffix(line, "\n")); sc.width > 0 && n > sc.width {
				t.Errorf("got %d columns, want at most %d: %s", n, sc.width, line)
			}
			sc.text.WriteString(line)
		}
	}
	if screens[0].text.String() != screens[1].text.String() {
		t.Errorf("got a shortened screen in 200 columns:\n%s", screens[1].text.String())
	}
	if plain := ansi.Strip(screens[3].text.String()); plain != screens[2].text.String() || plain == screens[3].text.String() {
		t.Errorf("got another text in colour:\n%s", screens[3].text.String())
	}
	wantGolden(t, "events.golden", screens[0].text.String())
	wantGolden(t, "events-80.golden", screens[2].text.String())
}

// TestEventFilter checks which events the flags of events select.
func TestEventFilter(t *testing.T) {
	at := netip.MustParseAddrPort
	events := []control.Event{
		{Kind: "refused", Client: at("203.0.113.101:40000")}, {Kind: "used", Client: at("[2001:db8::7]:21")}, {Kind: control.KindMissed}, {Kind: "tracked", Client: at("192.0.2.1:1")},
	}
	for _, c := range []struct {
		clients string
		kinds   string
		want    string
	}{
		{"", "", "refused used missed tracked"}, {"203.0.113.101", "", "refused missed"}, {"203.0.113.0/24,2001:db8::/64", "", "refused used missed"},
		{"", "tracked,refused", "refused missed tracked"}, {"192.0.2.0/24", "used", "missed"},
	} {
		var f eventFilter
		must.Do(t, errors.Join(prefixesFlag{&f.clients}.Set(c.clients), kindsFlag{&f.kinds}.Set(c.kinds)))
		var got []string
		for _, ev := range events {
			if f.matches(&ev) {
				got = append(got, ev.Kind)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: got %v", c, got)
		}
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2024, 5, 4, 12, 0, 0, 0, time.UTC)
	var at time.Time
	f := sinceFlag{&at, func() time.Time { return now }}
	for s, want := range map[string]string{
		"10m": "2024-05-04T11:50:00Z", "11:59": "2024-05-04T11:59:00Z", "12:00:01": "2024-05-03T12:00:01Z", "2024-05-04": "2024-05-04T00:00:00Z",
		"2024-05-01 10:00:00": "2024-05-01T10:00:00Z", "2024-05-01T10:00:00+02:00": "2024-05-01T08:00:00Z",
	} {
		if err := f.Set(s); err != nil || at.UTC().Format(time.RFC3339) != want {
			t.Errorf("%s is %s, want %s (%v)", s, at, want, err)
		}
	}
	for _, s := range []string{"", "yesterday", "-5m", "25:00"} {
		if err := f.Set(s); err == nil {
			t.Errorf("%q: got %s", s, at)
		}
	}
}

// TestFlowView filters and sorts flows.
func TestFlowView(t *testing.T) {
	at := netip.MustParseAddrPort
	flows := []control.Flow{
		{Client: at("203.0.113.101:40000"), State: "read", Refused: 1}, {Client: at("203.0.113.101:40001"), State: control.StateClosing},
		{Client: at("10.0.0.1:1"), State: "encrypted", Refused: 3}, {Client: at("10.0.0.1:2"), State: "read"},
	}
	for _, c := range []struct {
		flowView
		filter string
		want   string
	}{
		{flowView{order: control.ByClient}, "", "10.0.0.1:1 10.0.0.1:2 203.0.113.101:40000"},
		{flowView{order: control.ByClient, all: true}, "", "10.0.0.1:1 10.0.0.1:2 203.0.113.101:40000 203.0.113.101:40001"},
		{flowView{order: control.ByRefused}, "", "10.0.0.1:1 203.0.113.101:40000 10.0.0.1:2"},
		{flowView{order: control.ByClient}, "state=read client=10.0.0.0/8", "10.0.0.1:2"},
	} {
		must.Do(t, (filterFlag{&c.flowView}).Set(c.filter))
		var got []string
		for _, f := range c.of(slices.Clone(flows)) {
			got = append(got, f.Client.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v, want %s", c.flowView, got, c.want)
		}
	}
}

func TestStatusScreen(t *testing.T) {
	at := netip.MustParseAddrPort
	now := time.Date(2024, 5, 4, 12, 0, 0, 0, time.UTC)
	waiting, dropped := uint64(2), uint64(0)
	s := control.Status{
		Version: "v1.2.3", Started: now.Add(-26 * time.Hour), Ready: true, Outcomes: true,
		Rules:  control.Rules{Source: control.RulesApplied, Ruleset: "full", Ports: "21,2121-2130", Helper: "sane"},
		Queues: []control.Queue{{Number: 100, Packets: 1234567, Connections: 2, Transfers: 1200, Refused: 3, Waiting: &waiting, Dropped: &dropped}, {Number: 101}},
	}
	text := statusScreen(&s, now, 80, false)
	for i := range 10 {
		s.Refusals = append(s.Refusals, control.Event{
			Time: now.Add(time.Duration(i-9) * 3 * time.Hour), Kind: "refused", Client: at("203.0.113.101:40000"), Server: at("192.168.1.2:21"),
			Verb: "PORT", Announced: at("203.0.113.101:20"), Reason: "low_port", Why: "the port is below the lowest one allowed",
		})
	}
	s.Refusals[9].Kind, s.Refusals[9].Reason, s.Refusals[9].Why = "failed", "", "the table of expectations is full: raise the sysctl net.netfilter.nf_conntrack_expect_max"
	for i := range 14 {
		s.Queues = append(s.Queues, control.Queue{Number: uint16(102 + i), Packets: 4_000_000_000, Refused: 1})
	}
	s.Ready, s.Why = false, "table inet nfq_ftphelper is missing"
	s.Rules.Source, s.Rules.Ruleset, s.OutcomesLost = control.RulesDifferent, "lean", 3
	few, colour := statusScreen(&s, now, 80, false), statusScreen(&s, now, 80, true)
	if ansi.Strip(colour) != few || colour == few {
		t.Errorf("got another text in colour:\n%s", colour)
	}
	all := statusScreen(&s, now, 0, false)
	s.Queues = s.Queues[:maxQueueLines]
	s.Outcomes, s.OutcomesWhy = false, "the sysctl net.netfilter.nf_conntrack_events is 0: set it to 2 and restart the daemon"
	most := statusScreen(&s, now, 80, false)
	for _, screen := range []string{text, few, most} {
		lines := strings.Split(screen, "\n")
		if len(lines) > 24 {
			t.Errorf("got %d lines, want at most 24:\n%s", len(lines), screen)
		}
		for _, line := range lines {
			if n := ansi.StringWidth(line); n > 80 {
				t.Errorf("got %d columns: %s", n, line)
			}
		}
	}
	wantGolden(t, "status.golden", text+"----\n"+few+"----\n"+all+"----\n"+most)
}

// TestNoDaemon runs the queries without a daemon.
func TestNoDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	const want = "no daemon answers: % does not exist: start the daemon (nfq-ftphelper run --rules), or name its control socket with --control"
	for _, command := range []string{"flows", "events", "status"} {
		code, stdout, stderr := call(t, command, "--control", path)
		if code != exitFailure || stdout != "" || stderr != "nfq-ftphelper: "+strings.Replace(want, "%", path, 1)+"\n" {
			t.Errorf("%s: got exit code %d, output\n%s%s", command, code, stdout, stderr)
		}
	}
	code, stdout, stderr := call(t, "top", "--control", path)
	if code != exitFailure || stdout != "" || !strings.Contains(stderr, `top needs a terminal: use "nfq-ftphelper flows"`) {
		t.Errorf("top: got exit code %d, output\n%s%s", code, stdout, stderr)
	}
}
