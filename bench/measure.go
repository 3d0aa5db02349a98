package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// selection is what of everything is measured. An empty list means all.
type selection struct {
	variants   []string
	operations []Operation
	// stock says that the kernel has what stock kernels have.
	stock bool
	// before says that there is an earlier build of the daemon.
	before bool
}

func (s selection) takes(c variant, situation netns.Situation, o Operation) bool {
	return c.fits(situation, o) && (s.stock || !c.stock) && (s.before || !c.before) &&
		(len(s.variants) == 0 || slices.Contains(s.variants, c.name)) &&
		(len(s.operations) == 0 || slices.Contains(s.operations, o))
}

// measure measures everything selected in one situation, and reports its progress.
func measure(ctx context.Context, situation netns.Situation, p plan, s selection, b binaries, load float64, progress io.Writer) (r Result, err error) {
	r = Result{
		Kernel:     kernelRelease(),
		Processor:  processor(),
		Processors: runtime.NumCPU(),
		Shared:     p.processor != allProcessors,
		Load:       load,
		Situation:  situation.String(),
		Reference:  reference(situation),
		Rounds:     p.rounds,
	}
	var testbeds []*testbed
	defer func() {
		for _, t := range testbeds {
			err = errors.Join(err, t.close())
		}
	}()
	for _, c := range variants {
		if !slices.ContainsFunc(p.workloads(), func(w Workload) bool { return s.takes(c, situation, w.Operation) }) {
			continue
		}
		t, err := newTestbed(ctx, c, situation, b, p.processor)
		if err != nil {
			return r, err
		}
		testbeds = append(testbeds, t)
	}
	for _, w := range p.workloads() {
		var here []*testbed
		for _, t := range testbeds {
			if s.takes(t.variant, situation, w.Operation) {
				here = append(here, t)
			}
		}
		if len(here) == 0 {
			continue
		}
		cells, err := compare(ctx, here, w, p)
		if err != nil {
			return r, err
		}
		r.Cells = append(r.Cells, cells...)
		fmt.Fprintf(progress, "%s, %s:", situation, w)
		for i := range cells {
			fmt.Fprintf(progress, "  %s %.4g/s", cells[i].Variant, cells[i].median(Sample.perSecond))
		}
		fmt.Fprintln(progress)
	}
	return r, nil
}

// compare measures testbeds, which take turns, under one workload.
func compare(ctx context.Context, testbeds []*testbed, w Workload, p plan) ([]Cell, error) {
	j := job{
		Operation:   w.Operation,
		Connections: w.Connections,
		Count:       w.Count,
		Duration:    p.duration,
		Length:      w.Length,
		Patience:    netns.Scale(10 * time.Second),
	}
	cells := make([]Cell, len(testbeds))
	for i, t := range testbeds {
		cells[i] = Cell{
			Variant:   t.variant.name,
			Limit:     t.variant.limit,
			Daemon:    t.daemon != nil,
			Workload:  w,
			Latencies: make(Latencies),
		}
	}
	for round := range 1 + p.rounds {
		for i, t := range testbeds {
			sample, err := t.do(ctx, j)
			if err != nil {
				return nil, err
			}
			if round == 0 {
				continue // everything has been used once now
			}
			cells[i].Samples = append(cells[i].Samples, sample)
			cells[i].Latencies.Add(sample.latencies)
		}
	}
	return cells, nil
}

// loadAverage is how many threads have been running or ready to run, on average of a minute.
func loadAverage() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	return strconv.ParseFloat(first, 64)
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

// processor is the model that the kernel names.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}
