// Package nfq binds a handler of packets to a queue of the kernel (NFQUEUE,
// net/netfilter/nfnetlink_queue.c) by way of go-nfqueue.
//
// Every packet that the kernel queues gets exactly one verdict. Where there is no time for
// one, the kernel lets packets go by itself (NFQA_CFG_F_FAIL_OPEN), and when the queue is
// closed, it is emptied first, so that no packet is lost either way.
package nfq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
)

// Handler decides about packets; engine.Engine is one. All is called from one goroutine.
type Handler interface {
	// Handle takes the packet with the number id, from its IP header on, and appends to
	// verdicts those that are due.
	Handle(id uint32, packet []byte, verdicts []engine.Verdict) []engine.Verdict
	// Deadline returns when Expire has to be called; false if there is no need.
	Deadline() (time.Time, bool)
	// Expire appends the verdicts whose time has come.
	Expire(verdicts []engine.Verdict) []engine.Verdict
	// Flush appends all verdicts that are still owed.
	Flush(verdicts []engine.Verdict) []engine.Verdict
}

const (
	// maxQueueLen is how many packets may wait for a verdict; beyond that the kernel lets
	// them go unread.
	maxQueueLen = 4096
	// maxPacketLen is longer than any packet: none is cut short.
	maxPacketLen = 0xffff
	// readBuffer is the socket's receive buffer in bytes: room for a full queue of packets
	// of usual size.
	readBuffer = 8 << 20
)

// Queue is one queue and its handler.
type Queue struct {
	num     uint16
	handler Handler
	log     *slog.Logger
	ready   chan struct{}
	lost    atomic.Uint64

	// Of the goroutine that receives.
	nf       *nfqueue.Nfqueue
	verdicts []engine.Verdict
	last     uint32    // number of the last packet received; the kernel counts from 1
	deadline time.Time // of reading; zero for none
	stopping bool
	stop     <-chan struct{}
	done     chan error
}

// New makes a Queue with the number num, which Run binds.
func New(num uint16, h Handler, log *slog.Logger) *Queue {
	return &Queue{num: num, handler: h, log: log, ready: make(chan struct{}), done: make(chan error, 1)}
}

// String names the queue.
func (q *Queue) String() string { return fmt.Sprintf("queue %d", q.num) }

// Ready is closed as soon as the queue is bound: from then on no packet passes unread.
func (q *Queue) Ready() <-chan struct{} { return q.ready }

// Lost returns how often the kernel reported that its messages did not fit into the socket.
// Their packets have passed unread.
func (q *Queue) Lost() uint64 { return q.lost.Load() }

// Run binds the queue in the network namespace of the calling thread and hands its packets to
// the handler until ctx is done; then it lets the kernel queue nothing more, handles what is
// still there, and returns nil. It returns an error if the queue cannot be bound, or is lost.
// It can be called once.
func (q *Queue) Run(ctx context.Context) error {
	nf, err := nfqueue.Open(&nfqueue.Config{
		NfQueue:      q.num,
		MaxQueueLen:  maxQueueLen,
		MaxPacketLen: maxPacketLen,
		Copymode:     nfqueue.NfQnlCopyPacket,
		Flags:        nfqueue.NfQaCfgFlagFailOpen,
		Logger:       libraryLog{q.log},
	})
	if err != nil {
		return fmt.Errorf("open netlink socket for %s: %w", q, err)
	}
	q.nf = nf
	q.stop = ctx.Done()
	q.enlargeReadBuffer()
	// The library stops its own way when its context ends: not before the queue is drained.
	if err := nf.RegisterWithErrorFunc(context.WithoutCancel(ctx), q.packet, q.receiveError); err != nil {
		_ = nf.Con.Close()
		return q.bindError(err)
	}
	close(q.ready)

	select {
	case <-ctx.Done():
		// Wakes the receiving goroutine, which does the rest.
		_ = nf.Con.SetReadDeadline(time.Now())
		err = <-q.done
	case err = <-q.done:
	}
	if cerr := nf.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close %s: %w", q, cerr)
	}
	return err
}

func (q *Queue) bindError(err error) error {
	switch {
	case errors.Is(err, unix.EPERM) && os.Geteuid() != 0:
		return fmt.Errorf("bind %s: not permitted: run as root or with CAP_NET_ADMIN", q)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EPERM):
		return fmt.Errorf("bind %s: another program is bound to it (second column of /proc/net/netfilter/nfnetlink_queue): stop that or choose another number with --queue", q)
	}
	return fmt.Errorf("bind %s: %w", q, err)
}

// enlargeReadBuffer goes beyond net.core.rmem_max, which CAP_NET_ADMIN allows.
func (q *Queue) enlargeReadBuffer() {
	raw, err := q.nf.Con.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer)
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		q.log.Warn("receive buffer of the queue stays at the system's default", "queue", q.num, "reason", err)
	}
}

// packet is called by the library for every packet. It returns non-zero to end receiving.
func (q *Queue) packet(a nfqueue.Attribute) int {
	if ret := q.handle(a); ret != 0 || !q.stopping {
		return ret
	}
	return q.endIfEmpty()
}

