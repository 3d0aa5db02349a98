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

// statusServer is where the daemon tells of itself. Its methods are those of control.Daemon and
// metrics.Daemon.
type statusServer struct {
	*daemon
	version string
	events  control.Bus
	// filled is what fills the queues; nil before they are, and at the end.
	state atomic.Pointer[ruleState]
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

// ruleState says what fills the queues.
type ruleState struct {
	rules   rules.Config
	checked bool // they were as they should be
}

// source returns where the rules come from.
func (d *daemon) source(f *ruleState) string {
	switch {
	case d.settings.ApplyRules:
		return control.RulesApplied
	case f.checked:
		return control.RulesInPlace
	}
	return control.RulesDifferent
}

// newStatusServer takes the places where the daemon is to tell of itself. It has to be closed, whether
// there is an error or not.
func (d *daemon) newStatusServer() (s *statusServer, err error) {
	s = &statusServer{daemon: d, version: d.settings.Version}
	if s.conntrack, err = expect.Dial(); err != nil {
		return s, err
	}
	if path := d.settings.Control; path != "" {
		if s.socket, err = control.Listen(path); err != nil {
			return s, err
		}
		if !d.settings.Outcomes {
			s.outcomesErr = errors.New("the setting outcomes is false")
		} else if s.outcomes, s.outcomesErr = openOutcomes(); s.outcomesErr != nil {
			s.log.Warn("used, expired and closed are not reported", "why", s.outcomesErr)
		} else {
			s.outcomes.publish, s.outcomes.find, s.outcomes.warn = s.events.Publish, s.find, s.log.Warn
		}
	}
	if at := d.settings.Metrics; at.IsValid() {
		if s.metrics, err = listenAnywhere(at); err != nil {
			return s, fmt.Errorf("serve the metrics: %w: choose another address with --metrics", err)
		}
	}
	return s, nil
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
func (s *statusServer) serve(f ruleState) {
	var err error
	if s.status, err = os.Open(nfq.StatusFile); err != nil {
		s.status = nil
		s.log.Info("metrics lack queue_waiting and queue_dropped_total, which the kernel tells root only", "why", err)
	}
	s.state.Store(&f)
	s.started = time.Now()
	s.runOutcomes()
	counters := metrics.Handler(s, s.version, s.settings.Wish.Monitor)
	if s.socket != nil {
		s.servers = append(s.servers, control.Serve(s.socket, control.NewHandler(s, counters), s.log))
	}
	if s.metrics != nil {
		s.servers = append(s.servers, control.Serve(s.metrics, control.NewHealthHandler(s, counters), s.log))
		s.log.Info("metrics served", "address", s.metrics.Addr())
	}
}

// runOutcomes begins to report outcomes, where there are any.
func (s *statusServer) runOutcomes() {
	if s.outcomes == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stopOutcomes, s.outcomesEnded = stop, make(chan error, 1)
	go func() { s.outcomesEnded <- s.outcomes.run(ctx) }()
}

// closeOutcomes ends that.
func (s *statusServer) closeOutcomes() error {
	switch {
	case s.outcomesEnded != nil:
		s.stopOutcomes()
		return <-s.outcomesEnded
	case s.outcomes != nil:
		return s.outcomes.close()
	}
	return nil
}

// find returns the control connection that has that tuple, if an engine tracks it.
func (s *statusServer) find(tuple expect.Tuple) (queue uint16, f engine.Flow, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), findTime)
	defer cancel()
	for _, w := range s.workers {
		if err := w.queue.Do(ctx, func() { f, ok = w.engine.Find(tuple) }); err == nil && ok {
			return w.number, f, true
		}
	}
	return 0, f, false
}

