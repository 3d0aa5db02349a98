// Package nfq binds a handler of packets to a queue of the kernel (NFQUEUE,
// net/netfilter/nfnetlink_queue.c), over a socket of go-nfqueue.
//
// Every packet that the kernel queues gets exactly one verdict. Where there is no time for
// one, the kernel lets packets go by itself (NFQA_CFG_F_FAIL_OPEN), and when the queue is
// closed, it is emptied first, so that no packet is lost either way.
//
// All but the socket is done here. go-nfqueue binds in several steps, each of which takes the
// next message for its answer, be it a packet that came in between; and it allocates much memory per
// packet.
package nfq

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
)

// MaxPacket is the length in bytes of the longest packet that a queue delivers or a Verdict may hold: what has
// room in a netlink attribute.
const MaxPacket = 0xffff - unix.SizeofNlAttr

// Verdict accepts a packet; no packet is ever dropped. It is an alias of a plain struct, so that a Handler need
// not import this package.
type Verdict = struct {
	// ID is the packet's number in the queue.
	ID uint32
	// Packet replaces the packet; nil leaves it unchanged. It is valid until the next call of the Handler.
	Packet []byte
}

// Handler decides about packets; engine.Engine is one. All methods are called from one goroutine.
type Handler interface {
	// Handle takes the packet with the number id, from its IP header on, and appends to
	// verdicts those that are due.
	Handle(id uint32, packet []byte, verdicts []Verdict) []Verdict
	// Deadline returns when Expire has to be called; false if there is no need.
	Deadline() (time.Time, bool)
	// Expire appends the verdicts whose time has come.
	Expire(verdicts []Verdict) []Verdict
	// Flush appends all verdicts that are still owed.
	Flush(verdicts []Verdict) []Verdict
}

const (
	// maxQueueLen is how many packets may wait for a verdict; beyond that the kernel lets
	// them go unread.
	maxQueueLen = 4096
	// maxMessageLen is longer than any message: a packet and some small attributes.
	maxMessageLen = MaxPacket + 4096
	// maxGather is how many packets may be handled before verdicts are sent; the first one has
	// to wait for the last one.
	maxGather = 16
	// maxUnsent is from which length on verdicts are sent at once. With one more packet it is
	// far from what a socket may send (net.core.wmem_default).
	maxUnsent = 32 << 10
	// lookEvery is how many packets come until one is taken for a look whether there are more.
	lookEvery = 16
	// bindSequence marks the answer to bind.
	bindSequence = 1
	// readBuffer is the socket's receive buffer in bytes: room for a full queue of packets
	// of usual size.
	readBuffer = 8 << 20
)

// Queue is one queue and its handler.
type Queue struct {
	num       uint16
	handler   Handler
	log       *slog.Logger
	ready     chan struct{}
	ended     chan struct{}
	jobs      chan *job // room for one
	overflows atomic.Uint64
	priority  uint32 // of the packets that are for special
	special   func(id uint32, packet []byte, verdicts []Verdict) []Verdict

	waking sync.Mutex // held while wake uses the socket
	open   bool       // so that it may

	// Of the goroutine that receives.
	fd       int              // of the socket
	buffer   []byte           // for what is received
	verdicts []Verdict        // the handler's
	unsent   nfnetlink.Buffer // verdicts as messages
	gathered int              // messages received since unsent was empty
	crowded  bool             // the last time that we looked, another message was there
	received uint64           // packets
	handling Durations
	stop     <-chan struct{}
	deadline time.Time   // of the handler; zero for none
	timer    *time.Timer // wakes at the deadline
	small    error       // why the socket's receive buffer is not as large as it should be
	bound    bool
	stopping bool
}

// New makes a Queue with the number num, which Run binds.
func New(num uint16, h Handler, log *slog.Logger) *Queue {
	return &Queue{num: num, handler: h, log: log, ready: make(chan struct{}), ended: make(chan struct{}), jobs: make(chan *job, 1)}
}

