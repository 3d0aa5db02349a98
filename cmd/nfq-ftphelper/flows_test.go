package main

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
)

var update = flag.Bool("update", false, "write the golden files anew")

// wantGolden compares a text with one in testdata.
func wantGolden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
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
			Expected: 12, Last: &control.Endpoint{Verb: "227", Announced: 30000, Told: 30001}},
		{Client: at("[2001:db8:113::101]:40001"), Server: at("[2001:db8:100::2]:21"), State: "encrypted"},
		{Client: at("10.0.0.5:40002"), Server: at("198.51.100.2:2121"), ClientSeenAs: at("192.0.2.1:1025"), State: "read",
			Expected: 4_000_000_000, Refused: 1, Last: &control.Endpoint{Verb: "PORT", Announced: 20}},
		{Client: at("10.0.0.6:40002"), Server: at("192.168.1.2:21"), ClientSeenAs: at("192.168.1.1:40002"), ServerReachedAt: at("192.0.2.2:2121"), State: "ignored"},
	}
	wantGolden(t, "flows.golden", flowTable(flows)+"\n"+flowTable(nil))
}

func TestEventLines(t *testing.T) {
	at := netip.MustParseAddrPort
	events := []control.Event{
		{Kind: "tracked"},
		{Kind: "expected", Verb: "227", Announced: at("192.168.1.2:30000"), Told: at("192.0.2.2:30001"), Expected: at("192.0.2.2:30001")},
		{Kind: "expected", Verb: "PORT", Announced: at("203.0.113.101:41000"), Told: at("203.0.113.101:41000"), Expected: at("203.0.113.101:41000")},
		{Kind: "expected", Verb: "229", Announced: at("192.168.1.2:30002"), Told: at("192.0.2.2:30002"), Expected: at("192.0.2.2:30002")},
		{Kind: "expected", Verb: "229", Announced: at("192.168.1.2:30002"), Told: at("192.0.2.2:2"), Expected: at("192.0.2.2:2")},
		{Kind: "refused", Verb: "PORT", Announced: at("203.0.113.101:20"), Reason: "low_port", Why: "the port is below the lowest one allowed", Again: true},
		{Kind: "failed", Verb: "EPRT", Announced: at("203.0.113.101:41000"), Why: "the table of expectations is full"},
		{Kind: "unreadable", Verb: "227", Line: "227 \x1b[2J\u202e\xff", Why: "no\x1b[2J numbers"},
		{Kind: control.KindMissed, Missed: 12},
		{Kind: "stays-queued", Client: at("[2001:db8:113::101]:40001"), Server: at("[2001:db8:100::2]:21"), Why: "no room"},
		{Kind: "encrypted"},
	}
	var lines eventLines
	var text strings.Builder
	for i, ev := range events {
		ev.Time = time.Date(2024, 5, 4, 12, 0, i, 1_000_000*i, time.UTC)
		if !ev.Client.IsValid() && ev.Kind != control.KindMissed {
			ev.Client, ev.Server = at("203.0.113.101:40000"), at("192.168.1.2:21")
		}
		// As it comes from a daemon.
		line, err := json.Marshal(ev)
		if err != nil {
			t.Fatal(err)
		}
		var come control.Event
		if err := json.Unmarshal(line, &come); err != nil {
			t.Fatal(err)
		}
		text.WriteString(lines.line(&come, time.UTC))
	}
	wantGolden(t, "events.golden", text.String())
}

// TestNoDaemon asks where there is none.
func TestNoDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	const want = "no daemon answers, as % is not there: start the daemon (nfq-ftphelper run --rules), or say where its control socket is with --control"
	for _, command := range []string{"flows", "events"} {
		code, stdout, stderr := call(t, command, "--control", path)
		if code != exitFailure || stdout != "" || stderr != "nfq-ftphelper: "+strings.Replace(want, "%", path, 1)+"\n" {
			t.Errorf("%s: exit code %d, it says\n%s%s", command, code, stdout, stderr)
		}
	}
	code, stdout, stderr := call(t, "top", "--control", path)
	if code != exitFailure || stdout != "" || !strings.Contains(stderr, `top needs a terminal: use "nfq-ftphelper flows"`) {
		t.Errorf("top: exit code %d, it says\n%s%s", code, stdout, stderr)
	}
}
