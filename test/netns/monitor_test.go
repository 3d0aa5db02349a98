package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// monitorLine is a line of the JSON log of a daemon that monitors.
type monitorLine struct {
	Msg, Kind, Verb, Announced, Advertised string
	Expected                               string `json:"expected_at"`
	Monitor                                bool
}

// monitored returns what a JSON log says was decided about announced endpoints.
func monitored(t *testing.T, log string) (lines []monitorLine) {
	t.Helper()
	wantWords(t, log)
	for row := range strings.Lines(log) {
		var line monitorLine
		if err := json.Unmarshal([]byte(row), &line); err != nil {
			t.Errorf("%q: %v", row, err)
		}
		if line.Kind != "" && !line.Monitor {
			t.Errorf("nothing says that the daemon only monitors: %s", row)
		}
		if line.Verb != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestMonitor has a daemon only monitor, once without another helper, so that transfers fail, and
// once beside the kernel's own, so that they work. It logs each decision, and changes nothing.
func TestMonitor(t *testing.T) {
	t.Parallel()
	for _, helper := range []Helper{None, Kernel} {
		for _, family := range Families {
			t.Run(fmt.Sprintf("%s/%s", helper, family), func(t *testing.T) {
				t.Parallel()
				testMonitor(t, helper, family)
			})
		}
	}
}

func testMonitor(t *testing.T, helper Helper, family Family) {
	if helper == Kernel {
		needKernelHelper(t)
	}
	lab := newLab(t, Config{Situation: DNAT, Family: family, Helper: helper})
	site := startSite(t, lab.Server, family, SiteOptions{})
	router, ctx := lab.ServerRouter(), testContext(t, 2*time.Minute)
	d := daemon(t, BackEnd{})
	d.Rules, d.Flags = RulesOwn, []string{"--monitor", "--log-format", "json"}
	must.Do(t, router.StartHelper(ctx, Ours, d))
	expectations, err := router.WatchEvents(ctx, "expect")
	must.Do(t, err)
	if helper == None {
		wantNoData(t, family, func(verb Verb) Outcome { return lab.download(t, site, verb, failingTimeout) })
	} else {
		lab.wantDownloads(t, site, family.Verbs()...)
	}
	wantNothingInvalid(t, router)

	// A connection that is still there.
	client := lab.login(t)
	client.do("200", "NOOP")
	entries, err := router.Run(ctx, "", "conntrack", "-L", "-p", "tcp", "--orig-port-dst", "21", "-o", "labels")
	must.Do(t, err)
	if helper == None && (strings.Contains(entries, "helper=") || strings.Contains(entries, "labels=")) {
		t.Errorf("connections have a helper or a label:\n%s", entries)
	}
	if helper == Kernel && (!strings.Contains(entries, "helper=ftp") || regexp.MustCompile(`helper=[^f]`).MatchString(entries)) {
		t.Errorf("connections have another helper than the kernel's:\n%s", entries)
	}

	flows, err := router.Run(ctx, "", d.Binary, "flows", "--json", "--control", router.Control())
	if err != nil || !strings.Contains(flows, `"state":"monitored"`) && !strings.Contains(flows, `"state": "monitored"`) {
		t.Errorf("%v, the flows do not say that they are monitored:\n%s", err, flows)
	}
	status, err := router.Run(ctx, "", d.Binary, "status", "--control", router.Control())
	if err != nil || !strings.Contains(status, "monitoring only: nothing is opened or changed") || !strings.Contains(status, "helper     none") {
		t.Errorf("%v, the status is\n%s", err, status)
	}
	metrics := parseSamples(t, scrape(t, router))
	n := float64(len(family.Verbs()))
	if metrics["monitor"] != 1 || metrics[`expectations_total{result="would-open"}`] != n || metrics[`expectations_total{result="expected"}`] != 0 || metrics["ready"] != 1 {
		t.Errorf("the metrics are %v", metrics)
	}
	if got := get(t, router, "/readyz"); !strings.Contains(got, "monitoring only: nothing is opened or changed") {
		t.Errorf("/readyz says %q", got)
	}
	queue := fmt.Sprint(d.Queue)
	report, _ := doctor(t, router, "--monitor", "--queue", queue)
	if !strings.Contains(report, "the daemon only monitors (--monitor)") || strings.Contains(report, "problem") && helper == None {
		t.Errorf("doctor --monitor says\n%s", report)
	}
	if report, code := doctor(t, router, "--queue", queue); !strings.Contains(report, "is that of --monitor") || code != 1 {
		t.Errorf("doctor says, with exit code %d,\n%s", code, report)
	}
	client.quit()

	must.Do(t, router.StopDaemon(ctx))
	lines := monitored(t, router.DaemonProcess().Output())
	var verbs, expected []string
	for _, l := range lines {
		if l.Kind != "would-open" || l.Msg != "would open data connection" {
			t.Errorf("it has decided %+v", l)
		}
		verbs, expected = append(verbs, l.Verb), append(expected, l.Expected)
	}
	want := []string{"227", "229", "EPRT", "PORT"}
	if family == IPv6 {
		want = []string{"229", "EPRT"}
	}
	if slices.Sort(verbs); !slices.Equal(verbs, want) {
		t.Errorf("it has decided about %q, want %q", verbs, want)
	}
	seen := expectationEnds(expectations)
	slices.Sort(expected)
	switch {
	case helper == None && len(seen) > 0:
		t.Errorf("conntrack has expected %q", seen)
	case helper == Kernel && !slices.Equal(expected, seen):
		t.Errorf("it would have had conntrack expect %q, and the kernel's helper had it expect %q", expected, seen)
	}
	wantNoRules(t, router.Host)
}

// expectationEnds are where the data connections of new expectations go, in the events of conntrack(8).
func expectationEnds(p *Process) []string {
	var ends []string
	for _, m := range regexp.MustCompile(`\[NEW\].* dst=(\S+) .*?dport=(\d+) `).FindAllStringSubmatch(p.Output(), -1) {
		ends = append(ends, net.JoinHostPort(m[1], m[2]))
	}
	slices.Sort(ends)
	return ends
}

// get asks the daemon's control socket.
func get(t *testing.T, r *Router, path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.Control())
		},
	}}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://localhost" + path)
	must.Do(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	must.Do(t, err)
	return string(body)
}