// Distinguish hands packets with the priority (meta priority in nftables) to another function,
// which does what the Handler's Handle does. It has to be called before Run.
func (q *Queue) Distinguish(priority uint32, handle func(id uint32, packet []byte, verdicts []Verdict) []Verdict) {
	q.priority, q.special = priority, handle
}

// String names the queue.
func (q *Queue) String() string { return fmt.Sprintf("queue %d", q.num) }

// Ready is closed as soon as the queue is bound.
func (q *Queue) Ready() <-chan struct{} { return q.ready }

// Overflows returns how often the kernel reported that messages did not fit into the socket. An
// unknown number of packets passed unread each time.
func (q *Queue) Overflows() uint64 { return q.overflows.Load() }

// Run binds the queue in the network namespace of the calling thread and hands its packets to
// the handler until ctx is done; then it lets the kernel queue nothing more, handles what is
// still there, and returns nil. It returns an error if the queue cannot be bound, or is lost.
// It can be called once.
func (q *Queue) Run(ctx context.Context) error {
	defer close(q.ended)
	if err := q.socket(); err != nil {
		return fmt.Errorf("open netlink socket for %s: %w", q, err)
	}
	q.buffer, q.stop = make([]byte, maxMessageLen), ctx.Done()
	q.timer = time.AfterFunc(time.Hour, q.wake)
	defer q.timer.Stop()
	defer context.AfterFunc(ctx, q.wake)()

	// This goes beyond net.core.rmem_max, which CAP_NET_ADMIN allows.
	q.small = unix.SetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer)
	err := q.bind()
	if err == nil {
		err = q.receive()
	}
	// Closing the socket unbinds the queue.
	if cerr := q.close(); err == nil && cerr != nil {
		err = fmt.Errorf("close %s: %w", q, cerr)
	}
	return err
}

