package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// This binary is run again as the load generator and the server.
func TestMain(m *testing.M) {
	if err, ok := role(os.Args[1:]); ok {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestParse(t *testing.T) {
	s, err := parse([]string{"-quick", "-variants", "kernel,ours full", "-workloads", "pasv"}, t.Output())
	if err != nil || s.rounds != 1 || !slices.Equal(s.variants, []string{kernel, oursFull}) || !slices.Equal(s.operations, []Operation{Pasv}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, args := range [][]string{
		{"-variants", "nobody"}, {"-workloads", "pasv,list"}, {"-rounds", "0"}, {"-duration", "0s"}, {"results"},
	} {
		if _, err := parse(args, t.Output()); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}

// build compiles what is to be measured.
func build(t *testing.T, program string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), program)
	for i, arg := range args {
		if arg == "OUTPUT" {
			args[i] = path
		}
	}
	if output, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", program, err, output)
	}
	return path
}

// TestQuick measures a little of everything that this kernel has, and wants a figure everywhere.
func TestQuick(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	out := t.TempDir()
	var progress bytes.Buffer
	daemon := build(t, "nfq-ftphelper", "go", "build", "-o", "OUTPUT", "../cmd/nfq-ftphelper")
	err := bench([]string{
		"-quick", "-out", out, "-daemon", daemon, "-before", daemon,
		"-accept", build(t, "accept", "gcc", "-o", "OUTPUT", "accept/accept.c", "-lnetfilter_queue"),
	}, nil, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	name := kernelName(kernelRelease())
	text, err := os.ReadFile(filepath.Join(out, name+".json"))
	must.Do(t, err)
	var results []Result
	if err := json.Unmarshal(text, &results); err != nil || len(results) != 1 {
		t.Fatalf("%d results: %v", len(results), err)
	}
	r := &results[0]
	p := plan{many: 20, bulk: 16 << 20}
	for _, c := range variants {
		for _, w := range p.workloads() {
			if c.stock || !c.fits(netns.DNAT, w.Operation) {
				continue
			}
			cell := r.cell(c.name, w)
			if cell == nil || len(cell.Samples) != 1 {
				t.Errorf("%s, %s: not measured", w, c.name)
				continue
			}
			wantFigures(t, cell)
		}
	}
	wantPackets(t, r, p)
	if u := r.Startup; len(u.Bound) != 1 || u.Bound[0] <= 0 || len(u.Ready) != 1 || u.Ready[0] < u.Bound[0] || len(u.Resident) != 1 || u.Resident[0] < 1<<20 {
		t.Errorf("startup: %+v", u)
	}
	for _, file := range []string{name + ".md", name + "-dnat-ratios.svg", name + "-dnat-latency.svg"} {
		text, err := os.ReadFile(filepath.Join(out, file))
		if err != nil || len(text) == 0 || strings.Contains(string(text), "NaN") {
			t.Errorf("%s: %d bytes, perhaps with NaN in them (%v)", file, len(text), err)
		}
	}
}

func wantFigures(t *testing.T, c *Cell) {
	t.Helper()
	s := c.Samples[0]
	var operations uint64
	for _, n := range c.Latencies {
		operations += n
	}
	switch {
	case s.Operations < c.Workload.Connections, s.Seconds <= 0, s.Lines < 2*s.Operations, operations != uint64(s.Operations):
		t.Errorf("%s, %s: %d latencies of %+v", c.Workload, c.Variant, operations, s)
	case c.Daemon != (s.DaemonSeconds > 0) && s.Packets > 0:
		t.Errorf("%s, %s: a daemon's time of %v s", c.Workload, c.Variant, s.DaemonSeconds)
	}
}

// wantPackets wants to see the packets queued that should be, and no others.
func wantPackets(t *testing.T, r *Result, p plan) {
	t.Helper()
	for _, w := range p.workloads() {
		for name, least := range map[string]float64{
			oursLean: map[Operation]float64{Noop: 0, Pasv: 1, Transfer: 1}[w.Operation],
			cFull:    2, oursFull: map[Operation]float64{Noop: 2, Pasv: 2, Transfer: 5}[w.Operation],
			cLean: map[Operation]float64{Noop: 0, Pasv: 1}[w.Operation],
		} {
			c := r.cell(name, w)
			if c == nil {
				continue
			}
			// On a slow machine, many may be sent again.
			if got := c.Samples[0].packetsPerOp(); got < least || got > 2*least {
				t.Errorf("%s, %s: %v packets in user space for each operation, want %v", w, name, got, least)
			}
			// A megabyte has hundreds of packets.
			if got := c.Samples[0].dataPacketsSeen(); w.bulk() && got > 5 {
				t.Errorf("%s, %s: %v packets of data in user space", w, name, got)
			}
		}
	}
}
