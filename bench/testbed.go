package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// testbed is a lab with a variant on its router, an FTP server and a load generator.
type testbed struct {
	variant   variant
	lab       *netns.Lab
	daemon    *netns.Process // packets are queued to it; nil for none
	processor int            // everything is bound to it
	load      *netns.Process
	jobs      *os.File
	outcomes  *os.File
	in        *json.Encoder
	out       *json.Decoder
}

// newTestbed builds a lab and starts everything in it. The load programs are this binary, run again.
func newTestbed(ctx context.Context, c variant, s netns.Situation, b binaries, processor int) (*testbed, error) {
	lab, err := netns.New(ctx, netns.Config{Situation: s, Family: netns.IPv4, Helper: netns.None})
	if err != nil {
		return nil, err
	}
	t := &testbed{variant: c, lab: lab, processor: processor}
	if err := t.start(ctx, b); err != nil {
		return nil, errors.Join(fmt.Errorf("start with %s: %w", c.name, err), t.close())
	}
	return t, nil
}

func (t *testbed) start(ctx context.Context, b binaries) (err error) {
	r := t.lab.ServerRouter()
	// Otherwise entries of ended data connections would accumulate with a variant's speed.
	if err := r.Sysctl("netfilter.nf_conntrack_tcp_timeout_time_wait", "1"); err != nil {
		return err
	}
	if t.daemon, err = t.variant.start(ctx, b, t.lab); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	server := exec.Command(self, serverRole, t.lab.Addresses.Server.Addr().String())
	if _, err := startReady(ctx, t.lab.Server, server); err != nil {
		return err
	}
	return t.startLoad(self)
}

func (t *testbed) startLoad(self string) error {
	input, jobs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer input.Close()
	outcomes, output, err := os.Pipe()
	if err != nil {
		return errors.Join(err, jobs.Close())
	}
	defer output.Close()
	t.jobs, t.outcomes = jobs, outcomes
	t.in, t.out = json.NewEncoder(jobs), json.NewDecoder(outcomes)
	cmd := exec.Command(self, loadRole)
	cmd.Stdin, cmd.Stdout = input, output
	t.load, err = t.lab.Client.Start(cmd)
	return err
}

func (t *testbed) close() error {
	var errs []error
	if t.jobs != nil {
		errs = append(errs, t.jobs.Close(), t.outcomes.Close())
	}
	if t.variant.stop != nil {
		ctx, cancel := context.WithTimeout(context.Background(), netns.Scale(30*time.Second))
		defer cancel()
		errs = append(errs, t.variant.stop(ctx, t.lab))
	}
	return errors.Join(append(errs, t.lab.Close())...)
}

// do runs a job on the load generator, and measures its cost.
func (t *testbed) do(ctx context.Context, j job) (Sample, error) {
	s, err := t.try(ctx, j)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return Sample{}, fmt.Errorf("%s with %s, %d at once: %w", j.Operation, t.variant.name, j.Connections, err)
	}
	return s, nil
}

func (t *testbed) try(ctx context.Context, j job) (Sample, error) {
	j.Server = t.lab.ServerAddress
	j.AnyAddress = t.variant.keepsAddress
	// At the end of ctx, reads of the pipes end.
	defer context.AfterFunc(ctx, func() { _ = t.outcomes.SetReadDeadline(time.Now()) })()

	// Entries and expectations of earlier connections must not affect this job.
	if _, err := t.lab.ServerRouter().Run(ctx, "", "conntrack", "-F"); err != nil {
		return Sample{}, err
	}
	if err := t.in.Encode(j); err != nil {
		return Sample{}, t.explain(err)
	}
	if _, err := t.outcome(); err != nil {
		return Sample{}, err
	}
	before, err := readCounters(t.lab.ServerRouter().Host, t.daemon, t.processor)
	if err != nil {
		return Sample{}, err
	}
	if err := t.in.Encode(true); err != nil {
		return Sample{}, t.explain(err)
	}
	o, err := t.outcome()
	if err != nil {
		return Sample{}, err
	}
	after, err := readCounters(t.lab.ServerRouter().Host, t.daemon, t.processor)
	if err != nil {
		return Sample{}, err
	}
	return Sample{
		Operations:     o.Operations,
		Seconds:        o.Elapsed.Seconds(),
		DaemonSeconds:  (after.daemon - before.daemon).Seconds(),
		MachineSeconds: busy(before, after).Seconds(),
		Packets:        int(after.packets - before.packets),
		Lines:          o.Lines,
		latencies:      o.Latencies,
	}, nil
}

func (t *testbed) outcome() (o outcome, err error) {
	if err := t.out.Decode(&o); err != nil {
		return o, t.explain(err)
	}
	if o.Error != "" {
		return o, fmt.Errorf("%s\n%s", o.Error, t.lab.Logs())
	}
	return o, nil
}

// explain adds the output of the load generator to an error of a pipe.
func (t *testbed) explain(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the load generator has ended: %s", t.load.Output())
	}
	return fmt.Errorf("communicate with the load generator: %w", err)
}
