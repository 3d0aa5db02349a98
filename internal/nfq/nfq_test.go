package nfq_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

const port = 2121

// handler is a Handler whose parts a test can set. It accepts everything unless set
// otherwise, and a SYN-ACK in any case.
type handler struct {
	mu      sync.Mutex
	packets []string // payloads
	handle  func(id uint32, packet []byte, verdicts []nfq.Verdict) []nfq.Verdict
	held    []nfq.Verdict
	until   time.Time
}

func (h *handler) Handle(id uint32, packet []byte, verdicts []nfq.Verdict) []nfq.Verdict {
	var p mangle.Packet
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := p.Decode(packet); err != nil {
		h.packets = append(h.packets, err.Error())
	} else if p.SYN() {
		return append(verdicts, nfq.Verdict{ID: id})
	} else {
		h.packets = append(h.packets, string(p.Payload()))
	}
	if h.handle != nil {
		return h.handle(id, packet, verdicts)
	}
	return append(verdicts, nfq.Verdict{ID: id})
}

func (h *handler) Deadline() (time.Time, bool) {
	return h.until, !h.until.IsZero()
}

func (h *handler) Expire(verdicts []nfq.Verdict) []nfq.Verdict {
	if h.until.IsZero() || time.Now().Before(h.until) {
		return verdicts
	}
	return h.Flush(verdicts)
}

func (h *handler) Flush(verdicts []nfq.Verdict) []nfq.Verdict {
	verdicts = append(verdicts, h.held...)
	h.held, h.until = nil, time.Time{}
	return verdicts
}

func (h *handler) seen() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.packets, "")
}

// lab is a host whose connections to port are queued, over loopback.
type lab struct {
	t    *testing.T
	host *netns.Host
}

func newLab(t *testing.T) *lab {
	t.Helper()
	host := netns.NewTestHost(t, "host")
	l := &lab{t, host}
	l.do(func() error {
		_, err := rules.Apply(rules.Config{Ports: []rules.PortRange{{First: port, Last: port}}, Queue: 7})
		return err
	})
	return l
}

func (l *lab) do(f func() error) {
	l.t.Helper()
	must.Do(l.t, l.host.Do(f))
}

// serve binds the queue and returns what ends it.
func (l *lab) serve(h nfq.Handler) (stop func() error, q *nfq.Queue) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	q = nfq.New(7, h, slog.New(slog.NewTextHandler(l.t.Output(), nil)))
	ended := make(chan error, 1)
	go func() { ended <- l.host.Do(func() error { return q.Run(ctx) }) }()
	select {
	case <-q.Ready():
	case err := <-ended:
		l.t.Fatal(err)
	}
	return func() error { cancel(); return <-ended }, q
}

// connect returns both ends of a connection.
func (l *lab) connect(address string) (client, server *net.TCPConn) {
	l.t.Helper()
	at := netip.AddrPortFrom(netip.MustParseAddr(address), port)
	listener, err := l.host.Listen(l.t.Context(), at)
	must.Do(l.t, err)
	defer listener.Close()
	client, err = l.host.Dial(l.t.Context(), netip.AddrPort{}, at)
	must.Do(l.t, err)
	server, err = listener.AcceptTCP()
	must.Do(l.t, err)
	l.t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func (l *lab) pass(from, to *net.TCPConn, text string) string {
	l.t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		l.t.Fatal(err)
	}
	got := make([]byte, len(text))
	_ = to.SetReadDeadline(time.Now().Add(netns.Scale(5 * time.Second)))
	if _, err := io.ReadFull(to, got); err != nil {
		l.t.Fatalf("after %q: %v", text, err)
	}
	return string(got)
}

