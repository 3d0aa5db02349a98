package netns

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Helper is what a router has to help FTP along.
type Helper int

// The helpers.
const (
	// None leaves FTP to itself.
	None Helper = iota
	// Kernel is nf_conntrack_ftp with nf_nat_ftp, the reference.
	Kernel
	// Ours is this project's daemon.
	Ours
)

func (h Helper) String() string {
	switch h {
	case None:
		return "None"
	case Kernel:
		return "Kernel"
	case Ours:
		return "Ours"
	}
	return fmt.Sprintf("Helper(%d)", int(h))
}

const kernelHelper = `table inet kernel_helper {
	ct helper ftp {
		type "ftp" protocol tcp
		l3proto inet
	}
	chain prerouting {
		type filter hook prerouting priority -150;
		tcp dport 21 ct helper set "ftp"
	}
	chain output {
		type filter hook output priority -150;
		tcp dport 21 ct helper set "ftp"
	}
}
`

// The queue's name is the one thing that this ruleset tries.
const queueProbe = `table inet probe {
	chain prerouting {
		type filter hook prerouting priority -150;
		tcp dport 21 queue flags bypass to 1
	}
}
`

// CheckKernelHelper returns an error if the running kernel has no FTP helper of
// its own.
var CheckKernelHelper = sync.OnceValue(func() error { return tryRuleset(kernelHelper) })

// CheckQueueStatement returns an error if nftables on the running kernel has no
// queue statement, so that rules which queue packets cannot be loaded by nft.
var CheckQueueStatement = sync.OnceValue(func() error { return tryRuleset(queueProbe) })

func tryRuleset(ruleset string) error {
	h, err := NewHost("probe")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), Scale(20*time.Second))
	defer cancel()
	return errors.Join(h.Nft(ctx, ruleset), h.Close())
}

// Daemon says how to run this project's daemon.
type Daemon struct {
	// Binary is the path of nfq-ftphelper.
	Binary string
	// Ruleset is the path of the ruleset that nft loads before the daemon starts.
	// If it is empty, the daemon applies its own rules and removes them at its end.
	Ruleset string
	// Queue is the number of the queue if the daemon applies the rules; a
	// ruleset's file has its own.
	Queue uint16
	// Flags are added to the command line.
	Flags []string
}

// StartHelper gives the router a helper.
func (r *Router) StartHelper(ctx context.Context, helper Helper, daemon Daemon) error {
	switch helper {
	case None:
		return nil
	case Kernel:
		if err := loadKernelNAT(ctx, r.Host); err != nil {
			return err
		}
		return r.Nft(ctx, kernelHelper)
	case Ours:
		r.daemon = daemon
		if daemon.Ruleset != "" {
			if _, err := r.Run(ctx, "", "nft", "-f", daemon.Ruleset); err != nil {
				return err
			}
		}
		return r.StartDaemon(ctx)
	}
	return fmt.Errorf("there is no helper %s", helper)
}

// StartDaemon starts the daemon, again perhaps, and waits until it is ready.
func (r *Router) StartDaemon(ctx context.Context) error {
	args := []string{"run"}
	if r.daemon.Ruleset == "" {
		args = append(args, "--rules", "--ports", "21", "--queue", strconv.Itoa(int(r.daemon.Queue)))
	}
	process, err := r.Start(exec.Command(r.daemon.Binary, append(args, r.daemon.Flags...)...))
	if err != nil {
		return err
	}
	r.process = process
	ctx, cancel := context.WithTimeout(ctx, Scale(10*time.Second))
	defer cancel()
	return process.WaitOutput(ctx, func(output string) bool {
		return strings.Contains(output, "msg=ready") || strings.Contains(output, `"msg":"ready"`)
	})
}

// StopDaemon asks the daemon to end, and returns an error unless it does so
// cleanly.
func (r *Router) StopDaemon(ctx context.Context) error {
	if err := r.process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the daemon on the %s: %w", r.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, Scale(10*time.Second))
	defer cancel()
	return r.process.Wait(ctx)
}

// KillDaemon kills the daemon without a warning.
func (r *Router) KillDaemon() error { return r.process.Kill() }

// DaemonProcess is the daemon that was started last.
func (r *Router) DaemonProcess() *Process { return r.process }

// loadKernelNAT loads nf_nat_ftp where it is a module: a rule with "ct helper"
// loads nf_conntrack_ftp only.
func loadKernelNAT(ctx context.Context, h *Host) error { return loadModule(ctx, h, "nf_nat_ftp") }

// loadModule loads a module unless the kernel has none.
func loadModule(ctx context.Context, h *Host, module string) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	if unix.Access("/lib/modules/"+unix.ByteSliceToString(name.Release[:]), unix.R_OK) != nil {
		return nil // no modules: the kernel has it built in or not at all
	}
	_, err := h.Run(ctx, "", "modprobe", module)
	return err
}
