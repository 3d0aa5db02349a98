package netns

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// wantWords parses lines of JSON, and compares each value whose key is a term with the list of words. It
// returns the lines by their kind.
func wantWords(t *testing.T, text string) map[string][]map[string]any {
	t.Helper()
	byKind := make(map[string][]map[string]any)
	for row := range strings.Lines(text) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(row), &fields); err != nil {
			t.Errorf("%q: %v", row, err)
			continue
		}
		for key, value := range fields {
			switch word, ok := value.(string); {
			case ok:
				if err := engine.IsWord(key, word); err != nil {
					t.Errorf("%v: %s", err, row)
				}
			case engine.IsWord(key, "") != nil:
				t.Errorf("%s has no word: %s", key, row)
			}
		}
		if kind, ok := fields["kind"].(string); ok {
			byKind[kind] = append(byKind[kind], fields)
		}
	}
	return byKind
}

// TestWords has the daemon log in JSON, and compares each value in the log, the events, the flows and the
// metrics with the list of words. The three say the same of the same.
func TestWords(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNATMasquerade, Family: IPv4, Helper: Ours,
		Daemon: Daemon{Flags: []string{"--log-format", "json", "--log-opened"}}})
	router, ctx := lab.ServerRouter(), testContext(t, time.Minute)
	lab.serve(t, script{})
	events, err := router.Start(exec.Command(router.daemon.Binary, "events", "--json", "--control", router.Control()))
	must.Do(t, err)
	client := lab.dial(t)
	// Until the events are followed.
	deadline := time.Now().Add(Scale(20 * time.Second))
	for !strings.Contains(events.Output(), `"tracked"`) {
		if time.Now().After(deadline) {
			t.Fatal("no event was shown")
		}
		c := lab.login(t)
		c.quit()
	}
	client.login()
	client.wantFiles(lab.ServerAddress, Verbs...)
	const refusals = 6
	for range refusals {
		client.do("200", "PORT 203,0,113,101,0,20")
	}
	client.do("200", "PORT 203,0,113,102,8,0")
	must.Do(t, events.WaitOutput(ctx, func(text string) bool { return strings.Contains(text, "not_peer") }))
	var all struct{ Flows []map[string]any }
	must.Do(t, json.Unmarshal([]byte(router.command(t, "flows", "--json")), &all))
	if len(all.Flows) == 0 {
		t.Error("no flow was listed")
	}
	for _, flow := range all.Flows {
		row, err := json.Marshal(flow)
		must.Do(t, err)
		wantWords(t, string(row))
	}
	for _, label := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(scrape(t, router), -1) {
		if err := engine.IsWord(label[1], label[2]); err != nil {
			t.Error(err)
		}
	}
	shown := wantWords(t, events.Output())
	client.quit()
	must.Do(t, router.StopDaemon(ctx))

	logged := wantWords(t, router.DaemonProcess().Output())
	if n := len(logged["expected"]); n != len(Verbs) || n != len(shown["expected"]) {
		t.Fatalf("%d lines for opened data connections, and %d events, of %d", n, len(shown["expected"]), len(Verbs))
	}
	for i, line := range logged["expected"] {
		for _, key := range []string{"client", "server", "verb", "announced", "advertised", "expected_at"} {
			if line[key] == nil || line[key] != shown["expected"][i][key] {
				t.Errorf("%s is %v in the log and %v in the event", key, line[key], shown["expected"][i][key])
			}
		}
		if line["level"] != "INFO" {
			t.Errorf("%v", line)
		}
	}
	// A line for the first one of each reason, and one for the others.
	var got []string
	for _, line := range logged["refused"] {
		got = append(got, fmt.Sprint(line["reason"], " ", line["count"]))
	}
	want := []string{"low_port <nil>", "not_peer <nil>", fmt.Sprint("low_port ", refusals-1)}
	if fmt.Sprint(got) != fmt.Sprint(want) || len(shown["refused"]) != refusals+1 {
		t.Errorf("refusals: %q, want %q, and %d events", got, want, len(shown["refused"]))
	}
}
