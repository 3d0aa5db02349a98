package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// samples are values by series, such as `name{label="value"}`, without the prefix of all names. A
// histogram is its count.
type samples map[string]float64

const metricPrefix = "nfq_ftphelper_"

// parseSamples reads Prometheus' text format.
func parseSamples(t testing.TB, text string) samples {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	must.Do(t, err)
	values := make(samples)
	for name, family := range families {
		for _, m := range family.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			series := strings.TrimPrefix(name, metricPrefix)
			if len(labels) > 0 {
				series += "{" + strings.Join(labels, ",") + "}"
			}
			values[series] = map[dto.MetricType]float64{
				dto.MetricType_COUNTER: m.GetCounter().GetValue(), dto.MetricType_GAUGE: m.GetGauge().GetValue(),
				dto.MetricType_HISTOGRAM: float64(m.GetHistogram().GetSampleCount()),
			}[family.GetType()]
		}
	}
	return values
}

// scrape asks a router's daemon for its metrics.
func scrape(t testing.TB, r *Router) string {
	t.Helper()
	var text strings.Builder
	err := control.NewClient(r.Control()).Metrics(testContext(t, 20*time.Second), func(body io.Reader) error {
		_, err := io.Copy(&text, body)
		return err
	})
	must.Do(t, err)
	return text.String()
}

// TestMetrics scrapes a daemon before and after a dialogue of which everything is known, and wants
// every number to be right.
func TestMetrics(t *testing.T) {
	t.Parallel()
	const at = "127.0.0.1:9921"
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours, Daemon: Daemon{Flags: []string{"--metrics", at}}})
	router, ctx := lab.ServerRouter(), testContext(t, time.Minute)
	neverRetransmit(t, lab.Client)
	neverRetransmit(t, lab.Server)
	lab.serve(t, script{})

	number := uint16(100)
	if router.daemon.Rules == rulesetFile {
		number = rules.DefaultQueue
	}
	ofQueue := func(name string, labels ...string) string {
		return fmt.Sprintf("%s{%s}", name, strings.Join(append([]string{fmt.Sprintf("queue=\"%d\"", number)}, labels...), ","))
	}
	const accepted, changed, unread = `result="accepted"`, `result="changed"`, `result="unread"`
	got, want := parseSamples(t, scrape(t, router)), samples{"ready": 1}
	for _, verb := range []string{"PORT", "EPRT", "227", "229"} {
		want[fmt.Sprintf("endpoints_total{verb=%q}", verb)] = 0
	}
	for _, r := range engine.Reasons() {
		want[fmt.Sprintf("refusals_total{reason=%q}", r)] = 0
	}
	for _, series := range []string{
		ofQueue("packets_total", accepted), ofQueue("packets_total", changed), ofQueue("packets_total", unread),
		ofQueue("packet_handling_seconds"), ofQueue("tracked_connections"),
		ofQueue("queue_packets"), ofQueue("queue_dropped_total"), ofQueue("queue_overflows_total"),
		`expectations_total{result="expected"}`, `expectations_total{result="failed"}`, `expectations_total{result="would-open"}`, "monitor",
		"rewrites_total", "holds_total", "hold_timeouts_total",
	} {
		want[series] = 0
	}
	for series := range got {
		if strings.HasPrefix(series, "build_info") {
			want[series] = 1
		}
	}
	wantSamples(t, got, want)

	const rounds = 3
	c := lab.login(t)
	for range rounds {
		c.wantFiles(lab.ServerAddress, Verbs...)
	}
	c.do("200", "PORT 203,0,113,101,0,20")
	c.do("200", "PORT 203,0,113,102,8,0")
	c.do("200", "PORT 203,0,113,102,8,0")
	c.send("PORT 203,0,113,1")
	time.Sleep(100 * time.Millisecond) // so that it is a packet of its own
	c.send("01,8,0\r\n")
	c.want("200")
	queued, err := router.QueuedByQueue()
	must.Do(t, err)
	const rewritten = rounds // every 227
	packets := queued[int(number)]
	for series, n := range map[string]float64{
		`endpoints_total{verb="PORT"}`: rounds + 4, `endpoints_total{verb="EPRT"}`: rounds, `endpoints_total{verb="227"}`: rounds, `endpoints_total{verb="229"}`: rounds,
		`refusals_total{reason="low_port"}`: 1, `refusals_total{reason="not_peer"}`: 2,
		`expectations_total{result="expected"}`: 4*rounds + 1, "rewrites_total": rewritten, "holds_total": 1,
		ofQueue("packets_total", accepted): float64(packets - rewritten), ofQueue("packets_total", changed): rewritten,
		ofQueue("packet_handling_seconds"): float64(packets), ofQueue("tracked_connections"): 1,
	} {
		want[series] = n
	}
	text := scrape(t, router)
	wantSamples(t, parseSamples(t, text), want)

	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, lint says %v", err, problems)
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(text, "\n"+name+" ") {
			t.Errorf("there is no %s", name)
		}
	}

	// Over TCP there is the same, and nothing about who talks to whom.
	must.Do(t, router.Nft(ctx, "add element inet filter ftp { 9921 }\n"))
	web := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return router.Dial(ctx, netip.AddrPort{}, netip.MustParseAddrPort(at))
	}}}
	defer web.CloseIdleConnections()
	for path, status := range map[string]int{
		control.PathMetrics: 200, control.PathLive: 200, control.PathReady: 200,
		control.PathFlows: 404, control.PathEvents: 404, control.PathStatus: 404, control.PathVersion: 404, "/": 404,
	} {
		answer, err := web.Get("http://" + at + path)
		must.Do(t, err)
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != status {
			t.Errorf("%s: %v, %s\n%s", path, err, answer.Status, body)
		}
		if path == control.PathMetrics {
			wantSamples(t, parseSamples(t, string(body)), want)
		}
	}

	// One socket is for one daemon.
	output, err := router.Run(ctx, "", router.daemon.Binary, "run", "--config", "none", "--queue", "101", "--control", router.Control())
	if err == nil || !strings.Contains(err.Error(), "nfq-ftphelper: another daemon serves "+router.Control()+": choose another with --control") {
		t.Errorf("a second daemon on the same socket: %v\n%s", err, output)
	}

	// Without its rules it is not ready.
	d := control.NewClient(router.Control())
	must.Do(t, d.Ready(ctx))
	must.Do(t, router.Nft(ctx, "flush chain inet nfq_ftphelper control"))
	if err := d.Ready(ctx); err == nil || !strings.Contains(err.Error(), "the daemon says: ") {
		t.Errorf("without its rules: %v", err)
	}
	if parseSamples(t, scrape(t, router))["ready"] != 0 {
		t.Error("without its rules the daemon is ready")
	}
}

