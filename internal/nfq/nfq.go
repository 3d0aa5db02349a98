// Package nfq binds a handler of packets to a queue of the kernel (NFQUEUE,
// net/netfilter/nfnetlink_queue.c), over a socket of go-nfqueue.
//
// Every packet that the kernel queues gets exactly one verdict, and no packet is lost. When the queue is full,
// the kernel passes packets unread (NFQA_CFG_F_FAIL_OPEN); before the queue is closed, it is emptied.
//
// Only the socket is go-nfqueue's. Its bind takes several steps, each of which mistakes a packet that arrives
// meanwhile for its answer; and it allocates much memory per packet.
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

// MaxPacket is the length in bytes of the longest packet that a queue delivers or a Verdict may hold: that of the
// longest netlink attribute.
const MaxPacket = 0xffff - unix.SizeofNlAttr

// Verdict accepts a packet; no packet is ever dropped. It is an alias of a plain struct, so that a Handler need
// not import this package.
type Verdict = struct {
	// ID is the packet's number in the queue.
	ID uint32
	// Packet replaces the packet; nil leaves it unchanged. It is valid until the next call of the Handler.
	Packet []byte
}

// Handler decides about packets; engine.Engine implements it. All methods are called from one goroutine.
type Handler interface {
	// Handle takes the packet with the number id, from its IP header on, and appends the verdicts that are
	// due.
	Handle(id uint32, packet []byte, verdicts []Verdict) []Verdict
	// Deadline returns when Expire has to be called; false for never.
	Deadline() (time.Time, bool)
	// Expire appends the verdicts whose deadline has passed.
	Expire(verdicts []Verdict) []Verdict
	// Flush appends the verdicts on all packets that are held.
	Flush(verdicts []Verdict) []Verdict
}

const (
	// maxQueueLen is the number of packets that may wait for a verdict; the kernel passes more unread.
	maxQueueLen = 4096
	// maxMessageLen is the length of the longest message: a packet and some small attributes.
	maxMessageLen = MaxPacket + 4096
	// maxBatch is the number of packets whose verdicts may be sent together; the first packet waits for the
	// last.
	maxBatch = 16
	// maxUnsent is the length of unsent verdicts in bytes from which they are sent at once. One more packet
	// stays far below the socket's limit (net.core.wmem_default).
	maxUnsent = 32 << 10
	// lookEvery is the number of packets from one check for a further message to the next, unless busy.
	lookEvery = 16
	// bindSequence is the sequence number of the bind request.
	bindSequence = 1
	// readBuffer is the size of the socket's receive buffer in bytes: room for a full queue of packets of
	// usual size.
	readBuffer = 8 << 20
)

// Queue is one queue and its handler.
type Queue struct {
	num        uint16
	handler    Handler
	log        *slog.Logger
	ready      chan struct{}
	ended      chan struct{}
	jobs       chan *job // capacity 1
	overflows  atomic.Uint64
	priority   uint32 // of the packets for byPriority
	byPriority func(id uint32, packet []byte, verdicts []Verdict) []Verdict

	socketMu sync.Mutex // held while interrupt uses the socket
	open     bool       // the socket is

	// Used only by the goroutine of Run.
	fd        int              // the socket
	buffer    []byte           // receives messages
	verdicts  []Verdict        // reused for each call of the handler
	unsent    nfnetlink.Buffer // encoded verdicts
	batched   int              // messages received since unsent was empty
	busy      bool             // the last check found another message
	received  uint64           // packets
	handling  Durations
	stop      <-chan struct{}
	deadline  time.Time   // the handler's; zero for none
	timer     *time.Timer // interrupts at the deadline
	rcvbufErr error       // why the receive buffer is smaller than readBuffer
	bound     bool
	stopping  bool
}

// New makes a Queue with the number num, which Run binds.
func New(num uint16, h Handler, log *slog.Logger) *Queue {
	return &Queue{num: num, handler: h, log: log, ready: make(chan struct{}), ended: make(chan struct{}), jobs: make(chan *job, 1)}
}

// HandleByPriority has packets with that priority (meta priority in nftables) handled by handle in place of
// the Handler's Handle. It has to be called before Run.
func (q *Queue) HandleByPriority(priority uint32, handle func(id uint32, packet []byte, verdicts []Verdict) []Verdict) {
	q.priority, q.byPriority = priority, handle
}

