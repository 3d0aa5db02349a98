package main

import (
	"fmt"
	"strings"
)

// goal is a ratio between two variants that this project promises, under every workload with
// the operation.
type goal struct {
	operation   Operation
	bulk        bool
	variant, to string
	least, most float64 // most is 0 if more is fine
	// cpu says that it is the daemons' processor time that is compared, not the speed: how
	// many times less of it the variant needs.
	cpu bool
}

var goals = []goal{
	{operation: Noop, variant: oursLean, to: kernel, least: 0.97},
	{operation: Noop, variant: oursFull, to: cFull, least: 0.95},
	{operation: Pasv, variant: oursLean, to: kernel, least: 0.6},
	{operation: Pasv, variant: oursLean, to: cLean, least: 0.8},
	{operation: Transfer, variant: oursLean, to: kernel, least: 0.9},
	{operation: Transfer, variant: oursFull, to: kernel, least: 0.75},
	{operation: Transfer, bulk: true, variant: oursLean, to: kernel, least: 0.97, most: 1.03},
	{operation: Transfer, bulk: true, variant: oursFull, to: kernel, least: 0.97, most: 1.03},
	{operation: Transfer, variant: oursLean, to: conntrackd, least: 2},
	{operation: Transfer, variant: oursLean, to: conntrackd, least: 2, cpu: true},
	{operation: Transfer, variant: oursFull, to: conntrackd, least: 2},
	{operation: Transfer, variant: oursFull, to: conntrackd, least: 2, cpu: true},
}

// goalTable compares what was measured with the goals that it is about.
func (r *Result) goalTable(b *strings.Builder) {
	var rows strings.Builder
	for _, g := range goals {
		for _, w := range r.workloads() {
			c, other := r.cell(g.variant, w), r.cell(g.to, w)
			if w.Operation != g.operation || w.bulk() != g.bulk || c == nil || other == nil {
				continue
			}
			ratio, _ := r.ratio(c, g.to)
			figure, measured := "speed", ratio.median
			if g.cpu {
				figure, measured = "less CPU in the daemon", other.median(Sample.daemonPerOp)/c.median(Sample.daemonPerOp)
			}
			want, met := fmt.Sprintf("≥ %.2f", g.least), measured >= g.least
			if g.most > 0 {
				want, met = fmt.Sprintf("%.2f–%.2f", g.least, g.most), met && measured <= g.most
			}
			fmt.Fprintf(&rows, "| %s | %s : %s | %s | %s | %.2f | %s |\n", w, g.variant, g.to, figure, want, measured,
				map[bool]string{true: "yes", false: "no"}[met])
		}
	}
	if rows.Len() > 0 {
		fmt.Fprintf(b, "\n### Goals\n\n| | | | goal | here | met |\n|---|---|---|--:|--:|---|\n%s", rows.String())
	}
}