// TestQueue checks that packets of both families and directions are handed over and accepted, or
// replaced.
func TestQueue(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		l := newLab(t)
		h := &handler{handle: func(id uint32, packet []byte, verdicts []nfq.Verdict) []nfq.Verdict {
			var p mangle.Packet
			if err := p.Decode(packet); err != nil || !bytes.HasPrefix(p.Payload(), []byte("old")) {
				return append(verdicts, nfq.Verdict{ID: id})
			}
			changed, err := p.AppendSegment(nil, p.Seq(), append([]byte("new"), p.Payload()[3:]...))
			if err != nil {
				t.Error(err)
			}
			return append(verdicts, nfq.Verdict{ID: id, Packet: changed})
		}}
		stop, q := l.serve(h)
		client, server := l.connect(address)
		if got := l.pass(client, server, "hello"); got != "hello" {
			t.Errorf("%s: got %q at the other end", address, got)
		}
		if got := l.pass(server, client, "old text"); got != "new text" {
			t.Errorf("%s: got %q at the other end", address, got)
		}
		must.Do(t, stop())
		if got := h.seen(); got != "helloold text" || q.Overflows() != 0 {
			t.Errorf("%s: got %q handled, %d overflows", address, got, q.Overflows())
		}
		// Without the daemon packets pass.
		if got := l.pass(server, client, "old text"); got != "old text" {
			t.Errorf("%s: got %q at the other end", address, got)
		}
	}
}

// chatter opens connections on which lines are written until they are hushed: the function that
// it returns does that, and waits for the last one to arrive.
func (l *lab) chatter(connections int, sent *atomic.Int64) (hush func()) {
	l.t.Helper()
	var traffic sync.WaitGroup
	var done atomic.Bool
	for range connections {
		client, server := l.connect("127.0.0.1")
		traffic.Go(func() { _, _ = io.Copy(io.Discard, server) })
		traffic.Go(func() {
			for !done.Load() {
				n, err := io.WriteString(client, "line\r\n")
				if err != nil {
					l.t.Error(err)
					return
				}
				sent.Add(int64(n))
			}
			_ = client.CloseWrite()
		})
	}
	return func() {
		done.Store(true)
		traffic.Wait()
	}
}

// count begins to count packets; the function that it returns says how many have got lost.
func (l *lab) count() (lost func() int) {
	l.t.Helper()
	must.Do(l.t, l.host.Nft(l.t.Context(), countPackets))
	// One segment is one packet: the kernel would cut larger ones up in the queue.
	if _, err := l.host.Run(l.t.Context(), "", "ip", "link", "set", "lo", "gso_max_segs", "1"); err != nil {
		l.t.Fatal(err)
	}
	return func() int {
		time.Sleep(netns.Scale(10 * time.Millisecond)) // the last acknowledgements
		return l.dropped()
	}
}

// TestDrain checks that stopping loses nothing, however much is in the queue.
func TestDrain(t *testing.T) {
	l := newLab(t)
	h := &handler{}
	h.handle = func(id uint32, _ []byte, verdicts []nfq.Verdict) []nfq.Verdict {
		time.Sleep(100 * time.Microsecond) // slower than they come
		return append(verdicts, nfq.Verdict{ID: id})
	}
	stop, _ := l.serve(h)
	lost := l.count()
	var sent atomic.Int64
	hush := l.chatter(8, &sent)
	time.Sleep(100 * time.Millisecond)
	must.Do(t, stop())
	handled := int64(len(h.seen()))
	time.Sleep(100 * time.Millisecond)
	hush()
	if handled == 0 || handled >= sent.Load() {
		t.Errorf("got %d of %d bytes handled before the stop, want some but not all", handled, sent.Load())
	}
	if n := lost(); n != 0 {
		t.Errorf("got %d packets lost, want 0", n)
	}
}

// TestStartInTraffic starts and stops while packets come: the queue can be bound every time, and
// nothing gets lost.
func TestStartInTraffic(t *testing.T) {
	l := newLab(t)
	lost := l.count()
	var sent atomic.Int64
	hush := l.chatter(8, &sent)
	for range 20 {
		stop, _ := l.serve(&handler{})
		time.Sleep(time.Millisecond)
		must.Do(t, stop())
	}
	hush()
	// With several processors, a packet may come between the kernel's making of the queue and its
	// setting of the mode, which is NONE before (nfqnl_recv_config), and be dropped.
	if n := lost(); n > 3 {
		t.Errorf("got %d packets lost, want 0", n)
	}
}

