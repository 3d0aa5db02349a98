package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// Startup is how the daemon starts: one figure of each start, in seconds from exec on, and in
// bytes.
type Startup struct {
	// Bound is when the queue was served, Ready when the rules filled it.
	Bound, Ready []float64
	// Resident is what the daemon has in memory, shared pages included, when it has nothing to do.
	Resident []float64
}

// rest is how long the daemon is left alone before its memory is read.
const rest = 500 * time.Millisecond

// measureStartup starts the daemon a number of times.
func measureStartup(ctx context.Context, b binaries, starts int) (s Startup, err error) {
	for range starts {
		if err := s.start(ctx, b); err != nil {
			return s, fmt.Errorf("start the daemon: %w", err)
		}
	}
	return s, nil
}

func (s *Startup) start(ctx context.Context, b binaries) (err error) {
	h, err := netns.NewHost("start")
	if err != nil {
		return err
	}
	defer func() {
		if closed := h.Close(); err == nil {
			err = closed
		}
	}()
	dir, err := os.MkdirTemp("", "nfq-ftphelper-start-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	begin := time.Now()
	p, err := h.Start(exec.Command(b.daemon, "run", "--config", "none", "--rules", "--queue", strconv.Itoa(queueNumber), "--control", filepath.Join(dir, "control.sock")))
	if err != nil {
		return err
	}
	for deadline := begin.Add(netns.Scale(10 * time.Second)); ; {
		is, _, err := queued(h)
		switch {
		case err != nil:
			return err
		case is:
			s.Bound = append(s.Bound, time.Since(begin).Seconds())
		case time.Now().After(deadline) || !p.Running():
			return fmt.Errorf("it does not serve its queue; it says\n%s", p.Output())
		}
		if is {
			break
		}
		time.Sleep(200 * time.Microsecond) // leaves it the processor
	}
	ctx, cancel := context.WithTimeout(ctx, netns.Scale(10*time.Second))
	defer cancel()
	if err := p.WaitOutput(ctx, isReady); err != nil {
		return err
	}
	s.Ready = append(s.Ready, time.Since(begin).Seconds())
	time.Sleep(netns.Scale(rest))
	resident, err := residentBytes(p.Pid())
	s.Resident = append(s.Resident, resident)
	return err
}

// residentBytes reads VmRSS of /proc/PID/status.
func residentBytes(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, line, found := bytes.Cut(text, []byte("\nVmRSS:"))
	var kib float64
	if _, err := fmt.Sscan(string(line), &kib); err != nil || !found {
		return 0, fmt.Errorf("no VmRSS in the status of process %d", pid)
	}
	return kib * 1024, nil
}

// sentence is what the results say of it.
func (s Startup) sentence() string {
	return fmt.Sprintf("The daemon serves its queue %s after exec, and has its rules in place after %s; idle it has %.1f MiB resident (medians of %d starts).",
		duration(seconds(median(s.Bound))), duration(seconds(median(s.Ready))), median(s.Resident)/(1<<20), len(s.Bound))
}
