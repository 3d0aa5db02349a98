package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
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

// CheckCTHelper returns an error if the running kernel has no user-space conntrack helpers
// (CONFIG_NF_CT_NETLINK_HELPER). To ask for those that are registered loads the module.
var CheckCTHelper = sync.OnceValue(func() error {
	conn, err := netfilter.Dial(nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	const get = 1 // NFNL_MSG_CTHELPER_GET
	request, err := netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTHelper, MessageType: get, Flags: netlink.Request | netlink.Dump,
	}, nil)
	if err != nil {
		return err
	}
	if _, err := conn.Query(request); err != nil {
		return fmt.Errorf("nfnetlink_cthelper: %w", err)
	}
	return nil
})

func tryRuleset(ruleset string) error {
	h, err := NewHost("probe")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), Scale(20*time.Second))
	defer cancel()
	return errors.Join(h.Nft(ctx, ruleset), h.Close())
}

// BackEnd says with what the daemon is to do its work. What is empty is left to the daemon.
type BackEnd struct {
	// Helper is how control connections get a conntrack helper: "carrier" or "cthelper".
	Helper string
	// HelperName is that of the conntrack helper. Without one a carrier is what the daemon
	// takes, and a cthelper, which all namespaces of the machine share, gets a name that no
	// other router has.
	HelperName string
	// Ruleset is "full" or "lean".
	Ruleset string
	// Queues is how many queues there are, one if it is 0.
	Queues int
}

// CTHelper is the BackEnd's Helper that is registered through nfnetlink_cthelper.
const CTHelper = "cthelper"

// String is the back end's name in tests, such as "carrier+lean+4 queues".
func (b BackEnd) String() string {
	var parts []string
	for _, part := range []string{b.Helper, b.HelperName, b.Ruleset} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if b.Queues > 1 {
		parts = append(parts, fmt.Sprintf("%d queues", b.Queues))
	}
	if len(parts) == 0 {
		return "default"
	}
	return strings.Join(parts, "+")
}

// flags are those of the command line.
func (b BackEnd) flags() []string {
	var flags []string
	add := func(name, value string) {
		if value != "" {
			flags = append(flags, name, value)
		}
	}
	add("--helper", b.Helper)
	add("--helper-name", b.HelperName)
	add("--ruleset", b.Ruleset)
	if b.Queues != 0 {
		add("--queues", strconv.Itoa(b.Queues))
	}
	return flags
}

// Daemon says how to run this project's daemon.
type Daemon struct {
	// Binary is the path of nfq-ftphelper.
	Binary string
	// BackEnd is with what it does its work.
	BackEnd BackEnd
	// Rules say where the rules come from.
	Rules Rules
	// Queue is the number of the first queue, unless the rules are a file's, which has its own.
	Queue uint16
	// Flags are added to the command line.
	Flags []string
	// Under is the beginning of a command line that runs the daemon, such as "env NAME=VALUE".
	// The process has to stay the same one.
	Under []string
}

// Rules say where the daemon's rules come from: the path of a file that nft loads before the
// daemon starts, with the default queue and for the default back end, or one of these.
type Rules string

// The places that are no files.
const (
	// RulesOwn are rules that the daemon applies, and removes at its end.
	RulesOwn Rules = ""
	// RulesPrinted are those that "nfq-ftphelper rules print" writes, and nft loads before the
	// daemon starts. A cthelper can't have them: nft takes only helpers that are registered.
	RulesPrinted Rules = "-"
)

// queueFlags say how the rules and the daemon find each other.
func (d Daemon) queueFlags() []string {
	flags := d.BackEnd.flags()
	if d.Rules == RulesOwn || d.Rules == RulesPrinted {
		flags = append(flags, "--queue", strconv.Itoa(int(d.Queue)))
	}
	return flags
}

// routersWithCTHelper counts those of this process.
var routersWithCTHelper atomic.Uint32

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
		if b := &r.daemon.BackEnd; b.Helper == CTHelper && b.HelperName == "" {
			// 14 bytes are all that there is room for.
			b.HelperName = fmt.Sprintf("ft%d-%d", os.Getpid(), routersWithCTHelper.Add(1))
		}
		if err := r.loadRules(ctx); err != nil {
			return err
		}
		return r.StartDaemon(ctx)
	}
	return fmt.Errorf("there is no helper %s", helper)
}

// loadRules has nft load the daemon's rules, if it is to.
func (r *Router) loadRules(ctx context.Context) error {
	switch r.daemon.Rules {
	case RulesOwn:
		return nil
	case RulesPrinted:
		text, err := r.Run(ctx, "", r.daemon.Binary, append([]string{"rules", "print", "--config", "none"}, r.daemon.queueFlags()...)...)
		if err != nil {
			return err
		}
		return r.Nft(ctx, text)
	}
	_, err := r.Run(ctx, "", "nft", "-f", string(r.daemon.Rules))
	return err
}

// BackEnd is that of the router's daemon.
func (r *Router) BackEnd() BackEnd { return r.daemon.BackEnd }

// StartDaemon starts the daemon, again perhaps, and waits until it is ready.
func (r *Router) StartDaemon(ctx context.Context) error {
	if r.scratch == "" {
		var err error
		if r.scratch, err = os.MkdirTemp("", "ftphelper-router-"); err != nil {
			return err
		}
	}
	args := append([]string{"run", "--config", "none", "--control", r.Control()}, r.daemon.queueFlags()...)
	if r.daemon.Rules == RulesOwn {
		args = append(args, "--rules")
	}
	line := slices.Concat(r.daemon.Under, []string{r.daemon.Binary}, args, r.daemon.Flags)
	process, err := r.Start(exec.Command(line[0], line[1:]...))
	if err != nil {
		return err
	}
	r.process = process
	ctx, cancel := context.WithTimeout(ctx, Scale(10*time.Second))
	defer cancel()
	return process.WaitOutput(ctx, isReady)
}

// isReady says whether a daemon's log says that it is ready.
func isReady(log string) bool {
	return strings.Contains(log, "msg=ready") || strings.Contains(log, `"msg":"ready"`)
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

// Control is the path of the daemon's control socket.
func (r *Router) Control() string { return filepath.Join(r.scratch, "control.sock") }

// DaemonProcess is the daemon that was started last.
func (r *Router) DaemonProcess() *Process { return r.process }

// Close is the host's, but for a daemon that has registered a helper: that one is stopped, since
// the helper would outlast the namespace.
func (r *Router) Close() error {
	var err error
	if r.daemon.BackEnd.Helper == CTHelper && r.process != nil && r.process.Running() {
		err = r.StopDaemon(context.Background())
	}
	err = errors.Join(err, r.Host.Close())
	if r.scratch != "" {
		err = errors.Join(err, os.RemoveAll(r.scratch))
	}
	return err
}

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
