package metrics

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// fake is a Daemon.
type fake struct {
	queues      []Queue
	err, sleeps error
}

func (f fake) Queues(context.Context) ([]Queue, error) { return f.queues, f.err }
func (f fake) Ready(context.Context) error             { return f.sleeps }

// ask returns what a daemon's metrics are.
func ask(t *testing.T, d fake) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(d, "v1.2.3", true).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	return w
}

// TestHandler wants numbers of one queue to be by queue, and others to be summed up.
func TestHandler(t *testing.T) {
	first := Queue{Number: 7, Tracked: 3, Overflows: 4, Kernel: &nfq.Status{Waiting: 5, Full: 6, Lost: 1}}
	first.Stats = engine.Stats{Packets: 100, Unknown: 1, Malformed: 2, Changed: 10, Unchanged: 80, Expectations: 11, Failed: 12, WouldOpen: 19, Edits: 13, Held: 14, GaveUp: 15}
	first.Endpoints[parse.Reply229], first.Refused[engine.NotPeer] = 16, 17
	first.Handling.Sum = 1500 * time.Millisecond
	for i := range first.Handling.Counts {
		first.Handling.Counts[i] = 1 << i
	}
	second := Queue{Number: 8}
	second.Stats = engine.Stats{Unchanged: 1, Expectations: 1, Failed: 1, Edits: 1, Held: 1, GaveUp: 1}
	second.Endpoints[parse.Reply229], second.Refused[engine.NotPeer] = 1, 1
	text := ask(t, fake{queues: []Queue{first, second}}).Body.String()
	for _, line := range []string{
		`packets_total{queue="7",result="accepted"} 80`, `packets_total{queue="7",result="changed"} 10`, `packets_total{queue="7",result="unread"} 3`,
		`packets_total{queue="8",result="accepted"} 1`, `tracked_connections{queue="7"} 3`, `queue_overflows_total{queue="7"} 4`,
		`queue_packets{queue="7"} 5`, `queue_dropped_total{queue="7"} 7`,
		`expectations_total{result="expected"} 12`, `expectations_total{result="failed"} 13`, `expectations_total{result="would-open"} 19`, `rewrites_total 14`, `holds_total 15`, `hold_timeouts_total 16`,
		`endpoints_total{verb="229"} 17`, `endpoints_total{verb="PORT"} 0`, `refusals_total{reason="not_peer"} 18`, `refusals_total{reason="unasked"} 0`,
		// Less than 1024 ns, less than 2048 ns, less than 1024 ns << 15, and all.
		`packet_handling_seconds_bucket{queue="7",le="1.024e-06"} 1`, `packet_handling_seconds_bucket{queue="7",le="2.048e-06"} 3`,
		`packet_handling_seconds_bucket{queue="7",le="0.033554432"} 65535`, `packet_handling_seconds_bucket{queue="7",le="+Inf"} 131071`,
		`packet_handling_seconds_sum{queue="7"} 1.5`, `packet_handling_seconds_count{queue="7"} 131071`,
		`ready 1`, `monitor 1`,
	} {
		if !strings.Contains(text, "\n"+prefix+line+"\n") {
			t.Errorf("want %s, got\n%s", line, text)
		}
	}
	if strings.Contains(text, `queue_packets{queue="8"}`) || strings.Contains(text, `queue_dropped_total{queue="8"}`) {
		t.Error("got metrics of a queue without kernel status, want none")
	}
	if !strings.Contains(text, `",version="v1.2.3"} 1`+"\n") {
		t.Error("got no build_info")
	}
	for _, label := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(text, -1) {
		if err := engine.IsWord(label[1], label[2]); err != nil {
			t.Error(err)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("got %v, lint %v; want none", err, problems)
	}
	if text := ask(t, fake{sleeps: errors.New("the rules are missing")}).Body.String(); !strings.Contains(text, "\n"+prefix+"ready 0\n") {
		t.Errorf("a daemon that is not ready serves\n%s", text)
	}
}

// TestFail has a daemon that does not answer.
func TestFail(t *testing.T) {
	w := ask(t, fake{err: errors.New("queue 7 has not been served for 5s")})
	if got := w.Body.String(); w.Code != http.StatusServiceUnavailable || got != `{"error":"metrics not available: queue 7 has not been served for 5s"}`+"\n" {
		t.Errorf("got %d %s", w.Code, got)
	}
}