func (q *Queue) handle(a nfqueue.Attribute) int {
	if a.PacketID == nil {
		return 0
	}
	id := *a.PacketID
	// The kernel numbers packets without gaps. A number that was left out belongs to a
	// message that could not be read; its packet still waits for a verdict.
	for missed := q.last + 1; q.last != 0 && missed != id; missed++ {
		if err := q.nf.SetVerdict(missed, nfqueue.NfAccept); err != nil {
			return q.end(err)
		}
	}
	q.last = id
	if a.Payload == nil {
		return q.verdict(engine.Verdict{ID: id})
	}
	return q.give(q.handler.Handle(id, *a.Payload, q.verdicts[:0]))
}

// give sends the handler's verdicts to the kernel, and sees to it that the next ones that are
// due by time are not missed.
func (q *Queue) give(verdicts []engine.Verdict) int {
	q.verdicts = verdicts
	for _, v := range verdicts {
		if ret := q.verdict(v); ret != 0 {
			return ret
		}
	}
	deadline, ok := q.handler.Deadline()
	if !ok {
		deadline = time.Time{}
	}
	if q.stopping || deadline.Equal(q.deadline) {
		return 0
	}
	return q.readUntil(deadline)
}

// readUntil sets the time at which receiveError is called if nothing comes.
func (q *Queue) readUntil(deadline time.Time) int {
	q.deadline = deadline
	err := q.nf.Con.SetReadDeadline(deadline)
	if !q.stopping {
		select {
		case <-q.stop: // Run's own deadline may just have been overwritten
			err = q.nf.Con.SetReadDeadline(time.Now())
		default:
		}
	}
	if err != nil {
		return q.end(err)
	}
	return 0
}

func (q *Queue) verdict(v engine.Verdict) int {
	var err error
	if v.Packet != nil {
		err = q.nf.SetVerdictWithOption(v.ID, nfqueue.NfAccept, nfqueue.WithAlteredPacket(v.Packet))
	} else {
		err = q.nf.SetVerdict(v.ID, nfqueue.NfAccept)
	}
	if err != nil {
		return q.end(err)
	}
	return 0
}

// receiveError is called by the library when receiving fails. It returns non-zero to end it.
func (q *Queue) receiveError(err error) int {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, unix.ENOBUFS):
		q.lost.Add(1)
	case errors.Is(err, unix.ENOENT):
		// A verdict came too late: the packet is gone, its device perhaps.
	case errors.As(err, &timeout) && timeout.Timeout():
		return q.timeout()
	default:
		return q.end(err)
	}
	return 0
}

// timeout is called when the read deadline has passed: because a verdict is due, or because
// the queue is to stop.
func (q *Queue) timeout() int {
	select {
	case <-q.stop:
		return q.drain()
	default:
		return q.give(q.handler.Expire(q.verdicts[:0]))
	}
}

// drain begins with stopping.
func (q *Queue) drain() int {
	if !q.stopping {
		q.stopping = true
		if err := q.closeIntake(); err != nil {
			return q.end(err)
		}
	}
	return q.endIfEmpty()
}

// endIfEmpty ends receiving if all that the kernel has queued has been handled.
func (q *Queue) endIfEmpty() int {
	empty, err := q.empty()
	switch {
	case err != nil:
		return q.end(err)
	case !empty:
		return q.readUntil(time.Now().Add(time.Second))
	}
	if ret := q.give(q.handler.Flush(q.verdicts[:0])); ret != 0 {
		return ret
	}
	return q.end(nil)
}

// empty reports whether the socket has no message. Messages are in it as soon as their packets
// are queued.
func (q *Queue) empty() (empty bool, err error) {
	raw, err := q.nf.Con.SyscallConn()
	if err != nil {
		return false, err
	}
	cerr := raw.Control(func(fd uintptr) {
		_, _, err = unix.Recvfrom(int(fd), nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	if errors.Is(err, unix.EAGAIN) {
		return true, cerr
	}
	return false, errors.Join(err, cerr)
}

// closeIntake makes the kernel let every further packet go: with room for none, the queue is
// always full, and a full queue fails open. Unbinding would drop what is in it.
func (q *Queue) closeIntake() error {
	const (
		msgConfig      = unix.NFNL_SUBSYS_QUEUE<<8 | 2 // NFQNL_MSG_CONFIG
		cfgQueueMaxLen = 3                             // NFQA_CFG_QUEUE_MAXLEN
	)
	_, err := q.nf.Con.Send(netlink.Message{
		Header: netlink.Header{Type: msgConfig, Flags: netlink.Request},
		// struct nfgenmsg with the queue's number, then the attribute with the number 0.
		Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, byte(q.num >> 8), byte(q.num),
			8, 0, cfgQueueMaxLen, 0, 0, 0, 0, 0},
	})
	return err
}

// end reports why receiving ends and returns what makes the library stop.
func (q *Queue) end(err error) int {
	if err != nil {
		err = fmt.Errorf("%s is lost: %w", q, err)
	}
	// The library unbinds the queue next, and waits for the answer.
	_ = q.nf.Con.SetReadDeadline(time.Now().Add(time.Second))
	q.done <- err
	return 1
}

// libraryLog takes what go-nfqueue logs; it is about messages that it could not read.
type libraryLog struct{ log *slog.Logger }

// Debugf implements nfqueue.Logger.
func (l libraryLog) Debugf(format string, args ...any) { l.log.Debug(fmt.Sprintf(format, args...)) }

// Errorf implements nfqueue.Logger.
func (l libraryLog) Errorf(format string, args ...any) { l.log.Debug(fmt.Sprintf(format, args...)) }
