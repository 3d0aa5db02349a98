package main

import (
	"math"
	"slices"
	"time"
)

// Result is the raw data of one run in one situation.
type Result struct {
	Kernel     string // as uname -r has it
	Processor  string
	Processors int
	// Shared says that everything ran on one of the processors.
	Shared bool
	// Load is the machine's load average before anything was started: that of others.
	Load      float64
	Situation string
	// Reference is the variant that others are compared with.
	Reference string
	Rounds    int
	Startup   Startup
	Cells     []Cell
}

// Cell is what was measured of one variant under one workload.
type Cell struct {
	Variant string
	// Limit is the variant that queues the same packets and does nothing, if there is one.
	Limit    string `json:",omitempty"`
	Daemon   bool   // packets are queued to a process
	Workload Workload
	// Samples are one of each round, in order.
	Samples []Sample
	// Latencies are those of all rounds, in nanoseconds.
	Latencies Latencies
}

// Sample is one measurement.
type Sample struct {
	Operations int
	// Seconds from the begin of the first operation to the end of the last one.
	Seconds float64
	// DaemonSeconds and MachineSeconds are processor time: of the process that packets are
	// queued to, and of the whole machine, load generator and server included.
	DaemonSeconds, MachineSeconds float64
	// Packets were queued to user space.
	Packets int
	// Lines went over the control connections, in both directions.
	Lines int

	latencies Latencies
}

func (s Sample) perSecond() float64       { return float64(s.Operations) / s.Seconds }
func (s Sample) daemonPerOp() float64     { return s.DaemonSeconds / float64(s.Operations) }
func (s Sample) machinePerOp() float64    { return s.MachineSeconds / float64(s.Operations) }
func (s Sample) packetsPerOp() float64    { return float64(s.Packets) / float64(s.Operations) }
func (s Sample) dataPacketsSeen() float64 { return float64(max(s.Packets-s.Lines, 0)) }

// cell finds a cell; nil if it was not measured.
func (r *Result) cell(variant string, w Workload) *Cell {
	for i := range r.Cells {
		if r.Cells[i].Variant == variant && r.Cells[i].Workload == w {
			return &r.Cells[i]
		}
	}
	return nil
}

// workloads are those of the cells, each once, in order.
func (r *Result) workloads() []Workload {
	var all []Workload
	for _, c := range r.Cells {
		if !slices.Contains(all, c.Workload) {
			all = append(all, c.Workload)
		}
	}
	return all
}

// median of one figure over the rounds.
func (c *Cell) median(figure func(Sample) float64) float64 {
	var values []float64
	for _, s := range c.Samples {
		values = append(values, figure(s))
	}
	return median(values)
}

func (c *Cell) quantile(q float64) time.Duration { return c.Latencies.Quantile(q) }

// spread is a median with the smallest and the largest value.
type spread struct{ median, low, high float64 }

// ratio compares the speed with that of another variant under the same workload, round by
// round: what changes on the machine in the course of a run meets both. It is false if the
// other one was not measured.
func (r *Result) ratio(c *Cell, to string) (spread, bool) {
	other := r.cell(to, c.Workload)
	if other == nil {
		return spread{}, false
	}
	var ratios []float64
	for i := range min(len(c.Samples), len(other.Samples)) {
		ratios = append(ratios, c.Samples[i].perSecond()/other.Samples[i].perSecond())
	}
	return spread{median(ratios), slices.Min(ratios), slices.Max(ratios)}, true
}

// median is the value in the middle, or the mean of the two there; NaN if there is none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
