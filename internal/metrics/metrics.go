// Package metrics tells Prometheus what a daemon has counted. Nothing is counted here: the daemon
// is asked when somebody asks.
package metrics

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// Queue is what there is to tell of one queue.
type Queue struct {
	engine.Stats
	Number    uint16
	Tracked   int           // control connections
	Handling  nfq.Durations // of its packets
	Overflows uint64        // see nfq.Queue.Overflows
	Kernel    *nfq.Status   // nil where it is not known
}

// Daemon is what is asked of the daemon.
type Daemon interface {
	// Queues returns what there is to tell of every queue, by its number, or an error if a queue is
	// not served or does not answer in time.
	Queues(ctx context.Context) ([]Queue, error)
	// Ready returns an error if FTP is not helped.
	Ready(ctx context.Context) error
}

// timeout is how long the daemon has to answer.
const timeout = 5 * time.Second

const prefix = "nfq_ftphelper_"

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

var (
	packets      = desc("packets_total", "Packets that were read and let go: accepted as they came, changed, or unread, since conntrack did not know their connection or they were no whole TCP packets.", "queue", "verdict")
	endpoints    = desc("endpoints_total", "Addresses and ports for data connections that were announced, by the command (PORT, EPRT) or the answer (227, 229) that did.", "verb")
	expectations = desc("expectations_total", "Data connections that were allowed: expected by conntrack, failed, or, with --monitor, not opened.", "result")
	refusals     = desc("refusals_total", "Announced addresses and ports that were not allowed, by the reason.", "reason")
	edits        = desc("edits_total", "Control lines in which an address or port was rewritten.")
	holds        = desc("holds_total", "Packets that had to wait for others, such as for the rest of a line.")
	gaveUp       = desc("holds_gave_up_total", "Times that packets waited in vain, and were let go as they were.")
	waiting      = desc("queue_waiting", "Packets in the queue that have no verdict yet.", "queue")
	dropped      = desc("queue_dropped_total", "Packets that the kernel dropped because the queue or its socket was full: none, unless something else than the daemon has set the queue up.", "queue")
	overflows    = desc("queue_overflows_total", "Times that the queue's socket was full, and the kernel let packets pass unread.", "queue")
	handling     = desc("packet_handling_seconds", "How long packets took from their receipt to their verdict, or until they had to wait.", "queue")
	tracked      = desc("tracked_connections", "Control connections in the table. Some of them may be over, or unknown to conntrack.", "queue")
	ready        = desc("ready", "1 if all queues are served, and the rules, if they were as expected at the start, still are.")
	monitor      = desc("monitor", "1 if the daemon only monitors (--monitor): it opens and changes nothing.")
	buildInfo    = desc("build_info", "Always 1. The labels say what was built.", "version", "goversion")
)

// Handler returns what serves the metrics of a daemon, in the format that the client asks for. A
// daemon that does not answer in time fails the request. Monitors says that it opens and changes nothing.
func Handler(d Daemon, version string, monitors bool) http.Handler {
	process := prometheus.NewRegistry()
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		queues, err := d.Queues(ctx)
		if err != nil {
			control.WriteError(w, http.StatusServiceUnavailable, fmt.Errorf("nothing can be told: %w", err))
			return
		}
		now := prometheus.NewRegistry()
		now.MustRegister(snapshot{queues, d.Ready(ctx) == nil, monitors, version})
		// Compression would take more memory than all the rest of the daemon.
		promhttp.HandlerFor(prometheus.Gatherers{now, process}, promhttp.HandlerOpts{DisableCompression: true}).ServeHTTP(w, r)
	})
}

// snapshot is what a daemon has said of itself.
type snapshot struct {
	queues   []Queue
	ready    bool
	monitors bool
	version  string
}

// Describe implements prometheus.Collector.
func (s snapshot) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, to) }

// Collect implements prometheus.Collector. Every series exists from the start, or never.
func (s snapshot) Collect(to chan<- prometheus.Metric) {
	metric := func(d *prometheus.Desc, typ prometheus.ValueType, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, typ, value, labels...)
	}
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		metric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for _, q := range s.queues {
		number := strconv.Itoa(int(q.Number))
		count(packets, q.Unchanged, number, engine.Accepted.String())
		count(packets, q.Changed, number, engine.Changed.String())
		count(packets, q.Unknown+q.Malformed, number, engine.Unread.String())
		count(overflows, q.Overflows, number)
		if k := q.Kernel; k != nil {
			metric(waiting, prometheus.GaugeValue, float64(k.Waiting), number)
			count(dropped, uint64(k.Full+k.Lost), number)
		}
		metric(tracked, prometheus.GaugeValue, float64(q.Tracked), number)
		to <- histogram(q.Handling, number)
	}
	all := sum(s.queues)
	for v := parse.PORT; v.Announces(); v++ {
		count(endpoints, all.Endpoints[v], v.String())
	}
	for _, r := range engine.Reasons() {
		count(refusals, all.Refused[r], r.String())
	}
	count(expectations, all.Expectations, engine.Expected.String())
	count(expectations, all.WouldOpen, engine.WouldOpen.String())
	count(expectations, all.Failed, engine.Failed.String())
	count(edits, all.Edits)
	count(holds, all.Held)
	count(gaveUp, all.GaveUp)
	metric(ready, prometheus.GaugeValue, truth[s.ready])
	metric(monitor, prometheus.GaugeValue, truth[s.monitors])
	metric(buildInfo, prometheus.GaugeValue, 1, s.version, runtime.Version())
}

// truth is how a gauge says yes.
var truth = map[bool]float64{true: 1}

// sum adds up what is told of all queues together.
func sum(queues []Queue) (all engine.Stats) {
	for _, q := range queues {
		for v := range all.Endpoints {
			all.Endpoints[v] += q.Endpoints[v]
		}
		for r := range all.Refused {
			all.Refused[r] += q.Refused[r]
		}
		all.Expectations += q.Expectations
		all.WouldOpen += q.WouldOpen
		all.Failed += q.Failed
		all.Edits += q.Edits
		all.Held += q.Held
		all.GaveUp += q.GaveUp
	}
	return all
}

// histogram turns durations into a histogram: what took longer than the last bound is in its total
// only.
func histogram(d nfq.Durations, labels ...string) prometheus.Metric {
	last := len(d.Counts) - 1
	buckets, total := make(map[float64]uint64, last), uint64(0)
	for i, n := range d.Counts[:last] {
		total += n
		buckets[(1024 << i * time.Nanosecond).Seconds()] = total
	}
	return prometheus.MustNewConstHistogram(handling, total+d.Counts[last], d.Sum.Seconds(), buckets, labels...)
}
