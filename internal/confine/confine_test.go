package confine

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// childEnv makes a process a child of TestSelf; its value is the child's folder.
const childEnv = "CONFINE_TEST_FOLDER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

// result is what a child reports.
type result struct {
	Report        Report
	Problem       string
	Before, After map[string]string // Self: error of each attempt, or ""
}

// child reports its attempts before and after Self. It runs until its standard input ends.
func child(dir string) {
	moreThreads(4)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	readable, removable := filepath.Join(dir, "readable"), filepath.Join(dir, "removable")
	listens(removable)
	r := result{Before: try(dir, port)}
	listens(removable) // removed by try
	r.Report, err = Self(Paths{Read: []string{readable, filepath.Join(dir, "missing")}, Remove: []string{removable}})
	if err != nil {
		r.Problem = err.Error()
	}
	moreThreads(4)
	r.After = try(dir, port)
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		panic(err)
	}
	io.Copy(io.Discard, os.Stdin)
}

// listens creates a socket that Close does not remove.
func listens(folder string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(folder, "control.sock"), Net: "unix"})
	if err != nil {
		panic(err)
	}
	l.SetUnlinkOnClose(false)
}

// moreThreads starts threads.
func moreThreads(n int) {
	started := make(chan struct{})
	for range n {
		go func() {
			runtime.LockOSThread()
			started <- struct{}{}
			select {}
		}()
		<-started
	}
}

// try attempts what a confined process may do, and what it may not, with a listener at the port.
func try(dir string, port int) map[string]string {
	readable, removable := filepath.Join(dir, "readable"), filepath.Join(dir, "removable")
	open := func(name string, flags int) func() error {
		return func() error {
			f, err := os.OpenFile(name, flags, 0o600)
			if err == nil {
				err = f.Close()
			}
			return err
		}
	}
	connect := func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port})
	}
	outcome := make(map[string]string)
	for what, attempt := range map[string]func() error{
		"read a file of the readable folder":        open(filepath.Join(readable, "file"), os.O_RDONLY),
		"list the readable folder":                  func() error { _, err := os.ReadDir(readable); return err },
		"write a file of the readable folder":       open(filepath.Join(readable, "file"), os.O_WRONLY),
		"make a file in the readable folder":        open(filepath.Join(readable, "new"), os.O_WRONLY|os.O_CREATE),
		"read a file beside it":                     open(filepath.Join(dir, "file"), os.O_RDONLY),
		"read /etc/passwd":                          open("/etc/passwd", os.O_RDONLY),
		"read /proc/1/status":                       open("/proc/1/status", os.O_RDONLY),
		"read of the network namespace":             open("/proc/thread-self/net/dev", os.O_RDONLY),
		"execute a program":                         func() error { return exec.Command("/bin/true").Run() },
		"connect by TCP":                            connect,
		"make a file in the folder to remove from":  open(filepath.Join(removable, "new"), os.O_WRONLY|os.O_CREATE),
		"write a file of the folder to remove from": open(filepath.Join(removable, "file"), os.O_WRONLY),
		"remove a socket":                           func() error { return os.Remove(filepath.Join(removable, "control.sock")) },
		"listen on a unix socket": func() error {
			l, err := net.Listen("unix", filepath.Join(removable, "other.sock"))
			if err != nil {
				return err
			}
			return l.Close() // which removes it
		},
	} {
		outcome[what] = ""
		if err := attempt(); err != nil {
			outcome[what] = err.Error()
		}
	}
	return outcome
}