// TestStopAfterOverflow stops after more has come than the socket can hold: the queue is drained
// all the same.
func TestStopAfterOverflow(t *testing.T) {
	l := newLab(t)
	h := &handler{}
	goOn := make(chan struct{})
	h.handle = func(id uint32, _ []byte, verdicts []nfq.Verdict) []nfq.Verdict {
		if len(h.packets) == 1 {
			<-goOn
		}
		return append(verdicts, nfq.Verdict{ID: id})
	}
	stop, q := l.serve(h)
	var clients []*net.TCPConn
	for range 700 {
		client, server := l.connect("127.0.0.1")
		clients = append(clients, client)
		go func() { _, _ = io.Copy(io.Discard, server) }()
	}
	for _, client := range clients {
		go func() { _, _ = client.Write(make([]byte, 60000)) }()
	}
	time.Sleep(netns.Scale(300 * time.Millisecond))
	time.AfterFunc(netns.Scale(200*time.Millisecond), func() { close(goOn) })
	must.Do(t, stop())
	if q.Overflows() == 0 || len(h.packets) < 100 {
		t.Errorf("got %d overflows, %d packets handled; want an overflow", q.Overflows(), len(h.packets))
	}
}

// countPackets has the kernel count the packets before the queue and after it.
const countPackets = `table inet count {
	counter front { }
	counter after { }
	chain front { type filter hook output priority -160; tcp dport 2121 counter name front; }
	chain after { type filter hook input priority 0; tcp dport 2121 counter name after; }
}
`

// dropped returns how many packets did not come out of the queue.
func (l *lab) dropped() int {
	l.t.Helper()
	list, err := l.host.Run(l.t.Context(), "", "nft", "list", "counters", "table", "inet", "count")
	must.Do(l.t, err)
	var n []int
	for _, m := range regexp.MustCompile(`packets (\d+)`).FindAllStringSubmatch(list, -1) {
		packets, _ := strconv.Atoi(m[1])
		n = append(n, packets)
	}
	if len(n) != 2 || n[0] == 0 {
		l.t.Fatalf("got counters %v", n)
	}
	return n[0] - n[1]
}

// TestLater checks that verdicts that are not given at once come at their time, and at the
// latest when the queue stops.
func TestLater(t *testing.T) {
	for name, wait := range map[string]time.Duration{"in time": 50 * time.Millisecond, "at the stop": time.Hour} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			h := &handler{}
			h.handle = func(id uint32, _ []byte, verdicts []nfq.Verdict) []nfq.Verdict {
				h.held = append(h.held, nfq.Verdict{ID: id})
				h.until = time.Now().Add(wait)
				return verdicts
			}
			stop, _ := l.serve(h)
			client, server := l.connect("127.0.0.1")
			if wait == time.Hour {
				time.AfterFunc(100*time.Millisecond, func() { _ = stop() })
			}
			if got := l.pass(client, server, "hello"); got != "hello" {
				t.Errorf("got %q received", got)
			}
			if wait != time.Hour {
				must.Do(t, stop())
			}
		})
	}
}

// TestOwner finds this process by its sockets, of which the first may have its number.
func TestOwner(t *testing.T) {
	err := newLab(t).host.Do(func() error {
		for range 2 {
			fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				return err
			}
			at, err := unix.Getsockname(fd)
			if err != nil {
				return err
			}
			portid := at.(*unix.SockaddrNetlink).Pid
			o, err := nfq.FindOwner(portid)
			if err != nil || o.PID != os.Getpid() || o.Name != "nfq.test" || o.Stopped || o.Lost != 0 {
				t.Errorf("port id %d: got %+v, %v", portid, o, err)
			}
		}
		if o, err := nfq.FindOwner(1); !errors.Is(err, nfq.ErrNoSocket) {
			t.Errorf("%+v, %v", o, err)
		}
		return nil
	})
	must.Do(t, err)
}

