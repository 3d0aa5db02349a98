package netns

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// socketOptions binds a socket to the host's device. With reuse, a connection can start from a port that a
// connection to somewhere else, or a closed one, still holds.
func (h *Host) socketOptions(reuse bool) func(_, _ string, conn syscall.RawConn) error {
	return func(_, _ string, conn syscall.RawConn) error {
		var err error
		if controlErr := conn.Control(func(fd uintptr) {
			if reuse {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			}
			if err == nil && h.Device != "" {
				err = unix.BindToDevice(int(fd), h.Device)
			}
		}); controlErr != nil {
			return controlErr
		}
		return err
	}
}
