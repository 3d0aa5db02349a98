package top

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	prometheus "github.com/prometheus/common/model"
)

// counters are the daemon's metrics that are shown, summed over all queues.
type counters struct {
	ready                               bool
	packets, transfers, refused, failed float64
	overflows                           float64
	// hasKernel is true if waiting and dropped are known, which need root.
	hasKernel        bool
	waiting, dropped float64
	// handling is the number of packets that took no longer than each bound, in seconds.
	handling map[float64]float64
}

// readCounters parses the text of package metrics.
func readCounters(text io.Reader) (counters, error) {
	parser := expfmt.NewTextParser(prometheus.LegacyValidation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return counters{}, fmt.Errorf("read the daemon's metrics: %w", err)
	}
	sum := func(name string, labels ...string) (total float64) {
		for _, m := range families["nfq_ftphelper_"+name].GetMetric() {
			if len(labels) == 0 || slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return slices.Contains(labels, l.GetValue()) }) {
				total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		return total
	}
	c := counters{
		ready: sum("ready") == 1, packets: sum("packets_total"), transfers: sum("expectations_total", "expected"),
		refused: sum("refusals_total"), failed: sum("expectations_total", "failed"),
		hasKernel: families["nfq_ftphelper_queue_packets"] != nil, waiting: sum("queue_packets"), dropped: sum("queue_dropped_total"), overflows: sum("queue_overflows_total"),
		handling: make(map[float64]float64),
	}
	for _, m := range families["nfq_ftphelper_packet_handling_seconds"].GetMetric() {
		for _, b := range m.GetHistogram().GetBucket() {
			c.handling[b.GetUpperBound()] += float64(b.GetCumulativeCount())
		}
	}
	return c, nil
}

// quantile returns the time within which the share q of the packets between two states of the counters was
// handled, as "<1.0 µs", or ">34 ms" beyond the last bound; false if there were no packets.
func quantile(q float64, from, to counters) (string, bool) {
	var bounds []float64
	for b := range to.handling {
		bounds = append(bounds, b)
	}
	slices.Sort(bounds)
	total := to.handling[math.Inf(1)] - from.handling[math.Inf(1)]
	if total <= 0 {
		return "", false
	}
	var longest time.Duration
	for _, b := range bounds {
		if math.IsInf(b, 1) {
			break
		}
		longest = time.Duration(b * float64(time.Second))
		if to.handling[b]-from.handling[b] >= q*total {
			return "<" + short(longest), true
		}
	}
	return ">" + short(longest), true
}

// rate formats a number per second in five columns at most.
func rate(perSecond float64) string {
	switch {
	case perSecond <= 0:
		return "0"
	case perSecond < 9.95:
		return fmt.Sprintf("%.1f", perSecond)
	case perSecond < 9999.5:
		return fmt.Sprintf("%.0f", perSecond)
	case perSecond < 999_500:
		return fmt.Sprintf("%.0fk", perSecond/1e3)
	}
	return fmt.Sprintf("%.0fM", perSecond/1e6)
}

// number formats a count in five columns at most.
func number(n uint32) string {
	switch {
	case n < 100_000:
		return fmt.Sprint(n)
	case n < 10_000_000:
		return fmt.Sprintf("%dk", n/1000)
	}
	return fmt.Sprintf("%dM", n/1_000_000)
}

// short formats a duration with two significant digits.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Microsecond:
		return fmt.Sprintf("%.1f µs", d.Seconds()*1e6)
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f µs", d.Seconds()*1e6)
	}
	return strings.Replace(fmt.Sprintf("%.1f ms", d.Seconds()*1e3), ".0 ", " ", 1)
}

// ago formats the time since an event in three columns.
func ago(d time.Duration) string {
	switch {
	case d < 2*time.Second:
		return "now"
	case d < 100*time.Second:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 100*time.Minute:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 100*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", min(99, int(d.Hours()/24)))
}
