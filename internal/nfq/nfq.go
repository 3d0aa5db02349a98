// Package nfq binds a handler of packets to a queue of the kernel (NFQUEUE,
// net/netfilter/nfnetlink_queue.c), over the socket and with the verdicts of go-nfqueue.
//
// Every packet that the kernel queues gets exactly one verdict. Where there is no time for
// one, the kernel lets packets go by itself (NFQA_CFG_F_FAIL_OPEN), and when the queue is
// closed, it is emptied first, so that no packet is lost either way.
//
// The set-up and the receiving are not those of go-nfqueue: it binds in several steps, each of
// which takes the next message for its answer, be it a packet that came in between; and it
// gives no verdict for a message that it cannot read.
package nfq

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
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
	num       uint16
	handler   Handler
	log       *slog.Logger
	ready     chan struct{}
	overflows atomic.Uint64

	// Of the goroutine that receives.
	nf       *nfqueue.Nfqueue
	verdicts []engine.Verdict
	stop     <-chan struct{}
	deadline time.Time // of reading; zero for none
	small    error     // why the socket's receive buffer is not as large as it should be
	bound    bool
	stopping bool
	last     uint32 // number of the last packet received; the kernel counts from 1
	skipped  bool   // packets after that one are known to have passed without a message
}

// New makes a Queue with the number num, which Run binds.
func New(num uint16, h Handler, log *slog.Logger) *Queue {
	return &Queue{num: num, handler: h, log: log, ready: make(chan struct{})}
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
	nf, err := nfqueue.Open(&nfqueue.Config{NfQueue: q.num})
	if err != nil {
		return fmt.Errorf("open netlink socket for %s: %w", q, err)
	}
	q.nf, q.stop = nf, ctx.Done()
	// A read deadline in the past wakes the receiving goroutine, which does the rest.
	defer context.AfterFunc(ctx, func() { _ = nf.Con.SetReadDeadline(time.Now()) })()

	q.small = q.enlargeReadBuffer()
	err = q.bind()
	if err == nil {
		err = q.receive()
	}
	// Closing the socket unbinds the queue.
	if cerr := nf.Con.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close %s: %w", q, cerr)
	}
	return err
}

// bind asks the kernel for the queue, in one message: from its first packet on it is to be as
// it should. The answer comes among the packets.
func (q *Queue) bind() error {
	const (
		cfgCmd, cfgParams, cfgQueueMaxLen, cfgMask, cfgFlags = 1, 2, 3, 4, 5 // NFQA_CFG_*
		cmdBind                                              = 1             // NFQNL_CFG_CMD_BIND
	)
	failOpen := be32(nfqueue.NfQaCfgFlagFailOpen)
	err := q.configure(netlink.Acknowledge,
		netlink.Attribute{Type: cfgCmd, Data: []byte{cmdBind, 0, 0, unix.AF_UNSPEC}},
		netlink.Attribute{Type: cfgParams, Data: append(be32(maxPacketLen), nfqueue.NfQnlCopyPacket)},
		netlink.Attribute{Type: cfgFlags, Data: failOpen},
		netlink.Attribute{Type: cfgMask, Data: failOpen},
		netlink.Attribute{Type: cfgQueueMaxLen, Data: be32(maxQueueLen)},
	)
	if err != nil {
		return fmt.Errorf("bind %s: %w", q, err)
	}
	return nil
}

// closeIntake makes the kernel let every further packet go: with room for none, the queue is
// always full, and a full queue fails open. Unbinding would drop what is in it.
func (q *Queue) closeIntake() error {
	const cfgQueueMaxLen = 3
	return q.configure(0, netlink.Attribute{Type: cfgQueueMaxLen, Data: be32(0)})
}

func (q *Queue) configure(flags netlink.HeaderFlags, attrs ...netlink.Attribute) error {
	const msgConfig = unix.NFNL_SUBSYS_QUEUE<<8 | 2 // NFQNL_MSG_CONFIG
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	header := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, byte(q.num >> 8), byte(q.num)} // struct nfgenmsg
	_, err = q.nf.Con.Send(netlink.Message{
		Header: netlink.Header{Type: msgConfig, Flags: netlink.Request | flags},
		Data:   append(header, data...),
	})
	return err
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// errDone is how the queue ends when it is to.
var errDone = errors.New("done")

