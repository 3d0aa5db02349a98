package main

import (
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	last := -1
	for d := time.Duration(0); d < 100*time.Second; d += d/100 + 1 {
		i := bucket(d)
		start := time.Duration(bucketStart(i))
		if i < last || start > d || d-start > d/64 {
			t.Fatalf("%d ns are in bucket %d, which starts at %d; the one before was %d", d, i, start, last)
		}
		last = i
	}
	for _, d := range []time.Duration{-1, 1<<63 - 1} {
		if i := bucket(d); i < 0 || i >= latencyBuckets {
			t.Errorf("%d ns are in bucket %d of %d", d, i, latencyBuckets)
		}
	}
}

func TestLatencies(t *testing.T) {
	var r recorder
	for i := range 100 {
		r.add(time.Duration(i+1) * time.Microsecond)
	}
	l := r.latencies()
	l.Add(Latencies{int64(time.Second): 100})
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0, time.Microsecond}, {0.25, 50 * time.Microsecond}, {0.5, 100 * time.Microsecond}, {0.99, time.Second}, {1, time.Second}} {
		if got := l.Quantile(c.q); got > c.want || c.want-got > c.want/64 {
			t.Errorf("quantile %v is %v, want %v", c.q, got, c.want)
		}
	}
	if got := (Latencies{}).Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
}
