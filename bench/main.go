// Command bench measures FTP helpers side by side, on the kernel that it runs on.
//
// Each variant has its own network: a client, a router with the variant, and a server. The variants take turns, round
// by round, so that other load on the machine affects them alike: compare ratios, not figures. By default everything
// runs on one processor, so that speed is the inverse of work. Load generator and FTP server are programs of this
// binary; the variant without a helper shows that they are faster than the helpers.
//
// It needs root. The results are a folder with tables (Markdown), raw data (JSON) and plots
// (SVG), all named after the kernel.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// The programs that this binary is besides, by their first argument.
const (
	serverRole = "ftp-server"
	loadRole   = "ftp-load"
)

// role runs the program that the arguments ask for. It is false if they don't.
func role(args []string) (error, bool) {
	switch {
	case len(args) == 2 && args[0] == serverRole:
		address, err := netip.ParseAddr(args[1])
		if err != nil {
			return err, true
		}
		return serve(address), true
	case len(args) == 1 && args[0] == loadRole:
		return load(os.Stdin, os.Stdout), true
	}
	return nil, false
}

func main() {
	err, ok := role(os.Args[1:])
	if !ok {
		err = bench(os.Args[1:], os.Stdout, os.Stderr)
	}
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings are what the command line says.
type settings struct {
	plan
	selection
	binaries
	out    string
	render string
}

func parse(args []string, stderr io.Writer) (settings, error) {
	s := settings{plan: plan{bulk: 1 << 30}}
	quick := false
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, "Usage: bench [flags]\n\nMeasures FTP helpers side by side. Needs root.\n\n")
		f.PrintDefaults()
	}
	f.IntVar(&s.many, "connections", 1000, "`number` of control connections at once, where there are many")
	f.IntVar(&s.rounds, "rounds", 7, "`number` of rounds, after one to warm up")
	f.DurationVar(&s.duration, "duration", time.Second, "how long one measurement takes (`time`)")
	f.IntVar(&s.processor, "processor", runtime.NumCPU()-1, "the one `processor` that everything runs on; -1 for all")
	f.BoolVar(&quick, "quick", false, "a few operations of everything: shows that it works, the figures mean nothing")
	f.BoolVar(&s.stock, "stock", false, "the kernel has what stock kernels have: conntrackd takes part, where there is no NAT")
	f.Func("variants", "`names`, separated by commas, such as \"kernel,ours full\"; all if not given", func(text string) error {
		for name := range strings.SplitSeq(text, ",") {
			if !slices.ContainsFunc(variants, func(c variant) bool { return c.name == name }) {
				return fmt.Errorf("there is no variant %q", name)
			}
			s.variants = append(s.variants, name)
		}
		return nil
	})
	f.Func("workloads", "`names` out of noop,pasv,transfer; all if not given", func(text string) error {
		for name := range strings.SplitSeq(text, ",") {
			if !slices.Contains([]Operation{Noop, Pasv, Transfer}, Operation(name)) {
				return fmt.Errorf("there is no workload %q", name)
			}
			s.operations = append(s.operations, Operation(name))
		}
		return nil
	})
	f.StringVar(&s.out, "out", "bench/results", "`folder` of the results; - writes the raw data to standard output, and nothing else")
	f.StringVar(&s.render, "render", "", "measure nothing: make tables and plots of a `file` of raw data")
	f.StringVar(&s.daemon, "daemon", "bin/nfq-ftphelper", "`path` of the daemon")
	f.StringVar(&s.binaries.before, "before", "", "`path` of an earlier build of the daemon, to compare with")
	f.StringVar(&s.accept, "accept", "bin/accept", "`path` of the C program that accepts every packet")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if f.NArg() > 0 {
		return s, fmt.Errorf("%q is too much: there are only flags", f.Arg(0))
	}
	s.selection.before = s.binaries.before != ""
	if quick {
		s.plan = plan{rounds: 1, duration: 50 * time.Millisecond, many: 20, bulk: 16 << 20, processor: s.processor}
	}
	if s.rounds < 1 || s.duration <= 0 || s.many < 2 || s.many > maxSessions/2 {
		return s, fmt.Errorf("-rounds must be at least 1, -duration more than 0, and -connections 2 to %d", maxSessions/2)
	}
	return s, nil
}

func bench(args []string, stdout, stderr io.Writer) error {
	s, err := parse(args, stderr)
	if err != nil {
		return err
	}
	var results []Result
	if s.render != "" {
		text, err := os.ReadFile(s.render)
		if err != nil {
			return fmt.Errorf("read the raw data: %w", err)
		}
		if err := json.Unmarshal(text, &results); err != nil {
			return fmt.Errorf("read the raw data in %s: %w", s.render, err)
		}
	} else if results, err = measureAll(s, stderr); err != nil {
		return err
	}
	if s.out == "-" {
		return json.NewEncoder(stdout).Encode(results)
	}
	return write(s.out, results)
}

func measureAll(s settings, progress io.Writer) ([]Result, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root: run it as root")
	}
	for _, path := range []*string{&s.daemon, &s.binaries.before, &s.accept} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err == nil {
			_, err = os.Stat(absolute)
		}
		if err != nil {
			return nil, fmt.Errorf("what is to be measured is not there: make bench builds it (%w)", err)
		}
		*path = absolute
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Without NAT first: the kernel's helper registers its name for good when a rule loads it.
	situations := []netns.Situation{netns.DNAT}
	if s.stock {
		situations = []netns.Situation{netns.Routed, netns.DNAT}
	}
	if s.processor != allProcessors {
		if err := pin(s.processor); err != nil {
			return nil, err
		}
	}
	load, err := loadAverage()
	if err != nil {
		return nil, err
	}
	startup, err := measureStartup(ctx, s.binaries, s.rounds)
	if err != nil {
		return nil, err
	}
	var results []Result
	for _, situation := range situations {
		r, err := measure(ctx, situation, s.plan, s.selection, s.binaries, load, progress)
		if err != nil {
			return nil, err
		}
		r.Startup = startup
		if len(r.Cells) > 0 {
			results = append(results, r)
		}
	}
	return results, nil
}

// write writes tables, plots and raw data into a folder, over those of an earlier run on that
// kernel.
func write(folder string, results []Result) error {
	if len(results) == 0 {
		return errors.New("nothing was measured")
	}
	name := kernelName(results[0].Kernel)
	raw, err := json.MarshalIndent(results, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	files := map[string][]byte{
		name + ".json": append(raw, '\n'),
		name + ".md":   []byte(markdown(results, name)),
	}
	for _, r := range results {
		if files[plotFile(name, r, "ratios")], err = plotRatios(r); err != nil {
			return fmt.Errorf("plot the ratios: %w", err)
		}
		if files[plotFile(name, r, "latency")], err = plotLatency(r); err != nil {
			return fmt.Errorf("plot the latency: %w", err)
		}
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(folder, file), text, 0o644); err != nil {
			return fmt.Errorf("write the results: %w", err)
		}
	}
	return nil
}

// kernelName is what files are named after: "6.12" for 6.12.111+deb12-amd64.
func kernelName(release string) string {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return release
	}
	return parts[0] + "." + parts[1]
}
