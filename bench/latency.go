package main

import (
	"maps"
	"math/bits"
	"slices"
	"time"
)

// Latencies counts durations by their length. Lengths are rounded down to one of 64 steps in
// each power of two, so that they are right within 1/64. The keys are nanoseconds.
type Latencies map[int64]uint64

// latencyBuckets is enough for every duration.
const latencyBuckets = 64 * (64 - 6)

// recorder is Latencies while they are measured: it allocates nothing.
type recorder [latencyBuckets]uint64

func (r *recorder) add(d time.Duration) { r[bucket(d)]++ }

func (r *recorder) latencies() Latencies {
	l := make(Latencies)
	for i, n := range r {
		if n > 0 {
			l[bucketStart(i)] = n
		}
	}
	return l
}

func bucket(d time.Duration) int {
	ns := uint64(max(d, 0))
	shift := max(bits.Len64(ns)-7, 0)
	return shift<<6 + int(ns>>shift)
}

// bucketStart is the shortest duration of a bucket.
func bucketStart(i int) int64 {
	shift := max(i>>6-1, 0)
	return int64(i-shift<<6) << shift
}

// Add counts another's durations, too.
func (l Latencies) Add(other Latencies) {
	for ns, n := range other {
		l[ns] += n
	}
}

// Quantile is the duration that a part q (0 to 1) of all is not longer than; 0 if there is none.
func (l Latencies) Quantile(q float64) time.Duration {
	var total uint64
	for _, n := range l {
		total += n
	}
	var seen uint64
	for _, ns := range slices.Sorted(maps.Keys(l)) {
		if seen += l[ns]; float64(seen) >= q*float64(total) {
			return time.Duration(ns)
		}
	}
	return 0
}