// wantSamples compares what is told of the helper itself.
func wantSamples(t testing.TB, got, want samples) {
	t.Helper()
	for _, series := range slices.Sorted(maps.Keys(got)) {
		if strings.HasPrefix(series, "go_") || strings.HasPrefix(series, "process_") {
			continue
		}
		if n, ok := want[series]; !ok || got[series] != n {
			t.Errorf("%s is %v, want %v (%v)", series, got[series], n, ok)
		}
	}
	for series := range want {
		if _, ok := got[series]; !ok {
			t.Errorf("there is no %s", series)
		}
	}
}

// TestControlUnderFire has dozens of clients send rubbish to the control socket, follow events
// without reading them and ask for everything, while files are transferred.
func TestControlUnderFire(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
	router := lab.ServerRouter()
	lab.serve(t, script{})
	ctx, stop := context.WithCancel(testContext(t, time.Minute))
	var fire sync.WaitGroup
	defer fire.Wait()
	defer stop()
	for i := range 24 {
		fire.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for ctx.Err() == nil {
				attack(ctx, router.Control(), random)
			}
		})
	}
	const clients, rounds = 8, 10
	var all sync.WaitGroup
	for range clients {
		c := lab.dial(t)
		c.t = onGoroutine{t}
		all.Go(func() {
			c.login()
			for range rounds {
				c.wantFiles(lab.ServerAddress, Verbs...)
			}
			c.quit()
		})
	}
	all.Wait()
	stop()
	fire.Wait()
	must.Do(t, control.NewClient(router.Control()).Ready(testContext(t, 20*time.Second)))
	wantNothingInvalid(t, lab.Routers...)
	if counts := stopAndCount(t, router); counts["expected"] != clients*rounds*len(Verbs) || counts["failed"]+counts["unknown"]+counts["overflows"] > 0 {
		t.Errorf("the daemon is to have helped %d times: %v", clients*rounds*len(Verbs), counts)
	}
	if _, err := os.Lstat(router.Control()); err == nil {
		t.Error("the daemon has left its control socket behind")
	}
}