// String names the queue.
func (q *Queue) String() string { return fmt.Sprintf("queue %d", q.num) }

// Ready is closed as soon as the queue is bound.
func (q *Queue) Ready() <-chan struct{} { return q.ready }

// Overflows returns the number of times that messages did not fit into the socket. Each time, the kernel
// passed an unknown number of packets unread.
func (q *Queue) Overflows() uint64 { return q.overflows.Load() }

// Run binds the queue in the network namespace of the calling thread and hands its packets to the handler
// until ctx is done; then it stops the kernel from queueing, handles the packets in the queue, and returns
// nil. It returns an error if the queue cannot be bound, or is lost. It can be called once.
func (q *Queue) Run(ctx context.Context) error {
	defer close(q.ended)
	if err := q.socket(); err != nil {
		return fmt.Errorf("open netlink socket for %s: %w", q, err)
	}
	q.buffer, q.stop = make([]byte, maxMessageLen), ctx.Done()
	q.timer = time.AfterFunc(time.Hour, q.interrupt)
	defer q.timer.Stop()
	defer context.AfterFunc(ctx, q.interrupt)()

	// With CAP_NET_ADMIN the size may exceed net.core.rmem_max.
	q.rcvbufErr = unix.SetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer)
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

// socket opens the socket: a blocking duplicate of go-nfqueue's, which the runtime's poller does not handle
// for every packet.
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
	q.socketMu.Lock()
	defer q.socketMu.Unlock()
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

// close closes the socket, which unbinds the queue.
func (q *Queue) close() error {
	q.socketMu.Lock()
	defer q.socketMu.Unlock()
	q.open = false
	return unix.Close(q.fd)
}

// bind requests the queue with all its parameters in one message, so that they hold from the first packet on.
// The answer arrives among the packets.
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

// closeIntake has the kernel pass every further packet unread: a queue of length 0 is always full, and a full
// queue fails open. Unbinding would drop the packets in the queue.
func (q *Queue) closeIntake() error {
	const cfgQueueMaxLen = 3
	var m nfnetlink.Buffer
	start := m.Message(msgConfig, 0, 0, unix.AF_UNSPEC, q.num)
	m.Uint32(cfgQueueMaxLen, 0)
	m.EndMessage(start)
	return unix.Send(q.fd, m, 0)
}

// noop returns a request that does nothing and is acknowledged.
func noop() (m nfnetlink.Buffer) {
	m.EndMessage(m.Message(unix.NLMSG_NOOP, unix.NLM_F_ACK, 0, unix.AF_UNSPEC, 0))
	return m
}

// interrupt makes a blocked recv return, from any goroutine: the kernel acknowledges a noop. If the receive
// buffer has no room for that, recv does not block.
func (q *Queue) interrupt() {
	q.socketMu.Lock()
	defer q.socketMu.Unlock()
	if !q.open {
		return
	}
	if err := unix.Send(q.fd, noop(), 0); err != nil {
		q.log.Error("recv not interrupted", "queue", q.num, "why", err)
	}
}

// errDone is returned when the queue has been emptied at the end.
var errDone = errors.New("done")

