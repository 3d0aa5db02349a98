package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/metrics"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

const (
	// flowsAtOnce is at how many places for connections is looked between two packets.
	flowsAtOnce = 1024
	// checkTime is how long conntrack is asked which connections are over.
	checkTime = 3 * time.Second
)

// desk is where the daemon tells of itself. Its methods are those of control.Daemon and
// metrics.Daemon.
type desk struct {
	*daemon
	version string
	events  control.Bus
	// filled is what fills the queues; nil before they are, and at the end.
	filled atomic.Pointer[filling]
	// status is nfq.StatusFile of the daemon's network namespace, nil where it can't be read: only
	// root may, and nobody where /proc has processes only (subset=pid).
	status  *os.File
	socket  *control.Socket
	metrics net.Listener
	servers []*control.Server

	asking    sync.Mutex // for conntrack
	conntrack *expect.Client
}

// filling says what fills the queues.
type filling struct {
	rules   rules.Config
	checked bool // they were as they should be
}

// openDesk takes the places where the daemon is to tell of itself. It has to be closed, whether
// there is an error or not.
func (d *daemon) openDesk() (t *desk, err error) {
	t = &desk{daemon: d, version: d.settings.Version}
	if t.conntrack, err = expect.Dial(); err != nil {
		return t, err
	}
	if path := d.settings.Control; path != "" {
		if t.socket, err = control.Listen(path); err != nil {
			return t, err
		}
	}
	if at := d.settings.Metrics; at.IsValid() {
		if t.metrics, err = listenAnywhere(at); err != nil {
			return t, fmt.Errorf("serve the metrics: %w: choose another address with --metrics", err)
		}
	}
	return t, nil
}

// listenAnywhere listens at an address that this host need not have yet: the rules are to be in place
// before the network is up.
func listenAnywhere(at netip.AddrPort) (net.Listener, error) {
	option, level := unix.IP_FREEBIND, unix.IPPROTO_IP
	if at.Addr().Is6() {
		option, level = unix.IPV6_FREEBIND, unix.IPPROTO_IPV6
	}
	l := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
		return errors.Join(err, cerr)
	}}
	return l.Listen(context.Background(), "tcp", at.String())
}

// serve begins to answer, when the queues are bound and filled.
func (t *desk) serve(f filling) {
	var err error
	if t.status, err = os.Open(nfq.StatusFile); err != nil {
		t.status = nil
		t.log.Info("metrics lack queue_waiting and queue_dropped_total, which the kernel tells root only", "why", err)
	}
	t.filled.Store(&f)
	counters := metrics.Handler(t, t.version, t.settings.Wish.Monitor)
	if t.socket != nil {
		t.servers = append(t.servers, control.Serve(t.socket, control.NewHandler(t, counters), t.log))
	}
	if t.metrics != nil {
		t.servers = append(t.servers, control.Serve(t.metrics, control.NewHealthHandler(t, counters), t.log))
		t.log.Info("metrics served", "address", t.metrics.Addr())
	}
}