// attack does one unfriendly thing.
func attack(ctx context.Context, path string, random *rand.Rand) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })()
	get := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }
	rubbish := make([]byte, 1<<16)
	for i := range rubbish {
		rubbish[i] = byte(random.Uint32())
	}
	read := true
	text := [...]string{
		string(rubbish), get("/" + strings.Repeat("x", 1<<16)), "GET /v1/flows HT", "POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n" + string(rubbish[:99]),
		get(control.PathFlows), get(control.PathMetrics), strings.Repeat(get(control.PathLive), 100), get(control.PathEvents),
	}
	n := random.IntN(len(text))
	if n == len(text)-1 {
		read = false
	}
	if _, err := io.WriteString(c, text[n]); err != nil {
		return
	}
	if read {
		io.CopyN(io.Discard, c, 1<<20)
	} else {
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// TestFlowsAndEvents has the commands of these names tell of two connections, one of which ends.
func TestFlowsAndEvents(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours, Daemon: Daemon{BackEnd: BackEnd{Queues: 2}}})
	router, ctx := lab.ServerRouter(), testContext(t, time.Minute)
	lab.serve(t, script{replies: map[string]string{"AUTH": "234 Go on"}})

	events, err := router.Start(exec.Command(router.daemon.Binary, "events", "--control", router.Control()))
	must.Do(t, err)
	// It follows as soon as it is connected, and says nothing about it: a packet shows that.
	var over *net.TCPAddr
	for follows := false; !follows; {
		c := lab.login(t)
		c.quit()
		over = c.conn.LocalAddr().(*net.TCPAddr)
		follows = strings.Contains(events.Output(), "tracked")
	}
	c := lab.login(t)
	c.fetchBy(PASV, "file", lab.ServerAddress)
	c.do("200", "PORT 203,0,113,101,0,20")
	other := lab.login(t)
	other.do("234", "AUTH TLS")

	client, otherClient := c.conn.LocalAddr().String(), other.conn.LocalAddr().String()
	for _, want := range []string{
		`(?m)^\d\d:\d\d:\d\d\.\d{3}  tracked       ` + client + `  +192\.168\.1\.2:21$`,
		`expected      ` + client + `  +192\.168\.1\.2:21         227 192\.168\.1\.2:(\d+), advertised as 192\.0\.2\.2:(\d+)\n`,
		`refused       ` + client + `  +192\.168\.1\.2:21         PORT 203\.0\.113\.101:20: the port is below the lowest one allowed\n`,
		`encrypted     ` + otherClient,
	} {
		if err := events.WaitOutput(ctx, regexp.MustCompile(want).MatchString); err != nil {
			t.Errorf("no line with %s: %v", want, err)
		}
	}
	text := router.command(t, "flows")
	for _, want := range []string{
		client + `  +192\.168\.1\.2:21  read +1 +1  PORT 20: low_port +server reached at 192\.0\.2\.2\n`,
		otherClient + `  +192\.168\.1\.2:21  encrypted +0 +0 +server reached at 192\.0\.2\.2\n`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no line with %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, over.String()) {
		t.Errorf("%s is closing, and listed in\n%s", over, text)
	}
	if text = router.command(t, "flows", "--all"); !strings.Contains(text, over.String()) {
		t.Errorf("there is no %s in\n%s", over, text)
	}
	var flows control.Flows
	if err := json.Unmarshal([]byte(router.command(t, "flows", "--json", "--all")), &flows); err != nil || flows.Unchecked > 0 || len(flows.Flows) != strings.Count(text, "\n")-1 {
		t.Errorf("%v, as JSON there are %+v", err, flows)
	}
	// Conntrack remembers one that is over for a while.
	if _, err := router.Run(ctx, "", "conntrack", "-D", "-p", "tcp", "--orig-port-src", strconv.Itoa(over.Port)); err != nil {
		t.Fatal(err)
	}
	if text := router.command(t, "flows", "--all"); strings.Contains(text, over.String()) || !strings.Contains(text, client) {
		t.Errorf("when conntrack has forgotten %s:\n%s", over, text)
	}
	must.Do(t, router.StopDaemon(ctx))
	if err := events.Wait(ctx); err == nil || !strings.HasSuffix(events.Output(), "nfq-ftphelper: the daemon has stopped\n") {
		t.Errorf("when the daemon stops: %v", err)
	}
}

// TestTop has top on a terminal beside transfers, and looks at what it shows.
func TestTop(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
	router, ctx := lab.ServerRouter(), testContext(t, time.Minute)
	lab.serve(t, script{})
	// script gives it a terminal.
	cmd := exec.Command("script", "-qfec", fmt.Sprintf("stty rows 24 cols 80; exec %s top --control %s", router.daemon.Binary, router.Control()), "/dev/null")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TERM=xterm-256color", "LC_ALL=C.UTF-8"}
	keys, err := cmd.StdinPipe()
	must.Do(t, err)
	top, err := router.Start(cmd)
	must.Do(t, err)
	c := lab.login(t)
	for !strings.Contains(top.Output(), c.conn.LocalAddr().String()) {
		if err := ctx.Err(); err != nil || !top.Running() {
			t.Fatalf("%v, it shows\n%q", err, top.Output())
		}
		c.fetchBy(PASV, "file", lab.ServerAddress)
		time.Sleep(50 * time.Millisecond)
	}
	for _, step := range []struct{ keys, want string }{
		{"j\r", "Last announced"}, {"q", ""},
	} {
		if _, err := io.WriteString(keys, step.keys); err != nil {
			t.Fatal(err)
		}
		if err := top.WaitOutput(ctx, func(output string) bool { return strings.Contains(output, step.want) }); err != nil {
			t.Errorf("after %q: %v", step.keys, err)
		}
	}
	must.Do(t, top.Wait(ctx))
}
