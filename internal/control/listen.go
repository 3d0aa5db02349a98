package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is the length of the longest path of a socket: sun_path of sockaddr_un without its NUL.
const maxPath = 107

// Socket is the control socket.
type Socket struct {
	*net.UnixListener
	path string
	file fs.FileInfo
}

// Listen makes the control socket at path, which only this user and root can open, and its folder
// if that is missing. It replaces the socket of a daemon that was killed, and returns an error if another
// daemon serves it.
func Listen(path string) (*Socket, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("the control socket's path %s has more than %d bytes: choose another with --control", path, maxPath)
	}
	s, err := listen(path)
	if err != nil {
		if errors.Is(err, errServed) {
			return nil, fmt.Errorf("%w %s: choose another with --control", err, path)
		}
		return nil, fmt.Errorf("make the control socket: %w: choose another with --control PATH, or none with --control \"\"", err)
	}
	return s, nil
}

var errServed = errors.New("another daemon serves")

func listen(path string) (s *Socket, err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeDead(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	s = &Socket{UnixListener: l, path: path}
	if s.file, err = os.Lstat(path); err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return s, nil
}

// lockTimeout is far longer than another daemon holds the lock.
const lockTimeout = time.Second

// lock keeps other daemons from making a socket in the same folder at the same time. It gives up after
// lockTimeout without an error: any program that can read the folder can lock it, and must not keep a
// daemon from starting.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for begin := time.Now(); time.Since(begin) < lockTimeout; time.Sleep(time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		err = nil
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: dir, Err: err}
	}
	return func() { f.Close() }, nil
}

// removeDead removes a socket that no program serves.
func removeDead(path string) error {
	file, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case file.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		c.Close()
		return errServed
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, unix.EAGAIN): // its backlog is full
		return errServed
	}
	return err
}

// Close stops listening and removes the socket, unless another one has replaced it.
func (s *Socket) Close() error {
	err := s.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if file, lerr := os.Lstat(s.path); lerr == nil && os.SameFile(file, s.file) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}
