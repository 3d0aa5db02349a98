package netns

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// writeOnce puts text on the wire as one segment.
func writeOnce(conn *net.TCPConn, text string) error {
	_, err := io.WriteString(conn, text)
	return err
}

// writeBytes writes each byte by itself. What TCP makes of that is its choice: it
// joins those for which its window has no room.
func writeBytes(conn *net.TCPConn, text string) error {
	for i := range len(text) {
		if err := writeOnce(conn, text[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// writeParts writes all but the last few bytes, and then those, and lets TCP keep them back until
// the others are acknowledged.
func writeParts(conn *net.TCPConn, text string) error {
	if err := conn.SetNoDelay(false); err != nil {
		return err
	}
	cut := max(0, len(text)-len("1)\r\n"))
	if err := writeOnce(conn, text[:cut]); err != nil {
		return err
	}
	return writeOnce(conn, text[cut:])
}

// writeSegment writes text and waits until TCP has sent it all, so that what is
// written next does not go into the same segment.
func writeSegment(conn *net.TCPConn, text string) error {
	if err := writeOnce(conn, text); err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(Scale(5 * time.Second)); ; {
		var unsent int
		controlErr := raw.Control(func(fd uintptr) {
			unsent, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQNSD)
		})
		switch {
		case controlErr != nil:
			return controlErr
		case err != nil:
			return fmt.Errorf("how much of %q is unsent: %w", text, err)
		case unsent == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%d bytes of %q cannot be sent", unsent, text)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// writeByteSegments writes each byte as a segment of its own.
func writeByteSegments(conn *net.TCPConn, text string) error {
	for i := range len(text) {
		if err := writeSegment(conn, text[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// tcpInfo is what the kernel knows of a connection.
func tcpInfo(conn *net.TCPConn) (*unix.TCPInfo, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var info *unix.TCPInfo
	if controlErr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); controlErr != nil {
		return nil, controlErr
	}
	if err != nil {
		return nil, fmt.Errorf("TCP_INFO: %w", err)
	}
	return info, nil
}

// sentOnce is how many bytes a connection has sent, and in how many segments,
// without what it has sent again.
func sentOnce(conn *net.TCPConn) (bytes, segments int, err error) {
	info, err := tcpInfo(conn)
	if err != nil {
		return 0, 0, err
	}
	return int(info.Bytes_sent - info.Bytes_retrans), int(info.Data_segs_out - info.Total_retrans), nil
}

// widenWindow lets the host's connections begin with room for as many segments as
// a line has bytes. With the usual ten, TCP joins the rest of a line for which the
// window has no room, because the router acknowledges nothing that it holds.
func widenWindow(t testing.TB, h *Host) {
	t.Helper()
	changeRoutes(t, h, func(route *netlink.Route) { route.InitCwnd = 100 })
}

func changeRoutes(t testing.TB, h *Host, change func(*netlink.Route)) {
	t.Helper()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := h.nl.RouteList(nil, family)
		must.Do(t, err)
		for _, route := range routes {
			change(&route)
			if err := h.nl.RouteReplace(&route); err != nil {
				t.Fatalf("%s: route %s: %v", h.Name, route, err)
			}
		}
	}
}

// neverRetransmit keeps the host's connections from sending anything twice, those
// that are made from now on: what gets lost stays lost.
func neverRetransmit(t testing.TB, h *Host) {
	t.Helper()
	retransmitAfter(t, h, 10*time.Minute)
}

// retransmitAfter has them wait so long for an acknowledgement before they send again.
func retransmitAfter(t testing.TB, h *Host, rto time.Duration) {
	t.Helper()
	must.Do(t, h.Sysctl("ipv4.tcp_early_retrans", "0"))
	changeRoutes(t, h, func(route *netlink.Route) { route.RtoMin, route.RtoMinLock = int(rto.Milliseconds()), true })
}

// splitter writes one line in two segments, cut at a position.
type splitter struct {
	mu    sync.Mutex
	start string // of the line
	at    int
	done  bool // it has cut a line there
}

// cut says which line to cut, and where.
func (s *splitter) cut(start string, at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.start, s.at, s.done = start, at, false
}

// hasCut says whether there was such a line, and whether it was that long.
func (s *splitter) hasCut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

func (s *splitter) write(conn *net.TCPConn, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.start == "" || !strings.HasPrefix(text, s.start) || s.at >= len(text) {
		return writeOnce(conn, text)
	}
	s.done = true
	_, before, err := sentOnce(conn)
	if err != nil {
		return err
	}
	if err := writeSegment(conn, text[:s.at]); err != nil {
		return err
	}
	// The router is to decide about the first part before it sees the second.
	time.Sleep(time.Millisecond)
	if err := writeSegment(conn, text[s.at:]); err != nil {
		return err
	}
	_, after, err := sentOnce(conn)
	if err == nil && after != before+2 {
		err = fmt.Errorf("%q, cut at %d, was sent in %d segments", text, s.at, after-before)
	}
	return err
}
