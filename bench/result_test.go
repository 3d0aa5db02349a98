package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

var update = flag.Bool("update", false, "write testdata")

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{[]float64{7}, 7}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(c.values); got != c.want {
			t.Errorf("the median of %v is %v", c.values, got)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

// example is a result with the gaps that real ones have.
func example() Result {
	r := Result{Kernel: "6.12.1-amd64", Processor: "A processor", Processors: 2, Load: 1.25, Situation: "DNAT", Reference: kernel, Rounds: 3}
	add := func(variant, limit string, daemon bool, w Workload, samples ...Sample) {
		r.Cells = append(r.Cells, Cell{
			Variant: variant, Limit: limit, Daemon: daemon, Workload: w, Samples: samples,
			Latencies: Latencies{20_000: 70, 40_000: 28, 1_000_000: 1, 5_000_000: 1},
		})
	}
	sample := func(operations int, daemon, machine float64, packets, lines int) Sample {
		return Sample{Operations: operations, Seconds: 2, DaemonSeconds: daemon, MachineSeconds: machine, Packets: packets, Lines: lines}
	}
	noop := Workload{Operation: Noop, Connections: 1}
	add(kernel, "", false, noop, sample(1000, 0, 1, 0, 2000), sample(2000, 0, 2, 0, 4000), sample(500, 0, 0.5, 0, 1000))
	add(cFull, "", true, noop, sample(800, 0.2, 1, 1600, 1600), sample(1800, 0.4, 2, 3600, 3600), sample(400, 0.1, 0.5, 800, 800))
	add(oursFull, cFull, true, noop, sample(700, 0.7, 1, 1400, 1400), sample(1000, 1.5, 2, 2000, 2000), sample(380, 0.3, 0.5, 760, 760))
	bulk := Workload{Operation: Transfer, Connections: 1, Length: 1 << 30, Count: 1}
	add(kernel, "", false, bulk, sample(1, 0, 1, 0, 5))
	add(oursFull, cFull, true, bulk, sample(1, 0.01, 1, 7, 5))
	return r
}

// The ratio is the median of the rounds' ratios, not the ratio of the medians.
func TestRatio(t *testing.T) {
	r := example()
	c := r.cell(oursFull, Workload{Operation: Noop, Connections: 1})
	if got, ok := r.ratio(c, kernel); !ok || got != (spread{0.7, 0.5, 0.76}) {
		t.Errorf("of the kernel's: %v, %v", got, ok)
	}
	if got, ok := r.ratio(c, conntrackd); ok {
		t.Errorf("to what was not measured: %v", got)
	}
}

func TestMarkdown(t *testing.T) {
	golden := filepath.Join("testdata", "table.golden")
	got := markdown([]Result{example()}, "6.12")
	if *update {
		must.Do(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	must.Do(t, err)
	if got != string(want) {
		t.Errorf("the tables differ from %s (-update writes them):\n%s", golden, got)
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                        "0.00 µs",
		1234:                     "1.23 µs",
		12345:                    "12.3 µs",
		1234567:                  "1235 µs",
		12345 * time.Microsecond: "12.3 ms",
		12345 * time.Millisecond: "12.3 s",
	} {
		if got := duration(d); got != want {
			t.Errorf("%d ns: %q, want %q", d, got, want)
		}
	}
}

func TestPlots(t *testing.T) {
	r := example()
	for name, plot := range map[string]func(Result) ([]byte, error){"ratios": plotRatios, "latency": plotLatency} {
		text, err := plot(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		decoder := xml.NewDecoder(bytes.NewReader(text))
		for err == nil {
			_, err = decoder.Token()
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s is no XML: %v", name, err)
		}
		for _, want := range []string{kernel, cFull, oursFull, "NOOP"} {
			if !strings.Contains(string(text), ">"+want) {
				t.Errorf("%s does not name %s", name, want)
			}
		}
		if strings.Contains(string(text), "NaN") {
			t.Errorf("%s has something that is no number", name)
		}
	}
}

func TestKernelName(t *testing.T) {
	for release, want := range map[string]string{"6.12.111+deb12-amd64": "6.12", "6.1.0-1-amd64": "6.1", "7": "7"} {
		if got := kernelName(release); got != want {
			t.Errorf("%s: %s, want %s", release, got, want)
		}
	}
}
