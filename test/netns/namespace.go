package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	vnetns "github.com/vishvananda/netns"
)

// Namespace is an anonymous network namespace. It lives until [Namespace.Close],
// or until the process that made it is gone.
type Namespace struct {
	handle vnetns.NsHandle
	start  chan startRequest
	ended  chan struct{}
}

type startRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// NewNamespace makes a namespace. It has a loopback interface that is down, and
// nothing else.
func NewNamespace() (*Namespace, error) {
	ns := &Namespace{start: make(chan startRequest), ended: make(chan struct{})}
	made := make(chan error)
	go ns.hold(made)
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make a network namespace (root needed): %w", err)
	}
	return ns, nil
}

// hold keeps one thread in the namespace and starts all programs from it: the
// parent-death signal follows the thread that forked, not the process.
func (ns *Namespace) hold(made chan<- error) {
	defer close(ns.ended)
	runtime.LockOSThread()
	// No unlock: the runtime ends a thread whose goroutine returns locked. It
	// cannot end the main thread, hence the way back.
	home, err := vnetns.Get()
	if err != nil {
		made <- err
		return
	}
	defer home.Close()
	if ns.handle, err = vnetns.New(); err != nil {
		made <- err
		return
	}
	defer vnetns.Set(home)
	made <- nil
	for request := range ns.start {
		request.done <- request.cmd.Start()
	}
}

// Do runs f on a thread that is in the namespace. Sockets that f opens belong to
// the namespace for as long as they live. Goroutines that f starts do not.
func (ns *Namespace) Do(f func() error) error {
	err := errors.New("the function did not return")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var home vnetns.NsHandle
		if home, err = vnetns.Get(); err != nil {
			return
		}
		defer home.Close()
		if err = vnetns.Set(ns.handle); err != nil {
			return
		}
		err = f()
		// A thread that cannot come back stays locked and ends here.
		if vnetns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	return err
}

// Start starts a program in the namespace.
func (ns *Namespace) Start(cmd *exec.Cmd) error {
	done := make(chan error)
	ns.start <- startRequest{cmd, done}
	return <-done
}

// Sysctl sets a variable below net, such as "ipv4.ip_forward".
func (ns *Namespace) Sysctl(name, value string) error {
	path := filepath.Join("/proc/sys/net", strings.ReplaceAll(name, ".", "/"))
	err := ns.Do(func() error { return os.WriteFile(path, []byte(value), 0o644) })
	if err != nil {
		return fmt.Errorf("sysctl net.%s=%s: %w", name, value, err)
	}
	return nil
}

// Close lets go of the namespace. Programs in it must have ended.
func (ns *Namespace) Close() error {
	close(ns.start)
	<-ns.ended
	return ns.handle.Close()
}
