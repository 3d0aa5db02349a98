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

	// outcomes are nil without a control socket, and where conntrack has no events: outcomesErr says why.
	outcomes      *outcomes
	outcomesErr   error
	outcomesEnded chan error // nil before they run
	stopOutcomes  context.CancelFunc

	started time.Time
}

// filling says what fills the queues.
type filling struct {
	rules   rules.Config
	checked bool // they were as they should be
}

// source returns where the rules come from.
func (d *daemon) source(f *filling) string {
	switch {
	case d.settings.ApplyRules:
		return control.RulesApplied
	case f.checked:
		return control.RulesInPlace
	}
	return control.RulesDifferent
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
		if !d.settings.Outcomes {
			t.outcomesErr = errors.New("the setting outcomes is false")
		} else if t.outcomes, t.outcomesErr = openOutcomes(); t.outcomesErr != nil {
			t.log.Warn("used, expired and closed are not reported", "why", t.outcomesErr)
		} else {
			t.outcomes.publish, t.outcomes.find, t.outcomes.warn = t.events.Publish, t.find, t.log.Warn
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
	t.started = time.Now()
	t.runOutcomes()
	counters := metrics.Handler(t, t.version, t.settings.Wish.Monitor)
	if t.socket != nil {
		t.servers = append(t.servers, control.Serve(t.socket, control.NewHandler(t, counters), t.log))
	}
	if t.metrics != nil {
		t.servers = append(t.servers, control.Serve(t.metrics, control.NewHealthHandler(t, counters), t.log))
		t.log.Info("metrics served", "address", t.metrics.Addr())
	}
}

// runOutcomes begins to report outcomes, where there are any.
func (t *desk) runOutcomes() {
	if t.outcomes == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	t.stopOutcomes, t.outcomesEnded = stop, make(chan error, 1)
	go func() { t.outcomesEnded <- t.outcomes.run(ctx) }()
}

// closeOutcomes ends that.
func (t *desk) closeOutcomes() error {
	switch {
	case t.outcomesEnded != nil:
		t.stopOutcomes()
		return <-t.outcomesEnded
	case t.outcomes != nil:
		return t.outcomes.close()
	}
	return nil
}

// find returns the control connection that has that tuple, if an engine tracks it.
func (t *desk) find(tuple expect.Tuple) (queue uint16, f engine.Flow, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), findTime)
	defer cancel()
	for _, w := range t.workers {
		if err := w.queue.Do(ctx, func() { f, ok = w.engine.Find(tuple) }); err == nil && ok {
			return w.number, f, true
		}
	}
	return 0, f, false
}

// close ends telling.
func (t *desk) close() error {
	t.filled.Store(nil)
	var errs []error
	for _, s := range t.servers {
		errs = append(errs, s.Close())
	}
	errs = append(errs, t.closeOutcomes())
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

// observe publishes an event of a queue's engine.
func (t *desk) observe(queue uint16, ev *engine.Event) {
	if t.socket == nil {
		return
	}
	report := eventOf(queue, ev)
	t.events.Publish(report)
	switch {
	case t.outcomes == nil:
	case ev.Kind == engine.Tracked:
		t.outcomes.tracked(ev)
	case ev.Kind == engine.Expected:
		t.outcomes.announced(ev, report)
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

// Status says how the daemon is.
func (t *desk) Status(ctx context.Context) (s control.Status, err error) {
	queues, err := t.Queues(ctx)
	if err != nil {
		return s, err
	}
	s = control.Status{
		Version: t.version, Go: runtime.Version(), Started: t.started, Ready: true, Monitor: t.settings.Wish.Monitor,
		Outcomes: t.outcomes != nil, Refusals: t.events.Refusals(),
	}
	if err := t.Ready(ctx); err != nil {
		s.Ready, s.Why = false, err.Error()
	}
	if t.outcomes != nil {
		s.OutcomesLost = t.outcomes.losses()
	} else if t.outcomesErr != nil {
		s.OutcomesWhy = t.outcomesErr.Error()
	}
	if f := t.filled.Load(); f != nil {
		ports, err := rules.Ports() // some may have been added by hand
		if err != nil {
			ports = f.rules.Ports
		}
		s.Rules = control.Rules{
			Source: t.source(f), Ruleset: string(f.rules.Ruleset), Ports: rules.FormatPorts(ports, ","),
			Helper: f.rules.Helper,
		}
	}
	for _, q := range queues {
		to := control.Queue{
			Number: q.Number, Packets: q.Packets, Connections: q.Tracked, Transfers: q.Expectations, Failed: q.Failed, Overflows: q.Overflows,
		}
		for _, n := range q.Refused {
			to.Refused += n
		}
		if k := q.Kernel; k != nil {
			waiting, dropped := uint64(k.Waiting), uint64(k.Full+k.Lost)
			to.Waiting, to.Dropped = &waiting, &dropped
		}
		s.Queues = append(s.Queues, to)
	}
	if s.Refusals == nil {
		s.Refusals = []control.Event{}
	}
	return s, nil
}

// Follow returns a new follower of the events.
func (t *desk) Follow(since time.Time) (*control.Follower, error) { return t.events.Follow(since) }

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
				flow := flowOf(w.number, &flows[i])
				switch m, err := t.lookup(&flows[i], deadline); {
				case errors.Is(err, expect.ErrNoEntry):
					continue
				case err != nil:
					unchecked++
				case m.Closing:
					flow.State = control.StateClosing
				}
				if err := yield(flow); err != nil {
					return unchecked, err
				}
			}
		}
	}
	return unchecked, nil
}

// errNoTime is returned where there is no time to ask conntrack.
var errNoTime = errors.New("no time")

// lookup returns what conntrack has of a connection: ErrNoEntry if it is over.
func (t *desk) lookup(f *engine.Flow, deadline time.Time) (*expect.Master, error) {
	if time.Now().After(deadline) {
		return nil, errNoTime
	}
	t.asking.Lock()
	defer t.asking.Unlock()
	m, _, err := t.conntrack.Lookup(f.Tuples[expect.Original])
	if err == nil && m.Tuples != f.Tuples {
		return nil, expect.ErrNoEntry // another one has its ports
	}
	return m, err
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
		if f.Last.Advertised == 0 {
			flow.Last.Reason, flow.Last.Why = f.Last.Reason.String(), f.Last.Reason.Sentence()
		}
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
	case engine.Odd:
		to.Line = string(ev.Line)
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