// socket makes the socket: go-nfqueue's under another descriptor, which blocks. The runtime's
// poller does not know that one, and is not woken up for every packet.
func (q *Queue) socket() error {
	nf, err := nfqueue.Open(&nfqueue.Config{NfQueue: q.num})
	if err != nil {
		return err
	}
	defer nf.Con.Close()
	raw, err := nf.Con.SyscallConn()
	if err != nil {
		return err
	}
	q.waking.Lock()
	defer q.waking.Unlock()
	cerr := raw.Control(func(fd uintptr) {
		if err = unix.SetNonblock(int(fd), false); err != nil {
			return
		}
		q.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	err = errors.Join(err, cerr)
	q.open = err == nil
	return err
}

// close closes the socket, and with it the queue: nothing else uses it when that returns.
func (q *Queue) close() error {
	q.waking.Lock()
	defer q.waking.Unlock()
	q.open = false
	return unix.Close(q.fd)
}

// bind asks the kernel for the queue, in one message: from its first packet on it is to be as
// it should. The answer comes among the packets.
func (q *Queue) bind() error {
	const (
		cfgCmd, cfgParams, cfgQueueMaxLen, cfgMask, cfgFlags = 1, 2, 3, 4, 5 // NFQA_CFG_*
		cmdBind                                              = 1             // NFQNL_CFG_CMD_BIND
	)
	var m nfnetlink.Buffer
	start := m.Message(msgConfig, unix.NLM_F_ACK, bindSequence, unix.AF_UNSPEC, q.num)
	m.Bytes(cfgCmd, cmdBind, 0, 0, unix.AF_UNSPEC)
	m.Bytes(cfgParams, append(binary.BigEndian.AppendUint32(nil, MaxPacket), nfqueue.NfQnlCopyPacket)...)
	m.Uint32(cfgFlags, nfqueue.NfQaCfgFlagFailOpen)
	m.Uint32(cfgMask, nfqueue.NfQaCfgFlagFailOpen)
	m.Uint32(cfgQueueMaxLen, maxQueueLen)
	m.EndMessage(start)
	if err := unix.Send(q.fd, m, 0); err != nil {
		return fmt.Errorf("bind %s: %w", q, err)
	}
	return nil
}

// closeIntake makes the kernel let every further packet go: with room for none, the queue is
// always full, and a full queue fails open. Unbinding would drop what is in it.
func (q *Queue) closeIntake() error {
	const cfgQueueMaxLen = 3
	var m nfnetlink.Buffer
	start := m.Message(msgConfig, 0, 0, unix.AF_UNSPEC, q.num)
	m.Uint32(cfgQueueMaxLen, 0)
	m.EndMessage(start)
	return unix.Send(q.fd, m, 0)
}

// noop returns a request that does nothing, and that the kernel acknowledges.
func noop() (m nfnetlink.Buffer) {
	m.EndMessage(m.Message(unix.NLMSG_NOOP, unix.NLM_F_ACK, 0, unix.AF_UNSPEC, 0))
	return m
}

// wake interrupts receiving, from any goroutine: the kernel acknowledges a request for nothing. If
// the socket has no room for that, there is a packet to receive; if there is no socket, nothing to
// interrupt.
func (q *Queue) wake() {
	q.waking.Lock()
	defer q.waking.Unlock()
	if !q.open {
		return
	}
	if err := unix.Send(q.fd, noop(), 0); err != nil {
		q.log.Error("receiving cannot be interrupted", "queue", q.num, "why", err)
	}
}

// errDone is how the queue ends when it is to.
var errDone = errors.New("done")

// receive handles messages until there is an error, or errDone. A message that comes alone costs
// one system call, and its verdict one more. In a crowd, verdicts are sent together.
func (q *Queue) receive() error {
	for {
		err := q.next()
		if err == nil {
			err = q.due()
		}
		if err != nil || len(q.unsent) > 0 && !q.gather() {
			err = errors.Join(err, q.send())
		}
		switch {
		case err == nil:
		case errors.Is(err, errDone):
			return nil
		case !q.bound:
			return q.bindError(err)
		default:
			return fmt.Errorf("%s is lost: %w", q, err)
		}
	}
}

// next receives and handles one datagram. It waits for it unless there are verdicts to be sent.
func (q *Queue) next() error {
	flags := unix.MSG_DONTWAIT
	if len(q.unsent) == 0 {
		flags, q.gathered = 0, 0
	}
	n, err := recv(q.fd, q.buffer, flags)
	if flags != 0 {
		q.crowded = err == nil
	}
	switch {
	case err == nil:
		q.gathered++
		for rest := q.buffer[:n]; len(rest) > 0; {
			var m nfnetlink.Message
			if m, rest, err = nfnetlink.Next(rest); err == nil {
				err = q.handle(m)
			}
			if err != nil {
				return err
			}
		}
		return nil
	case errors.Is(err, unix.ENOBUFS): // reported once; the packets without a message have passed
		q.overflows.Add(1)
		return nil
	case errors.Is(err, unix.EINTR):
		return nil
	case errors.Is(err, unix.EAGAIN) && flags != 0:
		return q.send()
	case errors.Is(err, unix.EAGAIN) && q.stopping:
		if err := q.give(q.handler.Flush(q.verdicts[:0])); err != nil {
			return err
		}
		if err := q.send(); err != nil {
			return err
		}
		return errDone
	}
	return err
}

// gather tells whether to look for another message before verdicts are sent. That costs a system
// call if there is none, so without a crowd only a packet now and then is worth it.
func (q *Queue) gather() bool {
	return q.gathered < maxGather && (q.crowded || q.received%lookEvery == 0)
}

// send sends the verdicts that there are.
func (q *Queue) send() error {
	if len(q.unsent) == 0 {
		return nil
	}
	err := unix.Send(q.fd, q.unsent, 0)
	q.unsent = q.unsent[:0]
	return err
}

// handle deals with a message of the kernel's.
func (q *Queue) handle(m nfnetlink.Message) error {
	switch m.Type {
	case msgPacket:
		if p, ok := parsePacket(m.Body); ok {
			return q.packet(p)
		}
	case unix.NLMSG_ERROR:
		return q.answer(m)
	}
	return nil
}

// answer deals with the kernel's answer to a request.
func (q *Queue) answer(m nfnetlink.Message) error {
	switch {
	case m.Errno == unix.ENOENT && q.bound:
		// A verdict came too late: the packet is gone, its device perhaps.
	case m.Errno != 0:
		return m.Errno
	case m.Seq == bindSequence:
		q.bound = true
		if q.small != nil {
			q.log.Warn("receive buffer of the queue stays at the system's default", "queue", q.num, "why", q.small)
		}
		close(q.ready)
	}
	return nil
}

func (q *Queue) packet(p packet) error {
	q.received++
	if p.looped() {
		return q.verdict(Verdict{ID: p.id})
	}
	start := time.Now()
	handle := q.handler.Handle
	if q.special != nil && p.priority == q.priority {
		handle = q.special
	}
	err := q.give(handle(p.id, p.bytes, q.verdicts[:0]))
	q.handling.add(time.Since(start))
	return err
}

// give takes the handler's verdicts, and sees to it that the next ones that are due by time are
// not missed.
func (q *Queue) give(verdicts []Verdict) error {
	q.verdicts = verdicts
	for _, v := range verdicts {
		if err := q.verdict(v); err != nil {
			return err
		}
	}
	deadline, ok := q.handler.Deadline()
	switch {
	case !ok:
		deadline = time.Time{}
	case !deadline.Equal(q.deadline):
		q.timer.Reset(time.Until(deadline))
	}
	q.deadline = deadline
	return nil
}

// verdict has a verdict sent, now or soon.
func (q *Queue) verdict(v Verdict) error {
	appendVerdict(&q.unsent, q.num, v)
	if len(q.unsent) < maxUnsent {
		return nil
	}
	return q.send()
}

// due does what is not up to the next message: verdicts by time, and the end.
func (q *Queue) due() error {
	if !q.deadline.IsZero() && !time.Now().Before(q.deadline) {
		q.deadline = time.Time{} // if it stays, it is due again
		if err := q.give(q.handler.Expire(q.verdicts[:0])); err != nil {
			return err
		}
	}
	select {
	case <-q.stop:
	default:
		return q.work()
	}
	if q.stopping {
		return nil
	}
	q.stopping = true
	if err := q.closeIntake(); err != nil {
		return err
	}
	// A message is in the socket as soon as its packet is queued: when there is none, that was all.
	return unix.SetNonblock(q.fd, true)
}

// bindError says why the queue could not be had. The kernel says EPERM for two reasons.
func (q *Queue) bindError(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("bind %s: %w", q, err)
	}
	if taken := Free(q.num); taken != nil {
		return taken
	}
	if _, err := ReadStatus(); err != nil {
		return fmt.Errorf("bind %s: not permitted: another program is bound to it, which cannot be seen from here, or CAP_NET_ADMIN is missing: see the first two columns of /proc/net/netfilter/nfnetlink_queue as root", q)
	}
	return fmt.Errorf("bind %s: not permitted: run as root or with CAP_NET_ADMIN", q)
}

// Free returns an error that names the program which has bound the queue, as far as it can be seen. It
// returns nil if no program has, or if that cannot be seen either.
func Free(number uint16) error {
	bound, err := ReadStatus()
	status, taken := bound[number]
	if err != nil || !taken {
		return nil
	}
	who := fmt.Sprintf("which cannot be seen from here (netlink port %d, see /proc/net/netlink)", status.Portid)
	if o, err := FindOwner(status.Portid); err == nil {
		who = fmt.Sprintf("%s (process %d)", o.Name, o.PID)
	}
	return fmt.Errorf("bind queue %d: another program is bound to it, %s: stop that, or choose another number with --queue", number, who)
}