// close ends telling.
func (t *desk) close() error {
	t.filled.Store(nil)
	var errs []error
	for _, s := range t.servers {
		errs = append(errs, s.Close())
	}
	if t.socket != nil {
		errs = append(errs, t.socket.Close())
	}
	if t.metrics != nil {
		if err := t.metrics.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if t.status != nil {
		errs = append(errs, t.status.Close())
	}
	t.asking.Lock()
	defer t.asking.Unlock()
	if t.conntrack != nil {
		errs = append(errs, t.conntrack.Close())
	}
	return errors.Join(errs...)
}

// observe hands an event of a queue's engine to those who follow the events.
func (t *desk) observe(queue uint16, ev *engine.Event) {
	if t.events.Followed() {
		t.events.Publish(eventOf(queue, ev))
	}
}

// Live returns an error if a queue is not served.
func (t *desk) Live(ctx context.Context) error { return t.do(ctx, func(*worker) {}) }

// Ready returns an error if FTP is not helped: a queue is not served, or the rules that filled it
// have gone.
func (t *desk) Ready(ctx context.Context) error {
	f := t.filled.Load()
	if f == nil {
		return errors.New("the daemon is about to stop")
	}
	if err := t.Live(ctx); err != nil || !f.checked {
		return err
	}
	return rules.Check(f.rules)
}

// inKernel returns what the kernel says of its queues, by their numbers; nothing where it may not be
// read.
func (t *desk) inKernel() (map[uint16]nfq.Status, error) {
	if t.status == nil {
		return nil, nil
	}
	// From its beginning, whoever else reads.
	text, err := io.ReadAll(io.NewSectionReader(t.status, 0, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read the list of queues: %w", err)
	}
	return nfq.ParseStatus(string(text))
}

// Queues returns what there is to tell of every queue.
func (t *desk) Queues(ctx context.Context) ([]metrics.Queue, error) {
	kernel, err := t.inKernel()
	if err != nil {
		return nil, err
	}
	var queues []metrics.Queue
	err = t.do(ctx, func(w *worker) {
		q := metrics.Queue{
			Number: w.number, Stats: w.engine.Stats(), Tracked: w.engine.Tracked(),
			Handling: w.queue.Handling(), Overflows: w.queue.Overflows(),
		}
		if status, ok := kernel[w.number]; ok {
			q.Kernel = &status
		}
		queues = append(queues, q)
	})
	return queues, err
}

// Follow returns a new follower of the events.
func (t *desk) Follow() (*control.Follower, error) { return t.events.Follow() }

// Version says what the daemon is.
func (t *desk) Version() control.Version {
	return control.Version{Version: t.version, Go: runtime.Version(), Monitor: t.settings.Wish.Monitor}
}

// Flows calls yield for every control connection that conntrack has not forgotten. Packets wait
// for none of this longer than it takes to look at some of them.
func (t *desk) Flows(ctx context.Context, yield func(control.Flow) error) (unchecked int, err error) {
	deadline := time.Now().Add(checkTime)
	flows := make([]engine.Flow, 0, flowsAtOnce)
	for _, w := range t.workers {
		for from, more := uint32(0), true; more; more = from != 0 {
			err := w.queue.Do(ctx, func() { flows, from = w.engine.AppendFlows(flows[:0], from, flowsAtOnce) })
			if err != nil {
				return unchecked, fmt.Errorf("%s: %w", w.queue, err)
			}
			for i := range flows {
				switch over, err := t.over(&flows[i], deadline); {
				case over:
					continue
				case err != nil:
					unchecked++
				}
				if err := yield(flowOf(w.number, &flows[i])); err != nil {
					return unchecked, err
				}
			}
		}
	}
	return unchecked, nil
}

// errNoTime is returned where there is no time to ask conntrack.
var errNoTime = errors.New("no time")

// over reports whether conntrack does not know a connection any more.
func (t *desk) over(f *engine.Flow, deadline time.Time) (bool, error) {
	if time.Now().After(deadline) {
		return false, errNoTime
	}
	t.asking.Lock()
	defer t.asking.Unlock()
	m, _, err := t.conntrack.Lookup(f.Tuples[expect.Original])
	if errors.Is(err, expect.ErrNoEntry) || err == nil && m.Tuples != f.Tuples {
		return true, nil
	}
	return false, err
}

// flowOf is a connection as it is told to others.
func flowOf(queue uint16, f *engine.Flow) control.Flow {
	m := f.Master()
	flow := control.Flow{
		Queue: queue, Client: m.Client(), Server: m.Server(), State: f.State.String(), Sequence: f.Sequence.String(),
		Expected: f.Expected, Refused: f.Refused,
	}
	if seen := f.Tuples[expect.Reply].Dst; seen != flow.Client {
		flow.ClientSeenAs = seen
	}
	if at := f.Tuples[expect.Original].Dst; at != flow.Server {
		flow.ServerReachedAt = at
	}
	if f.Last.Announced != 0 {
		flow.Last = &control.Endpoint{Verb: f.Last.Verb.String(), Announced: f.Last.Announced, Told: f.Last.Advertised}
	}
	return flow
}

// eventOf is an event as it is told to others. It shares no memory with ev.
func eventOf(queue uint16, ev *engine.Event) control.Event {
	to := control.Event{
		Time: time.Now(), Queue: queue, Kind: ev.Kind.String(), Client: ev.Master.Client(), Server: ev.Master.Server(), Again: ev.Again, Monitor: ev.Monitor,
	}
	switch ev.Kind {
	case engine.Unknown:
		to.Server = ev.Master.Tuples[expect.Original].Dst
	case engine.Unreadable:
		to.Verb, to.Line = ev.Verb.String(), string(ev.Line)
	case engine.Expected, engine.WouldOpen, engine.Refused, engine.Failed:
		to.Verb, to.Announced, to.Told, to.Expected = ev.Verb.String(), ev.Announced, ev.Advertised, ev.Expected
	}
	if ev.Kind == engine.Refused {
		to.Reason, to.Why = ev.Reason.String(), ev.Reason.Sentence()
	}
	if ev.Err != nil {
		to.Why = ev.Err.Error()
	}
	return to
}
