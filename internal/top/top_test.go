package top

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

var update = flag.Bool("update", false, "write the golden files")

var begin = time.Date(2024, 5, 4, 12, 0, 0, 0, time.Local)

// metricsAt is what package metrics would write after a number of seconds.
func metricsAt(second int) string {
	n := second * 100
	return fmt.Sprintf(`
# TYPE nfq_ftphelper_ready gauge
nfq_ftphelper_ready 1
# TYPE nfq_ftphelper_packets_total counter
nfq_ftphelper_packets_total{queue="100",result="accepted"} %d
nfq_ftphelper_packets_total{queue="101",result="changed"} %d
nfq_ftphelper_packets_total{queue="101",result="unread"} 0
# TYPE nfq_ftphelper_expectations_total counter
nfq_ftphelper_expectations_total{result="expected"} %d
nfq_ftphelper_expectations_total{result="failed"} 3
# TYPE nfq_ftphelper_refusals_total counter
nfq_ftphelper_refusals_total{reason="low_port"} %d
nfq_ftphelper_refusals_total{reason="not_peer"} %d
# TYPE nfq_ftphelper_queue_packets gauge
nfq_ftphelper_queue_packets{queue="100"} 2
nfq_ftphelper_queue_packets{queue="101"} 1
# TYPE nfq_ftphelper_queue_dropped_total counter
nfq_ftphelper_queue_dropped_total{queue="100"} 0
# TYPE nfq_ftphelper_queue_overflows_total counter
nfq_ftphelper_queue_overflows_total{queue="100"} 0
# TYPE nfq_ftphelper_packet_handling_seconds histogram
nfq_ftphelper_packet_handling_seconds_bucket{queue="100",le="2.048e-06"} %d
nfq_ftphelper_packet_handling_seconds_bucket{queue="100",le="3.2768e-05"} %d
nfq_ftphelper_packet_handling_seconds_bucket{queue="100",le="+Inf"} %d
nfq_ftphelper_packet_handling_seconds_sum{queue="100"} 1
nfq_ftphelper_packet_handling_seconds_count{queue="100"} %d
`, 10*n, n, n/2, second, second, 9*n, 10*n, 10*n, 10*n)
}

// flowsAt are the connections at that time.
func flowsAt(second int) []control.Flow {
	at := netip.MustParseAddrPort
	flows := []control.Flow{
		{Queue: 100, Client: at("203.0.113.101:40000"), Server: at("192.168.1.2:21"), ServerReachedAt: at("192.0.2.2:21"), State: "read", Sequence: "kernel",
			Expected: uint32(12 * second), Refused: 2, Last: &control.Endpoint{Verb: "227", Announced: 30000, Advertised: 30000}},
		{Queue: 101, Client: at("[2001:db8:113::101]:40001"), Server: at("[fd00:1::2]:21"), State: "read", Sequence: "same-length",
			Expected: 150_000, Last: &control.Endpoint{Verb: "EPRT", Announced: 41000, Advertised: 41000}},
		{Queue: 100, Client: at("10.11.12.13:65535"), Server: at("198.51.100.2:2121"), ClientSeenAs: at("192.0.2.2:65535"), State: "encrypted", Sequence: "kernel"},
		{Queue: 100, Client: at("203.0.113.7:1024"), Server: at("192.168.1.2:21"), ServerReachedAt: at("192.0.2.2:21"), State: "read", Sequence: "kernel",
			Expected: 1, Refused: uint32(second), Last: &control.Endpoint{Verb: "PORT", Announced: 20, Reason: "low_port", Why: "the port is below the lowest one allowed"}},
		{Queue: 100, Client: at("203.0.113.8:1024"), Server: at("192.168.1.2:21"), State: control.StateClosing, Sequence: "kernel", Expected: 9},
		{Queue: 100, Client: at("203.0.113.9:1024"), Server: at("192.168.1.2:21"), State: control.StateClosing, Sequence: "kernel", Expected: 8},
	}
	for i := range 40 {
		flows = append(flows, control.Flow{
			Queue: 101, Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, 0, byte(i)}), 50000), Server: at("192.168.1.2:21"),
			ServerReachedAt: at("192.0.2.2:21"), State: "read", Sequence: "kernel", Expected: uint32(i),
		})
	}
	return flows
}

// watched is a model that has watched for twelve seconds.
func watched(t *testing.T) *model {
	t.Helper()
	m := newModel("v1.2.3")
	for s := range 13 {
		c, err := readCounters(strings.NewReader(metricsAt(s)))
		must.Do(t, err)
		now := begin.Add(time.Duration(s) * time.Second)
		m.Update(answer{at: now, counters: c, flows: control.Flows{Flows: flowsAt(s)}})
		f := flowsAt(s)[0]
		event := control.Event{Time: now, Queue: 100, Client: f.Client, Server: f.Server}
		ok, low := event, event
		ok.Kind, ok.Verb, ok.Announced, ok.Advertised = "expected", "227", netip.MustParseAddrPort("192.168.1.2:30000"), netip.MustParseAddrPort("192.0.2.2:30000")
		low.Kind, low.Verb, low.Announced, low.Why = "refused", "PORT", netip.MustParseAddrPort("203.0.113.101:20"), "the port is below the lowest one allowed"
		m.Update(happened{ok, low})
	}
	return m
}

// press presses keys: names such as "enter", or single letters.
func press(m *model, names ...string) {
	codes := map[string]rune{"enter": tea.KeyEnter, "esc": tea.KeyEscape, "down": tea.KeyDown, "end": tea.KeyEnd, "backspace": tea.KeyBackspace}
	for _, name := range names {
		k := tea.KeyPressMsg{Code: codes[name]}
		if k.Code == 0 {
			k.Code, k.Text = []rune(name)[0], name
		}
		m.Update(k)
	}
}