// close ends telling.
func (s *statusServer) close() error {
	s.state.Store(nil)
	var errs []error
	for _, server := range s.servers {
		errs = append(errs, server.Close())
	}
	errs = append(errs, s.closeOutcomes())
	if s.socket != nil {
		errs = append(errs, s.socket.Close())
	}
	if s.metrics != nil {
		if err := s.metrics.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.status != nil {
		errs = append(errs, s.status.Close())
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	if s.conntrack != nil {
		errs = append(errs, s.conntrack.Close())
	}
	return errors.Join(errs...)
}

// observe publishes an event of a queue's engine.
func (s *statusServer) observe(queue uint16, ev *engine.Event) {
	if s.socket == nil {
		return
	}
	report := eventOf(queue, ev)
	s.events.Publish(report)
	switch {
	case s.outcomes == nil:
	case ev.Kind == engine.Tracked:
		s.outcomes.tracked(ev)
	case ev.Kind == engine.Expected:
		s.outcomes.announced(ev, report)
	}
}

// Live returns an error if a queue is not served.
func (s *statusServer) Live(ctx context.Context) error { return s.do(ctx, func(*worker) {}) }

// Ready returns an error if FTP is not helped: a queue is not served, or the rules that filled it
// have gone.
func (s *statusServer) Ready(ctx context.Context) error {
	f := s.state.Load()
	if f == nil {
		return errors.New("the daemon is about to stop")
	}
	if err := s.Live(ctx); err != nil || !f.checked {
		return err
	}
	return rules.Check(f.rules)
}

// inKernel returns what the kernel says of its queues, by their numbers; nothing where it may not be
// read.
func (s *statusServer) inKernel() (map[uint16]nfq.Status, error) {
	if s.status == nil {
		return nil, nil
	}
	// From its beginning, whoever else reads.
	text, err := io.ReadAll(io.NewSectionReader(s.status, 0, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read the list of queues: %w", err)
	}
	return nfq.ParseStatus(string(text))
}

// Queues returns what there is to tell of every queue.
func (s *statusServer) Queues(ctx context.Context) ([]metrics.Queue, error) {
	kernel, err := s.inKernel()
	if err != nil {
		return nil, err
	}
	var queues []metrics.Queue
	err = s.do(ctx, func(w *worker) {
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
func (s *statusServer) Status(ctx context.Context) (status control.Status, err error) {
	queues, err := s.Queues(ctx)
	if err != nil {
		return status, err
	}
	status = control.Status{
		Version: s.version, Go: runtime.Version(), Started: s.started, Ready: true, Monitor: s.settings.Wish.Monitor,
		Outcomes: s.outcomes != nil, Refusals: s.events.Refusals(),
	}
	if err := s.Ready(ctx); err != nil {
		status.Ready, status.Why = false, err.Error()
	}
	if s.outcomes != nil {
		status.OutcomesLost = s.outcomes.losses()
	} else if s.outcomesErr != nil {
		status.OutcomesWhy = s.outcomesErr.Error()
	}
	if f := s.state.Load(); f != nil {
		ports, err := rules.Ports() // some may have been added by hand
		if err != nil {
			ports = f.rules.Ports
		}
		status.Rules = control.Rules{
			Source: s.source(f), Ruleset: string(f.rules.Ruleset), Ports: rules.FormatPorts(ports, ","),
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
		status.Queues = append(status.Queues, to)
	}
	if status.Refusals == nil {
		status.Refusals = []control.Event{}
	}
	return status, nil
}

// Follow returns a new follower of the events.
func (s *statusServer) Follow(since time.Time) (*control.Follower, error) {
	return s.events.Follow(since)
}

// Version says what the daemon is.
func (s *statusServer) Version() control.Version {
	return control.Version{Version: s.version, Go: runtime.Version(), Monitor: s.settings.Wish.Monitor}
}

// Flows calls yield for every control connection that conntrack has not forgotten. Packets wait
// for none of this longer than it takes to look at some of them.
func (s *statusServer) Flows(ctx context.Context, yield func(control.Flow) error) (unchecked int, err error) {
	deadline := time.Now().Add(checkTime)
	flows := make([]engine.Flow, 0, flowsAtOnce)
	for _, w := range s.workers {
		for from, more := uint32(0), true; more; more = from != 0 {
			err := w.queue.Do(ctx, func() { flows, from = w.engine.AppendFlows(flows[:0], from, flowsAtOnce) })
			if err != nil {
				return unchecked, fmt.Errorf("%s: %w", w.queue, err)
			}
			for i := range flows {
				flow := flowOf(w.number, &flows[i])
				switch m, err := s.lookup(&flows[i], deadline); {
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
func (s *statusServer) lookup(f *engine.Flow, deadline time.Time) (*expect.Master, error) {
	if time.Now().After(deadline) {
		return nil, errNoTime
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	m, _, err := s.conntrack.Lookup(f.Tuples[expect.Original])
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
