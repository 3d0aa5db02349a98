package netns

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// reuseAddress lets a connection start from a port that a connection to somewhere
// else, or a closed one, still holds.
func reuseAddress(_, _ string, conn syscall.RawConn) error {
	var err error
	if controlErr := conn.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}); controlErr != nil {
		return controlErr
	}
	return err
}