// screen is what is on the screen, without colours.
func screen(t *testing.T, m *model, width, height int) string {
	t.Helper()
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	text := ansi.Strip(m.View().Content)
	lines := strings.Split(text, "\n")
	if len(lines) != height {
		t.Errorf("%d by %d: got %d lines", width, height, len(lines))
	}
	for i, line := range lines {
		if w := ansi.StringWidth(line); w > width {
			t.Errorf("%d by %d: line %d: got width %d", width, height, i, w)
		}
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

// TestScreen compares screens with those in testdata.
func TestScreen(t *testing.T) {
	for name, c := range map[string]struct {
		width, height int
		keys          []string
	}{
		"80x24":    {80, 24, nil},
		"120x40":   {120, 40, []string{"down", "down"}},
		"detail":   {80, 24, []string{"down", "enter"}},
		"200x50":   {200, 50, []string{"s", "s", "s", "s", "s"}},
		"end":      {80, 24, []string{"s", "s", "s", "s", "end"}},
		"help":     {80, 24, []string{"?"}},
		"closing":  {80, 24, []string{"c", "/", "c", "l", "i", "e", "n", "t", "=", "2", "0", "3", ".", "0", ".", "1", "1", "3", ".", "0", "/", "2", "4", "enter"}},
		"field":    {80, 24, []string{"/", "f", "d", "enter", "/", "x", "=", "enter"}},
		"refused":  {80, 24, []string{"/", "1", "1", "3", ".", "7", "enter", "down", "enter"}},
		"filter":   {80, 24, []string{"/", "e", "n", "c", "x", "backspace", "p"}},
		"filtered": {80, 24, []string{"/", "f", "d", "0", "0", "enter", "p"}},
		"none":     {80, 24, []string{"/", "@", "enter"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := watched(t)
			press(m, c.keys...)
			got, file := screen(t, m, c.width, c.height), filepath.Join("testdata", name+".golden")
			if *update {
				must.Do(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			if err != nil || got != string(want) {
				t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
			}
		})
	}
}

// TestSizes presses random keys on screens of all sizes: no line is too long.
func TestSizes(t *testing.T) {
	m := watched(t)
	random := rand.New(rand.NewPCG(1, 2))
	keys := []string{"down", "end", "enter", "esc", "s", "/", "p", "1", "g", "k", "?", "c"}
	for width := 1; width < 200; width += 3 {
		for _, height := range []int{1, 2, 5, 6, 24, 70} {
			press(m, keys[random.IntN(len(keys))])
			screen(t, m, width, height)
		}
	}
}

// TestStops shows a daemon that stops answering, and then another one.
func TestStops(t *testing.T) {
	m := watched(t)
	m.Update(answer{at: begin.Add(13 * time.Second), err: errors.New("no daemon runs")})
	if got := screen(t, m, 80, 24); !strings.Contains(got, "NO ANSWER") || !strings.HasSuffix(got, "\nno daemon runs\n") || !strings.Contains(got, "203.0.113.101:40000") {
		t.Errorf("stopped daemon: got\n%s", got)
	}
	c, err := readCounters(strings.NewReader(strings.Replace(metricsAt(1), "ready 1", "ready 0", 1)))
	must.Do(t, err)
	m.Update(answer{at: begin.Add(14 * time.Second), counters: c})
	if got := screen(t, m, 80, 24); !strings.Contains(got, "NOT READY") || strings.Contains(got, "203.0.113.101:40000") || !strings.Contains(got, "packets     0/s") || !strings.Contains(got, "no FTP control connections") {
		t.Errorf("another daemon: got\n%s", got)
	}
	m.Update(answer{at: begin.Add(40 * time.Second), counters: c})
	if len(m.connections) > 0 {
		t.Errorf("got %d connections, want 0", len(m.connections))
	}
}

// TestUnknown checks what is shown of what the daemon may not know.
func TestUnknown(t *testing.T) {
	var lines []string
	for line := range strings.Lines(metricsAt(1)) {
		if !strings.Contains(line, "queue_packets") && !strings.Contains(line, "queue_dropped_total") {
			lines = append(lines, line)
		}
	}
	c, err := readCounters(strings.NewReader(strings.Join(lines, "")))
	must.Do(t, err)
	m := newModel("v1.2.3")
	m.Update(answer{at: begin, counters: c})
	if got, want := screen(t, m, 80, 24), "waiting – · dropped – · overflows 0"; !strings.Contains(got, want) {
		t.Errorf("there is no %q in\n%s", want, got)
	}
}

// TestShort checks how numbers are written.
func TestShort(t *testing.T) {
	for got, want := range map[string]string{
		rate(0.04): "0.0", rate(9.99): "10", rate(1234): "1234", rate(99_999): "100k", rate(2_500_000): "2M",
		number(99_999): "99999", number(100_000): "100k", number(4_000_000_000): "4000M",
		short(1024 * time.Nanosecond): "1.0 µs", short(262144 * time.Nanosecond): "262 µs", short(33_554_432): "33.6 ms",
		ago(-time.Second): "now", ago(99 * time.Second): "99s", ago(2 * time.Minute): "2m", ago(1000 * time.Hour): "41d",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	handled := counters{handling: map[float64]float64{0.001: 90, 0.002: 98, math.Inf(1): 100}}
	for q, want := range map[float64]string{0.5: "<1 ms", 0.95: "<2 ms", 0.99: ">2 ms"} {
		if got, ok := quantile(q, counters{}, handled); got != want || !ok {
			t.Errorf("%v: %q, want %q", q, got, want)
		}
	}
}