// TestSelf confines processes with all capabilities, with some and with none, and checks their threads and attempts.
func TestSelf(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test starts processes as root and as nobody: run it as root")
	}
	asNobody := func(capabilities ...uintptr) syscall.SysProcAttr {
		return syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: capabilities}
	}
	const netAdmin = uint64(1) << unix.CAP_NET_ADMIN
	all := statusOf(t, os.Getpid())[0]["CapBnd"]
	for name, c := range map[string]struct {
		attr           syscall.SysProcAttr
		want, bounding uint64 // capabilities
	}{
		"root":                      {syscall.SysProcAttr{}, netAdmin, netAdmin},
		"nobody with CAP_NET_ADMIN": {asNobody(unix.CAP_NET_ADMIN), netAdmin, all},
		"nobody with CAP_NET_RAW":   {asNobody(unix.CAP_NET_RAW), 0, all},
		"nobody with CAP_SETPCAP":   {asNobody(unix.CAP_NET_ADMIN, unix.CAP_SETPCAP), netAdmin, netAdmin},
		"nobody":                    {asNobody(), 0, all},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, pid := start(t, c.attr)
			if r.Problem != "" || r.Report.Bounding != (c.bounding == netAdmin) {
				t.Errorf("got %+v, want bounding %t", r, c.bounding == netAdmin)
			}
			threads := statusOf(t, pid)
			if len(threads) < 9 {
				t.Errorf("got %d threads, want 9 or more", len(threads))
			}
			for _, status := range threads {
				want := map[string]uint64{
					"CapPrm": c.want, "CapEff": c.want, "CapInh": 0, "CapAmb": 0, "CapBnd": c.bounding, "NoNewPrivs": 1,
				}
				if !maps.Equal(status, want) {
					t.Errorf("got a thread with %#x, want %#x", status, want)
				}
			}
			checkAttempts(t, r)
		})
	}
}

// start starts a child that ends with the test.
func start(t *testing.T, attr syscall.SysProcAttr) (r result, pid int) {
	t.Helper()
	dir, err := os.MkdirTemp("", "confine-")
	must.Do(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	mustWrite := func(name string) {
		must.Do(t, os.WriteFile(filepath.Join(dir, name), nil, 0o666))
	}
	for _, sub := range []string{"", "readable", "removable"} {
		must.Do(t, errors.Join(os.MkdirAll(filepath.Join(dir, sub), 0o777), os.Chmod(filepath.Join(dir, sub), 0o777)))
	}
	mustWrite("file")
	for _, file := range []string{"readable/file", "removable/file"} {
		mustWrite(file)
		must.Do(t, os.Chmod(filepath.Join(dir, file), 0o666))
	}

	cmd := exec.Command("/proc/self/exe") // others may not enter its folder
	cmd.Env = []string{childEnv + "=" + dir}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = &attr
	stdin, err := cmd.StdinPipe()
	must.Do(t, err)
	stdout, err := cmd.StdoutPipe()
	must.Do(t, err)
	// Pdeathsig is about the thread that starts the child.
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	must.Do(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	must.Do(t, stdout.(*os.File).SetReadDeadline(time.Now().Add(time.Minute)))
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	must.Do(t, err)
	must.Do(t, json.Unmarshal(line, &r))
	return r, cmd.Process.Pid
}

// checkAttempts checks that exactly the forbidden attempts fail, as far as the kernel's Landlock can.
func checkAttempts(t *testing.T, r result) {
	t.Helper()
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 2 {
		t.Fatalf("got Landlock version %d, %v, want 2 or later", abi, err)
	}
	if want := min(abi, newest); r.Report.Landlock != want {
		t.Errorf("got Landlock version %d, want %d", r.Report.Landlock, want)
	}
	since := map[string]int{ // version of Landlock that forbids it
		"write a file of the readable folder": 1,
		"make a file in the readable folder":  1,
		"read a file beside it":               1,
		"read /etc/passwd":                    1,
		"read /proc/1/status":                 1,
		"execute a program":                   1,
		"connect by TCP":                      4,

		"make a file in the folder to remove from":  1,
		"write a file of the folder to remove from": 1,
		"listen on a unix socket":                   1,
	}
	if len(r.Before) != 14 || len(r.After) != 14 {
		t.Errorf("got %d attempts before and %d after, want 14", len(r.Before), len(r.After))
	}
	for what, problem := range r.Before {
		if problem != "" {
			t.Errorf("%s: got %q before Self, want no error", what, problem)
		}
	}
	for what, got := range r.After {
		version, forbidden := since[what]
		forbidden = forbidden && abi >= version
		if forbidden && !strings.Contains(got, fs.ErrPermission.Error()) || !forbidden && got != "" {
			t.Errorf("%s: got %q, want forbidden: %t", what, got, forbidden)
		}
	}
}

// statusOf returns the capabilities and NoNewPrivs of each thread (/proc/PID/task/TID/status).
func statusOf(t *testing.T, pid int) (threads []map[string]uint64) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("got no threads of process %d: %v", pid, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		must.Do(t, err)
		status := make(map[string]uint64)
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			if strings.HasPrefix(name, "Cap") || name == "NoNewPrivs" {
				status[name], err = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
				must.Do(t, err)
			}
		}
		threads = append(threads, status)
	}
	return threads
}
