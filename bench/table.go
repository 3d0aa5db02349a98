package main

import (
	"fmt"
	"strings"
	"time"
)

const head = `%s, %d processors, %s. Medians of %d rounds, in which the variants took turns. Ratios
are of speeds, taken round by round; behind them are the lowest and the highest one. All other
figures are for one operation: p50 and p99 of how long it takes, processor time, and packets that
were queued to user space. What the kernel does for a packet while a process runs is part of that
process's time. The machine's time includes load generator and server.

- *no helper*: NAT and stateful filtering, with the data ports open: the floor.
- *kernel*: nf_conntrack_ftp and nf_nat_ftp. *conntrackd*: its user-space helper.
- *ours full*, *ours lean*: this daemon, with either ruleset.
- *before full*, *before lean*: an earlier build of it (-before).
- *C full*, *C lean*: a program on libnetfilter_queue that gets the same packets and lets them
  pass as they are: the limit of NFQUEUE.
`

// busyLoad is the load average from which on the figures are not to be trusted.
const busyLoad = 0.5

// markdown writes results of one kernel as text and tables.
func markdown(results []Result, name string) string {
	var b strings.Builder
	first := results[0]
	fmt.Fprintf(&b, "# FTP helpers on Linux %s\n\n", first.Kernel)
	where := "all of them in use"
	if first.Shared {
		where = "one in use"
	}
	fmt.Fprintf(&b, head, first.Processor, first.Processors, where, first.Rounds)
	if first.Load >= busyLoad {
		fmt.Fprintf(&b, "\n**Others were at work on this machine (load average %.1f at the start): measure again.**\n", first.Load)
	}
	if len(first.Startup.Bound) > 0 {
		fmt.Fprintf(&b, "\n%s\n", first.Startup.sentence())
	}
	for _, r := range results {
		fmt.Fprintf(&b, "\n## %s\n\n![Speed of the variants](%s)\n\n![Latency of the variants](%s)\n",
			r.Situation, plotFile(name, r, "ratios"), plotFile(name, r, "latency"))
		r.goalTable(&b)
		for _, w := range r.workloads() {
			fmt.Fprintf(&b, "\n### %s\n\n", w)
			r.table(&b, w)
		}
	}
	return b.String()
}

// plotFile is the name of a plot's file.
func plotFile(name string, r Result, kind string) string {
	return fmt.Sprintf("%s-%s-%s.svg", name, strings.ToLower(r.Situation), kind)
}

// table writes the table of one workload.
func (r *Result) table(b *strings.Builder, w Workload) {
	speed, last := "per second", "packets in user space"
	if w.bulk() {
		speed, last = "MiB per second", "packets in user space, of data"
	}
	fmt.Fprintf(b, "| | %s | of %s | of the C program | p50 | p99 | CPU, daemon | CPU, machine | %s |\n", speed, r.Reference, last)
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for i := range r.Cells {
		if c := &r.Cells[i]; c.Workload == w {
			fmt.Fprintf(b, "| %s |\n", strings.Join(r.row(c), " | "))
		}
	}
}

// none stands where there is no figure.
const none = "–"

func (r *Result) row(c *Cell) []string {
	perSecond := c.median(Sample.perSecond)
	if c.Workload.bulk() {
		perSecond *= float64(c.Workload.Length) / (1 << 20)
	}
	row := []string{c.Variant, fmt.Sprintf("%.0f", perSecond),
		r.ratioText(c, r.Reference), r.ratioText(c, c.Limit),
		duration(c.quantile(0.5)), duration(c.quantile(0.99))}
	daemon, packets := none, none
	if c.Daemon {
		daemon = duration(seconds(c.median(Sample.daemonPerOp)))
		packets = fmt.Sprintf("%.2f", c.median(Sample.packetsPerOp))
		if c.Workload.bulk() {
			packets += fmt.Sprintf(", %.0f", c.median(Sample.dataPacketsSeen))
		}
	}
	return append(row, daemon, duration(seconds(c.median(Sample.machinePerOp))), packets)
}

func (r *Result) ratioText(c *Cell, to string) string {
	s, ok := r.ratio(c, to)
	switch {
	case !ok:
		return none
	case c.Variant == to:
		return "1"
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.low, s.high)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// duration writes a duration with three digits.
func duration(d time.Duration) string {
	value, unit := float64(d)/float64(time.Microsecond), "µs"
	switch {
	case d >= 10*time.Second:
		value, unit = d.Seconds(), "s"
	case d >= 10*time.Millisecond:
		value, unit = float64(d)/float64(time.Millisecond), "ms"
	}
	digits := 2
	for v := value; v >= 10 && digits > 0; v /= 10 {
		digits--
	}
	return fmt.Sprintf("%.*f %s", digits, value, unit)
}
