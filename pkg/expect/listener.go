package expect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
)

// EventKind is the kind of an Event.
type EventKind uint8

// The kinds of events.
const (
	// Related: conntrack has accepted an expected connection. Tuples are its own.
	Related EventKind = iota + 1
	// Destroyed: conntrack has removed a connection with a helper. Tuples are its own.
	Destroyed
	// ExpectationNew: an expectation was installed.
	ExpectationNew
	// ExpectationDestroyed: an expectation was removed: it was used up, expired, evicted or deleted.
	ExpectationDestroyed
)

// Event is a message of conntrack's multicast groups.
type Event struct {
	Kind EventKind
	// Tuples are those of the connection.
	Tuples [2]Tuple
	// Master is the original tuple of the master of a Related connection or of an expectation.
	Master Tuple
	// Expected is the tuple of an expectation. Its source port is 0.
	Expected Tuple
	// Left is the remaining time of an expectation, in seconds.
	Left uint32
	// Port is the netlink port of the process that made the change, 0 for the kernel.
	Port uint32
}

// ErrEventsLost is returned where the kernel dropped events that came faster than they were received.
var ErrEventsLost = errors.New("conntrack's events came faster than they were read")

// listenerBuffer is the size of the socket's receive buffer in bytes.
const listenerBuffer = 4 << 20

// Listener receives the events of connections in zone 0 that have a helper or are expected by one, and of
// expectations, in the network namespace in which it was opened. The kernel does not send the zone of an
// expectation, so events of all zones arrive; Client.Expected distinguishes them. There are no events of
// connections older than the Listener (net.netfilter.nf_conntrack_events is 2). The kernel never waits for a
// Listener: it drops events when the buffer is full.
//
// While a Listener is open, the kernel builds a message whenever any connection begins or ends, about 4 µs for
// both. Events of the TCP state would cost 8 µs more, so they are not subscribed to.
type Listener struct {
	file *os.File
	in   []byte
}

// Listen opens a Listener. It needs CAP_NET_ADMIN.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a socket for conntrack's events: %w", err)
	}
	if err := subscribe(fd); err != nil {
		return nil, fmt.Errorf("subscribe to conntrack's events: %w", errors.Join(err, unix.Close(fd)))
	}
	return &Listener{file: os.NewFile(uintptr(fd), "conntrack events"), in: make([]byte, maxAnswer)}, nil
}

func subscribe(fd int) error {
	filter, err := bpf.Assemble(eventFilter())
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		program[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	// The filter comes first, so that nothing unfiltered is received.
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, listenerBuffer)
	if errors.Is(err, unix.EPERM) { // in a user namespace: net.core.rmem_max is the limit
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, listenerBuffer)
	}
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for _, group := range [...]int{
		unix.NFNLGRP_CONNTRACK_NEW, unix.NFNLGRP_CONNTRACK_DESTROY,
		unix.NFNLGRP_CONNTRACK_EXP_NEW, unix.NFNLGRP_CONNTRACK_EXP_DESTROY,
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return err
		}
	}
	return nil
}

// eventFilter accepts events of expectations, and of connections with a master or a helper attached by rules.
// Other events do not reach the socket's buffer.
func eventFilter() []bpf.Instruction {
	const (
		firstAttribute = nfnetlink.HeaderLen
		reject, accept = 0, 1 << 16
	)
	subsystem := uint32(5) // the high byte of nlmsg_type
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		subsystem = 4
	}
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: subsystem, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NFNL_SUBSYS_CTNETLINK_EXP, SkipTrue: 11},
		bpf.LoadConstant{Dst: bpf.RegX, Val: ctaTupleMaster},
		bpf.LoadConstant{Dst: bpf.RegA, Val: firstAttribute},
		bpf.LoadExtension{Num: bpf.ExtNetlinkAttr},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 7},
		bpf.LoadConstant{Dst: bpf.RegX, Val: ctaStatus},
		bpf.LoadConstant{Dst: bpf.RegA, Val: firstAttribute},
		bpf.LoadExtension{Num: bpf.ExtNetlinkAttr},
		bpf.TAX{},
		bpf.LoadIndirect{Off: unix.SizeofNlAttr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: ipsHelper, SkipTrue: 1},
		bpf.RetConstant{Val: reject},
		bpf.RetConstant{Val: accept},
	}
}

// Close closes the Listener; a blocked Receive returns os.ErrClosed.
func (l *Listener) Close() error { return l.file.Close() }

// Receive waits for the next event. It returns ErrEventsLost where events are missing before the next one, and
// os.ErrClosed when the Listener is closed.
func (l *Listener) Receive() (Event, error) {
	for {
		n, err := l.file.Read(l.in)
		if errors.Is(err, unix.ENOBUFS) {
			return Event{}, ErrEventsLost
		}
		if err != nil {
			return Event{}, fmt.Errorf("receive conntrack's events: %w", err)
		}
		ev, err := decodeEvent(l.in[:n])
		if err != nil || ev.Kind != 0 {
			return ev, err
		}
	}
}

// decodeEvent decodes a message. The Kind is 0 for one to be ignored.
func decodeEvent(b []byte) (ev Event, err error) {
	a, _, err := nfnetlink.Next(b)
	if err != nil {
		return ev, err
	}
	switch a.Type {
	case msgCtNew:
		ev, err = decodeConnection(a.Body)
	case msgCtDelete:
		ev, err = decodeConnection(a.Body)
		ev.Kind = Destroyed
	case msgExpNew:
		ev, err = decodeExpectation(a.Body)
		ev.Kind = ExpectationNew
	case msgExpDelete:
		ev, err = decodeExpectation(a.Body)
		ev.Kind = ExpectationDestroyed
	}
	if err == errOtherZone {
		return Event{}, nil
	}
	ev.Port = a.Port
	return ev, err
}

// decodeConnection decodes the body of an IPCTNL_MSG_CT_NEW, as Related if it names a master.
func decodeConnection(body []byte) (ev Event, err error) {
	attrs, err := nfnetlink.Body(body)
	if err == nil && attrs.Find(ctaZone) != nil {
		err = errOtherZone
	}
	for typ, v := range attrs.All() {
		if err != nil {
			break
		}
		switch typ {
		case ctaTupleOrig, ctaTupleReply:
			ev.Tuples[typ-ctaTupleOrig], err = decodeTuple(v)
		case ctaTupleMaster:
			ev.Kind = Related
			ev.Master, err = decodeTuple(v)
		}
	}
	return ev, err
}

// decodeExpectation decodes the body of an IPCTNL_MSG_EXP_NEW.
func decodeExpectation(body []byte) (ev Event, err error) {
	attrs, err := nfnetlink.Body(body)
	if err == nil {
		ev.Master, err = decodeTuple(attrs.Nested(ctaExpectMaster))
	}
	if err == nil {
		ev.Expected, err = decodeTuple(attrs.Nested(ctaExpectTuple))
	}
	ev.Left = attrs.Uint32(ctaExpectTimeout)
	return ev, err
}
