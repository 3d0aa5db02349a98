package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// debianPackages has the Debian package of each program that the labs run.
var debianPackages = map[string]string{
	"nft":       "nftables",
	"conntrack": "conntrack",
	"curl":      "curl",
	"lftp":      "lftp",
	"tcpdump":   "tcpdump",
}

// CheckPrograms returns an error that says what to do if one of the programs is missing.
func CheckPrograms(names ...string) error {
	var packages, others []string
	for _, name := range names {
		switch _, err := FindProgram(name); {
		case err == nil:
		case debianPackages[name] != "":
			packages = append(packages, debianPackages[name])
		default:
			others = append(others, name)
		}
	}
	var errs []error
	if len(packages) > 0 {
		errs = append(errs, fmt.Errorf("programs are missing; install them with: apt-get install %s", strings.Join(packages, " ")))
	}
	if len(others) > 0 {
		errs = append(errs, fmt.Errorf("programs are missing; unpack them with: test/unpack %s", strings.Join(others, " ")))
	}
	return errors.Join(errs...)
}

// FindProgram returns the path of a program. It looks where root's programs are, too, which not every PATH has, and
// among the servers that test/unpack has unpacked. It returns an error that names the program if it is in none of these.
func FindProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range append(unpackedServers(), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is missing", name)
}

// unpackedServers are the folders with the programs that test/unpack has unpacked.
func unpackedServers() []string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil // no home: FindProgram's error names what is missing
	}
	folders, _ := filepath.Glob(filepath.Join(cache, "nfq-ftphelper/servers/*/usr/sbin")) // the pattern is well-formed
	return folders
}

// output collects what a program prints and tells waiters that there is more.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.buf.Write(p)
}

func (o *output) read() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String(), o.more
}

// Process is a program that runs in a host's namespace.
type Process struct {
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
	err  error
}

// Start starts a program on the host and collects its standard output and
// standard error, unless cmd has them go elsewhere. It is killed when the lab
// closes, and when this process dies.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{name: filepath.Base(cmd.Path), cmd: cmd, out: newOutput(), done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.out
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.WaitDelay = Scale(time.Second)
	if err := h.ns.Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s on the %s: %w", p.name, h.Name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	h.mu.Lock()
	h.processes = append(h.processes, p)
	h.mu.Unlock()
	return p, nil
}

// Run runs a program on the host to its end and returns its standard output. The
// error holds what it printed on standard error.
func (h *Host) Run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	path, err := FindProgram(name)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = Scale(5 * time.Second) // for a hang; a slow machine may take its time to read the pipes
	if err := h.ns.Start(cmd); err != nil {
		return "", fmt.Errorf("start %s on the %s: %w", name, h.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s on the %s: %w: %s",
			name, strings.Join(args, " "), h.Name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Pid is the program's process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Output is what the program has printed so far.
func (p *Process) Output() string {
	text, _ := p.out.read()
	return text
}

// WaitOutput waits until the program has printed something that satisfies done.
// It returns an error when the program ends first.
func (p *Process) WaitOutput(ctx context.Context, done func(output string) bool) error {
	for {
		text, more := p.out.read()
		if done(text) {
			return nil
		}
		select {
		case <-more:
		case <-p.done:
			if done(p.Output()) {
				return nil
			}
			return fmt.Errorf("%s ended (%v) with this output:\n%s", p.name, p.err, p.Output())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; its output is:\n%s", p.name, ctx.Err(), p.Output())
		}
	}
}

// Wait waits for the program's end and returns an error unless it exits with 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s: %w; its output is:\n%s", p.name, p.err, p.Output())
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w; its output is:\n%s", p.name, ctx.Err(), p.Output())
	}
}

// Running says whether the program has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends the program a signal.
func (p *Process) Signal(signal os.Signal) error { return p.cmd.Process.Signal(signal) }

// Kill kills the program and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// forget drops a program that has ended from the host's list.
func (h *Host) forget(p *Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.processes = slices.DeleteFunc(h.processes, func(other *Process) bool { return other == p })
}
