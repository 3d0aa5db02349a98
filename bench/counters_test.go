package main

import (
	"os"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

func TestIdleTime(t *testing.T) {
	const text = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 400 50 6 7 8 0 0\ncpu1 9 9 9 1 2 9 9 3 9 9\nintr 1 2 3\n"
	for _, c := range []struct {
		processor, ticks, count int
	}{{0, 458, 1}, {1, 6, 1}, {allProcessors, 464, 2}} {
		got, count, err := idleTime(text, c.processor)
		if want := time.Duration(c.ticks) * 10 * time.Millisecond; got != want || count != c.count || err != nil {
			t.Errorf("processor %d: %v, %d, %v; want %v", c.processor, got, count, err, want)
		}
	}
	for _, text := range []string{"", "cpu0 1 2 3\n", "cpu1 1 2 3 4 5 6 7 8 9\n", "cpu0 1 2 3 x 5 6 7 8 9\n"} {
		if _, _, err := idleTime(text, 0); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestProcessorTime(t *testing.T) {
	before, err := processorTime(os.Getpid())
	must.Do(t, err)
	for begin := time.Now(); time.Since(begin) < 20*time.Millisecond; {
	}
	after, err := processorTime(os.Getpid())
	if err != nil || after <= before {
		t.Errorf("%v after %v (%v)", after, before, err)
	}
	if _, err := processorTime(1 << 22); err == nil {
		t.Error("a process that cannot be has used time")
	}
}