// receive handles messages until an error or errDone. A message costs one system call and its verdict one
// more. Under load, verdicts are batched.
func (q *Queue) receive() error {
	for {
		err := q.next()
		if err == nil {
			err = q.runTimers()
		}
		if err != nil || len(q.unsent) > 0 && !q.batch() {
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

// next receives and handles one datagram. It blocks only if no verdict is unsent.
//
//	recv     verdicts unsent  stopping  next
//	data     any              any       handles the messages
//	ENOBUFS  any              any       counts an overflow: the kernel has passed packets unread
//	EINTR    any              any       does nothing
//	EAGAIN   yes              any       sends the verdicts: no further packet is there
//	EAGAIN   no               yes       flushes the handler and ends with errDone: the queue is empty
func (q *Queue) next() error {
	flags := unix.MSG_DONTWAIT
	if len(q.unsent) == 0 {
		flags, q.batched = 0, 0
	}
	n, err := recv(q.fd, q.buffer, flags)
	if flags != 0 {
		q.busy = err == nil
	}
	switch {
	case err == nil:
		q.batched++
		return q.handleAll(q.buffer[:n])
	case errors.Is(err, unix.ENOBUFS):
		q.overflows.Add(1)
		return nil
	case errors.Is(err, unix.EINTR):
		return nil
	case errors.Is(err, unix.EAGAIN) && flags != 0:
		return q.send()
	case errors.Is(err, unix.EAGAIN) && q.stopping:
		if err := q.queueVerdicts(q.handler.Flush(q.verdicts[:0])); err != nil {
			return err
		}
		if err := q.send(); err != nil {
			return err
		}
		return errDone
	}
	return err
}

// handleAll handles the messages of a datagram.
func (q *Queue) handleAll(b []byte) error {
	for len(b) > 0 {
		m, rest, err := nfnetlink.Next(b)
		if err == nil {
			err = q.handle(m)
		}
		if err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// batch reports whether to look for another message before verdicts are sent. That costs a system call if
// there is none, so without load it is done for one packet in lookEvery.
func (q *Queue) batch() bool {
	return q.batched < maxBatch && (q.busy || q.received%lookEvery == 0)
}

// send sends the unsent verdicts.
func (q *Queue) send() error {
	if len(q.unsent) == 0 {
		return nil
	}
	err := unix.Send(q.fd, q.unsent, 0)
	q.unsent = q.unsent[:0]
	return err
}

// handle handles a message from the kernel.
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

// answer handles the kernel's answer to a request.
func (q *Queue) answer(m nfnetlink.Message) error {
	switch {
	case m.Errno == unix.ENOENT && q.bound:
		// The kernel has dropped the packet before its verdict, for instance with its device.
	case m.Errno != 0:
		return m.Errno
	case m.Seq == bindSequence:
		q.bound = true
		if q.rcvbufErr != nil {
			q.log.Warn("receive buffer of the queue has the system's default size", "queue", q.num, "why", q.rcvbufErr)
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
	if q.byPriority != nil && p.priority == q.priority {
		handle = q.byPriority
	}
	err := q.queueVerdicts(handle(p.id, p.bytes, q.verdicts[:0]))
	q.handling.add(time.Since(start))
	return err
}

// queueVerdicts queues the handler's verdicts, and sets the timer to its deadline.
func (q *Queue) queueVerdicts(verdicts []Verdict) error {
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

// verdict queues a verdict, and sends all if they are long.
func (q *Queue) verdict(v Verdict) error {
	appendVerdict(&q.unsent, q.num, v)
	if len(q.unsent) < maxUnsent {
		return nil
	}
	return q.send()
}

// runTimers runs what the clock or another goroutine has requested: expired verdicts, one job, or the end.
func (q *Queue) runTimers() error {
	if !q.deadline.IsZero() && !time.Now().Before(q.deadline) {
		q.deadline = time.Time{} // set again by queueVerdicts
		if err := q.queueVerdicts(q.handler.Expire(q.verdicts[:0])); err != nil {
			return err
		}
	}
	select {
	case <-q.stop:
	default:
		return q.runJob()
	}
	if q.stopping {
		return nil
	}
	q.stopping = true
	if err := q.closeIntake(); err != nil {
		return err
	}
	// A message is in the socket as soon as its packet is queued, so an empty socket is an empty queue.
	return unix.SetNonblock(q.fd, true)
}

// bindError returns why the queue could not be bound. EPERM has two reasons.
func (q *Queue) bindError(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("bind %s: %w", q, err)
	}
	if taken := Free(q.num); taken != nil {
		return taken
	}
	if _, err := ReadStatus(); err != nil {
		return fmt.Errorf("bind %s: not permitted: another program that cannot be seen from here is bound to it, or CAP_NET_ADMIN is missing: see the first two columns of /proc/net/netfilter/nfnetlink_queue as root", q)
	}
	return fmt.Errorf("bind %s: not permitted: run as root or with CAP_NET_ADMIN", q)
}

// Free returns an error that names the program which has bound the queue. It returns nil if no program has, or
// if that is not known.
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
	return fmt.Errorf("bind queue %d: another program is bound to it, %s: stop it, or choose another number with --queue", number, who)
}