// TestTaken checks the error of a second program on the same queue.
func TestTaken(t *testing.T) {
	l := newLab(t)
	stop, _ := l.serve(&handler{})
	second := nfq.New(7, &handler{}, slog.New(slog.DiscardHandler))
	err := l.host.Do(func() error { return second.Run(t.Context()) })
	want := fmt.Sprintf("bind queue 7: another program is bound to it, nfq.test (process %d): stop it, or choose another number with --queue", os.Getpid())
	if err == nil || err.Error() != want {
		t.Errorf("second bind: got %v", err)
	}
	if err := l.host.Do(func() error { return nfq.Free(7) }); err == nil || err.Error() != want {
		t.Errorf("Free of a bound queue: got %v", err)
	}
	if err := l.host.Do(func() error { return nfq.Free(8) }); err != nil {
		t.Errorf("Free of another queue: got %v, want nil", err)
	}
	// The first one is unharmed.
	client, server := l.connect("127.0.0.1")
	l.pass(client, server, "hello")
	must.Do(t, stop())
}

// TestDoInCrowd has so many want functions called that one more always waits: packets pass meanwhile,
// and the queue ends.
func TestDoInCrowd(t *testing.T) {
	l, h := newLab(t), &handler{}
	stop, q := l.serve(h)
	client, server := l.connect("127.0.0.1")
	var callers sync.WaitGroup
	for range 32 {
		callers.Go(func() {
			for {
				err := q.Do(t.Context(), func() { time.Sleep(time.Millisecond) })
				if errors.Is(err, nfq.ErrNotServed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		l.pass(client, server, "line\r\n")
	}
	must.Do(t, stop())
	callers.Wait()
}

// TestDoDeadline has a function change when a verdict is due, while no packet comes.
func TestDoDeadline(t *testing.T) {
	l, h := newLab(t), &handler{}
	h.handle = func(id uint32, _ []byte, verdicts []nfq.Verdict) []nfq.Verdict {
		if h.held = append(h.held, nfq.Verdict{ID: id}); h.until.IsZero() {
			h.until = time.Now().Add(time.Hour)
		}
		return verdicts
	}
	stop, q := l.serve(h)
	client, server := l.connect("127.0.0.1")
	go func() {
		for h.seen() == "" {
			time.Sleep(time.Millisecond)
		}
		if err := q.Do(t.Context(), func() { h.until = time.Now().Add(10 * time.Millisecond) }); err != nil {
			t.Error(err)
		}
	}()
	l.pass(client, server, "line\r\n")
	if got := h.seen(); got != "line\r\n" {
		t.Errorf("got packets %q, want no retransmission", got)
	}
	must.Do(t, stop())
}

// TestDo checks when a function is called on the queue's goroutine, and when it never is.
func TestDo(t *testing.T) {
	l, h := newLab(t), &handler{}
	q := nfq.New(7, h, slog.New(slog.DiscardHandler))
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := q.Do(short, func() { t.Error("called without a goroutine that serves the queue") }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before the queue is served: got %v", err)
	}

	stop, q := l.serve(h)
	var calls atomic.Int32
	var callers sync.WaitGroup
	for range 100 {
		callers.Go(func() {
			if err := q.Do(t.Context(), func() { calls.Add(1) }); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if n := calls.Load(); n != 100 {
		t.Errorf("got %d calls, want 100", n)
	}

	// A function that has started is completed; a later one whose ctx is done is not called.
	busy, release := make(chan struct{}), make(chan struct{})
	callers.Go(func() {
		if err := q.Do(t.Context(), func() { close(busy); <-release }); err != nil {
			t.Error(err)
		}
	})
	<-busy
	late, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := q.Do(late, func() { t.Error("got a call after the deadline, want none") }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after a slow function: got %v", err)
	}
	close(release)
	callers.Wait()

	must.Do(t, stop())
	if err := q.Do(t.Context(), func() { t.Error("called after the end") }); !errors.Is(err, nfq.ErrNotServed) {
		t.Errorf("after the end: got %v", err)
	}
}
