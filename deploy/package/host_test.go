package packages

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// host is this machine's files with a memory of its own: an overlay, on which packages are
// installed as on any machine.
type host struct {
	t *testing.T
	// root is its root folder, and changes has what differs from this machine's.
	root, changes string
}

// newHost returns a host that lasts until the test ends. It looks as if systemd runs on it, with a
// systemctl that only notes down how it is called.
func newHost(t *testing.T) host {
	t.Helper()
	memory := t.TempDir()
	h := host{t: t, root: filepath.Join(memory, "root"), changes: filepath.Join(memory, "changes")}
	mount := func(source, target, kind string, flags uintptr, options string) {
		t.Helper()
		must.Do(t, os.MkdirAll(target, 0o755))
		if err := unix.Mount(source, target, kind, flags, options); err != nil {
			t.Fatalf("mounting %s on %s: %v", kind, target, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	mount("memory", memory, "tmpfs", 0, "")
	work := filepath.Join(memory, "work")
	for _, folder := range []string{h.changes, work} {
		must.Do(t, os.Mkdir(folder, 0o755))
	}
	mount("root", h.root, "overlay", 0, "lowerdir=/,upperdir="+h.changes+",workdir="+work)
	mount("proc", h.path("/proc"), "proc", 0, "")
	mount("/dev", h.path("/dev"), "", unix.MS_BIND, "")
	mount("run", h.path("/run"), "tmpfs", 0, "")
	mount("tmp", h.path("/tmp"), "tmpfs", 0, "")

	if err := os.Remove(h.path("/usr/bin/systemctl")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	h.write("/usr/bin/systemctl", "#!/bin/sh\necho \"$*\" >>/run/calls\n", 0o755)
	must.Do(t, os.MkdirAll(h.path("/run/systemd/system"), 0o755))
	// Where this machine forbids packages to stop services, the host does not.
	if err := os.Remove(h.path("/usr/sbin/policy-rc.d")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return h
}

// path returns where a file of the host is.
func (h host) path(name string) string { return filepath.Join(h.root, name) }

func (h host) write(name, text string, mode fs.FileMode) {
	h.t.Helper()
	must.Do(h.t, os.MkdirAll(filepath.Dir(h.path(name)), 0o755))
	must.Do(h.t, os.WriteFile(h.path(name), []byte(text), mode))
}

func (h host) read(name string) string {
	h.t.Helper()
	text, err := os.ReadFile(h.path(name))
	must.Do(h.t, err)
	return string(text)
}

// take copies a file of this machine to the host and returns its name there.
func (h host) take(file string) string {
	h.t.Helper()
	data, err := os.ReadFile(file)
	must.Do(h.t, err)
	name := filepath.Join("/run", filepath.Base(file))
	h.write(name, string(data), 0o644)
	return name
}

// try runs a command on the host, in a network of its own, and returns what it writes.
func (h host) try(command ...string) (string, error) {
	cmd := exec.Command("/usr/bin/env", append([]string{
		"-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/run", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}, command...)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: h.root, Cloneflags: unix.CLONE_NEWNET}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// do is try for a command that must not fail.
func (h host) do(command ...string) string {
	h.t.Helper()
	out, err := h.try(command...)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return out
}

// called returns how systemctl has been called since it was asked last.
func (h host) called() []string {
	h.t.Helper()
	text, err := os.ReadFile(h.path("/run/calls"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	must.Do(h.t, err)
	must.Do(h.t, os.Remove(h.path("/run/calls")))
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// changed returns the files, links and new folders that differ from this machine's, each with its
// mode: but for what newHost has changed, and what dpkg notes down for itself.
func (h host) changed() []string {
	h.t.Helper()
	var list []string
	err := filepath.WalkDir(h.changes, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, h.changes)
		switch {
		case err != nil:
			return err
		case name == "/var/lib/dpkg":
			return fs.SkipDir
		case slices.Contains([]string{"/var/log/dpkg.log", "/usr/sbin/policy-rc.d", "/usr/bin/systemctl"}, name):
			return nil
		case d.IsDir():
			if _, err := os.Lstat(name); err == nil || name == "" {
				return nil
			}
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 0 || owner.Gid != 0 {
			h.t.Errorf("%s belongs to %d:%d", name, owner.Uid, owner.Gid)
		}
		list = append(list, info.Mode().String()+" "+name)
		return nil
	})
	must.Do(h.t, err)
	return list
}
