// Package metrics serves a daemon's counters to Prometheus. It counts nothing: each request reads the
// daemon's counters.
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

// Queue has the counters of one queue.
type Queue struct {
	engine.Stats
	Number    uint16
	Tracked   int           // control connections in its table
	Handling  nfq.Durations // see nfq.Queue.Handling
	Overflows uint64        // see nfq.Queue.Overflows
	Kernel    *nfq.Status   // nil if unknown
}

// Daemon is the daemon as this package uses it.
type Daemon interface {
	// Queues returns the counters of every queue in the order of their numbers, or an error if a queue is not
	// served or does not answer in time.
	Queues(ctx context.Context) ([]Queue, error)
	// Ready returns an error if FTP is not helped.
	Ready(ctx context.Context) error
}

// timeout is the daemon's time for an answer.
const timeout = 5 * time.Second

const prefix = "nfq_ftphelper_"

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

var (
	packets      = desc("packets_total", "Packets released: accepted unchanged, changed, or unread, because conntrack does not know their connection or they are not complete TCP packets.", "queue", "result")
	endpoints    = desc("endpoints_total", "Announced addresses and ports for data connections, by the command (PORT, EPRT) or reply (227, 229).", "verb")
	expectations = desc("expectations_total", "Data connections that the policy allows: expected by conntrack, failed, or, with --monitor, not opened.", "result")
	refusals     = desc("refusals_total", "Announced addresses and ports that the policy refused, by reason.", "reason")
	rewrites     = desc("rewrites_total", "Control lines in which an address or port was rewritten.")
	holds        = desc("holds_total", "Packets that were held, such as for the rest of a line.")
	holdTimeouts = desc("hold_timeouts_total", "Times that held packets were released unchanged because --hold-time had passed.")
	waiting      = desc("queue_packets", "Packets in the queue without a verdict.", "queue")
	dropped      = desc("queue_dropped_total", "Packets that the kernel dropped because the queue or its socket was full: 0, unless another program has configured the queue.", "queue")
	overflows    = desc("queue_overflows_total", "Times that the queue's socket was full, and the kernel let packets pass unread.", "queue")
	handling     = desc("packet_handling_seconds", "Time from the receipt of a packet to its verdict, or until it was held.", "queue")
	tracked      = desc("tracked_connections", "Control connections in the table. Some may be over, or unknown to conntrack.", "queue")
	ready        = desc("ready", "1 if all queues are served, and rules that were right at the start still are.")
	monitor      = desc("monitor", "1 if the daemon only monitors (--monitor): it opens and changes nothing.")
	buildInfo    = desc("build_info", "Always 1. The labels are the versions of the program and of Go.", "version", "goversion")
)

// Handler serves the metrics of a daemon in the format that the client requests. A daemon that does not
// answer in time fails the request. monitors is true for a daemon that opens and changes nothing.
func Handler(d Daemon, version string, monitors bool) http.Handler {
	process := prometheus.NewRegistry()
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		queues, err := d.Queues(ctx)
		if err != nil {
			control.WriteError(w, http.StatusServiceUnavailable, fmt.Errorf("metrics not available: %w", err))
			return
		}
		now := prometheus.NewRegistry()
		now.MustRegister(snapshot{queues, d.Ready(ctx) == nil, monitors, version})
		// Compression would need more memory than the rest of the daemon.
		promhttp.HandlerFor(prometheus.Gatherers{now, process}, promhttp.HandlerOpts{DisableCompression: true}).ServeHTTP(w, r)
	})
}

// snapshot has the state of a daemon at one time.
type snapshot struct {
	queues   []Queue
	ready    bool
	monitors bool
	version  string
}

// Describe implements prometheus.Collector.
func (s snapshot) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, to) }

// Collect implements prometheus.Collector. A series that exists has existed from the start.
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
	count(rewrites, all.Edits)
	count(holds, all.Held)
	count(holdTimeouts, all.GaveUp)
	metric(ready, prometheus.GaugeValue, truth[s.ready])
	metric(monitor, prometheus.GaugeValue, truth[s.monitors])
	metric(buildInfo, prometheus.GaugeValue, 1, s.version, runtime.Version())
}

// truth is the value of a boolean gauge.
var truth = map[bool]float64{true: 1}

// sum adds up the counters of all queues.
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

// histogram converts durations into a histogram. Durations beyond the last bound are in its total only.
func histogram(d nfq.Durations, labels ...string) prometheus.Metric {
	last := len(d.Counts) - 1
	buckets, total := make(map[float64]uint64, last), uint64(0)
	for i, n := range d.Counts[:last] {
		total += n
		buckets[(1024 << i * time.Nanosecond).Seconds()] = total
	}
	return prometheus.MustNewConstHistogram(handling, total+d.Counts[last], d.Sum.Seconds(), buckets, labels...)
}