// receive handles messages until there is an error, or errDone.
func (q *Queue) receive() error {
	for {
		messages, err := q.nf.Con.Receive()
		if err != nil {
			err = q.receiveError(err)
		}
		for _, m := range messages {
			if err = errors.Join(err, q.message(m)); err != nil {
				break
			}
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

func (q *Queue) message(m netlink.Message) error {
	if m.Header.Type == netlink.Error { // without an error: the kernel's answer to bind
		if !q.bound {
			q.bound = true
			if q.small != nil {
				q.log.Warn("receive buffer of the queue stays at the system's default", "queue", q.num, "reason", q.small)
			}
			close(q.ready)
		}
		return nil
	}
	p, ok := parseMessage(m.Data)
	if !ok {
		return nil
	}
	// The kernel numbers packets without gaps. A number that was left out belongs to a message
	// that could not be read; its packet still waits for a verdict.
	for missed := q.last + 1; q.last != 0 && !q.skipped && missed != p.id; missed++ {
		if err := q.verdict(engine.Verdict{ID: missed}); err != nil {
			return err
		}
	}
	q.last, q.skipped = p.id, false
	var err error
	if p.looped() {
		err = q.verdict(engine.Verdict{ID: p.id})
	} else {
		err = q.give(q.handler.Handle(p.id, p.bytes, q.verdicts[:0]))
	}
	if err != nil || !q.stopping {
		return err
	}
	return q.doneIfEmpty()
}

// packet is one that the kernel has queued.
type packet struct {
	id    uint32
	hook  byte
	in    uint32 // number of the interface that it came in by, 0 for none
	bytes []byte // from the IP header on; may be missing
}

// looped tells whether this host sent the packet to itself, and it was here a moment ago, on its
// way out: the kernel queues for a cthelper in both places.
func (p packet) looped() bool {
	const loopback = 1 // LOOPBACK_IFINDEX
	return p.hook == unix.NF_INET_LOCAL_IN && p.in == loopback
}

// parseMessage reads an NFQNL_MSG_PACKET, which begins with a struct nfgenmsg; false if it has
// no number.
func parseMessage(b []byte) (p packet, ok bool) {
	const (
		nfgenmsg                  = 4
		packetHdr, indev, payload = 1, 5, 10 // NFQA_PACKET_HDR, NFQA_IFINDEX_INDEV, NFQA_PAYLOAD
		attrHeader, typeMask      = 4, 0x3fff
	)
	for b = b[min(nfgenmsg, len(b)):]; len(b) >= attrHeader; {
		n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])&typeMask
		if n < attrHeader || n > len(b) {
			break
		}
		data := b[attrHeader:n]
		switch {
		case typ == packetHdr && len(data) >= 7: // struct nfqnl_msg_packet_hdr
			p.id, p.hook, ok = binary.BigEndian.Uint32(data), data[6], true
		case typ == indev && len(data) == 4:
			p.in = binary.BigEndian.Uint32(data)
		case typ == payload:
			p.bytes = data
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return p, ok
}

// give sends the handler's verdicts to the kernel, and sees to it that the next ones that are
// due by time are not missed.
func (q *Queue) give(verdicts []engine.Verdict) error {
	q.verdicts = verdicts
	for _, v := range verdicts {
		if err := q.verdict(v); err != nil {
			return err
		}
	}
	deadline, ok := q.handler.Deadline()
	if !ok {
		deadline = time.Time{}
	}
	if q.stopping || deadline.Equal(q.deadline) {
		return nil
	}
	return q.readUntil(deadline)
}

func (q *Queue) verdict(v engine.Verdict) error {
	if v.Packet == nil {
		return q.nf.SetVerdict(v.ID, nfqueue.NfAccept)
	}
	return q.nf.SetVerdictWithOption(v.ID, nfqueue.NfAccept, nfqueue.WithAlteredPacket(v.Packet))
}

// readUntil sets the time at which receiving is interrupted if nothing comes.
func (q *Queue) readUntil(deadline time.Time) error {
	q.deadline = deadline
	err := q.nf.Con.SetReadDeadline(deadline)
	if !q.stopping {
		select {
		case <-q.stop: // Run's own deadline may just have been overwritten
			err = q.nf.Con.SetReadDeadline(time.Now())
		default:
		}
	}
	return err
}

// receiveError decides about an error of receiving; it returns nil to go on.
func (q *Queue) receiveError(err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, unix.ENOBUFS):
		q.overflow()
		return nil
	case q.bound && errors.Is(err, unix.ENOENT):
		return nil // a verdict came too late: the packet is gone, its device perhaps
	case errors.As(err, &timeout) && timeout.Timeout():
		return q.timeout()
	}
	return err
}

// overflow takes note that packets passed without a message.
func (q *Queue) overflow() {
	q.overflows.Add(1)
	q.skipped = true
}

// timeout is called when the read deadline has passed: because a verdict is due, or because
// the queue is to stop.
func (q *Queue) timeout() error {
	select {
	case <-q.stop:
	default:
		return q.give(q.handler.Expire(q.verdicts[:0]))
	}
	if !q.stopping {
		q.stopping = true
		if err := q.closeIntake(); err != nil {
			return err
		}
	}
	return q.doneIfEmpty()
}

// doneIfEmpty ends receiving if all that the kernel has queued has been handled.
func (q *Queue) doneIfEmpty() error {
	empty, err := q.empty()
	if err != nil {
		return err
	}
	if !empty {
		return q.readUntil(time.Now().Add(time.Second))
	}
	if err := q.give(q.handler.Flush(q.verdicts[:0])); err != nil {
		return err
	}
	return errDone
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
	switch {
	case errors.Is(err, unix.EAGAIN):
		return true, cerr
	case errors.Is(err, unix.ENOBUFS): // reported once; the messages are still there
		q.overflow()
		return false, cerr
	}
	return false, errors.Join(err, cerr)
}

// bindError says why the queue could not be had. The kernel says EPERM for two reasons.
func (q *Queue) bindError(err error) error {
	switch {
	case !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY):
		return fmt.Errorf("bind %s: %w", q, err)
	case q.taken():
		return fmt.Errorf("bind %s: another program is bound to it (second column of /proc/net/netfilter/nfnetlink_queue): stop that or choose another number with --queue", q)
	}
	return fmt.Errorf("bind %s: not permitted: run as root or with CAP_NET_ADMIN", q)
}

// taken looks the queue up in the kernel's list of those that are bound.
func (q *Queue) taken() bool {
	list, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(list) {
		if f := bytes.Fields(line); len(f) > 0 && string(f[0]) == strconv.Itoa(int(q.num)) {
			return true
		}
	}
	return false
}

// enlargeReadBuffer goes beyond net.core.rmem_max, which CAP_NET_ADMIN allows.
func (q *Queue) enlargeReadBuffer() error {
	raw, err := q.nf.Con.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer)
	})
	return errors.Join(err, cerr)
}
