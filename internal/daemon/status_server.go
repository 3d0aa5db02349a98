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
	// flowsAtOnce is the number of table places that are read between two packets.
	flowsAtOnce = 1024
	// checkTime is the longest time for which conntrack is asked which connections are over.
	checkTime = 3 * time.Second
)

// statusServer serves the control socket and the metrics. It implements control.Daemon and
// metrics.Daemon.
type statusServer struct {
	*daemon
	version string
	events  control.Bus
	// state is nil before the rules are set up, and from the stop on.
	state atomic.Pointer[ruleState]
	// status is nfq.StatusFile of the daemon's network namespace. It is nil without root, and where /proc
	// has processes only (subset=pid).
	status  *os.File
	socket  *control.Socket
	metrics net.Listener
	servers []*control.Server

	mu        sync.Mutex // of conntrack
	conntrack *expect.Client

	// outcomes is nil without a control socket, and where conntrack has no events: see outcomesErr.
	outcomes    *outcomes
	outcomesErr error

	started time.Time
}

// ruleState is the state of the rules that queue packets.
type ruleState struct {
	rules   rules.Config
	checked bool // they were found to be as the settings require
}

// source returns one of control.RuleSources.
func (d *daemon) source(state *ruleState) string {
	switch {
	case d.settings.ApplyRules:
		return control.RulesApplied
	case state.checked:
		return control.RulesInPlace
	}
	return control.RulesDifferent
}

// newStatusServer opens the sockets. The server has to be closed, even after an error.
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
			s.log.Warn("events used, expired and closed are not reported", "why", s.outcomesErr)
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

// listenAnywhere listens at an address that this host may not have yet: the daemon starts before the
// network is up.
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

// serve starts to answer requests.
func (s *statusServer) serve(state ruleState) {
	var err error
	if s.status, err = os.Open(nfq.StatusFile); err != nil {
		s.status = nil
		s.log.Info("metrics queue_packets and queue_dropped_total are missing: they need root", "why", err)
	}
	s.state.Store(&state)
	s.started = time.Now()
	counters := metrics.Handler(s, s.version, s.settings.Request.Monitor)
	if s.socket != nil {
		s.servers = append(s.servers, control.Serve(s.socket, control.NewHandler(s, counters), s.log))
	}
	if s.metrics != nil {
		s.servers = append(s.servers, control.Serve(s.metrics, control.NewHealthHandler(s, counters), s.log))
		s.log.Info("metrics served", "address", s.metrics.Addr())
	}
}

// find returns the control connection with that original tuple, if an engine tracks it.
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

// close stops answering, and closes the sockets.
func (s *statusServer) close() error {
	s.state.Store(nil)
	var errs []error
	for _, server := range s.servers {
		errs = append(errs, server.Close())
	}
	if s.outcomes != nil {
		errs = append(errs, s.outcomes.close())
	}
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
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conntrack != nil {
		errs = append(errs, s.conntrack.Close())
	}
	return errors.Join(errs...)
}

// emit publishes an event of an engine.
func (s *statusServer) emit(queue uint16, ev *engine.Event) {
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

// Ready returns an error if FTP is not helped: a queue is not served, or rules that were found right at the
// start are missing or changed.
func (s *statusServer) Ready(ctx context.Context) error {
	state := s.state.Load()
	if state == nil {
		return errors.New("the daemon is stopping")
	}
	if err := s.Live(ctx); err != nil || !state.checked {
		return err
	}
	return rules.Check(state.rules)
}

// kernelStatus returns the kernel's view of its queues by their numbers, nil where it may not be read.
func (s *statusServer) kernelStatus() (map[uint16]nfq.Status, error) {
	if s.status == nil {
		return nil, nil
	}
	// Several goroutines read the file, each from its beginning.
	text, err := io.ReadAll(io.NewSectionReader(s.status, 0, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read the list of queues: %w", err)
	}
	return nfq.ParseStatus(string(text))
}

// Queues implements metrics.Daemon.
func (s *statusServer) Queues(ctx context.Context) ([]metrics.Queue, error) {
	kernel, err := s.kernelStatus()
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

// Status implements control.Daemon.
func (s *statusServer) Status(ctx context.Context) (status control.Status, err error) {
	queues, err := s.Queues(ctx)
	if err != nil {
		return status, err
	}
	status = control.Status{
		Version: s.version, Go: runtime.Version(), Started: s.started, Ready: true, Monitor: s.settings.Request.Monitor,
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
	if state := s.state.Load(); state != nil {
		ports, err := rules.Ports() // some may have been added with nft
		if err != nil {
			ports = state.rules.Ports
		}
		status.Rules = control.Rules{
			Source: s.source(state), Ruleset: string(state.rules.Ruleset), Ports: rules.FormatPorts(ports, ","),
			Helper: state.rules.Helper,
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

// Follow implements control.Daemon.
func (s *statusServer) Follow(since time.Time) (*control.Follower, error) {
	return s.events.Follow(since)
}

// Version implements control.Daemon.
func (s *statusServer) Version() control.Version {
	return control.Version{Version: s.version, Go: runtime.Version(), Monitor: s.settings.Request.Monitor}
}

// Flows calls yield for every control connection that conntrack still has. It delays packets for no
// longer than it takes to read flowsAtOnce table places.
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

// errNoTime is returned after the deadline for asking conntrack.
var errNoTime = errors.New("no time")

// lookup returns the conntrack entry of a connection, or ErrNoEntry if the connection is over.
func (s *statusServer) lookup(f *engine.Flow, deadline time.Time) (*expect.Master, error) {
	if time.Now().After(deadline) {
		return nil, errNoTime
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, _, err := s.conntrack.Lookup(f.Tuples[expect.Original])
	if err == nil && m.Tuples != f.Tuples {
		return nil, expect.ErrNoEntry // another connection has its ports
	}
	return m, err
}

// flowOf returns a connection as package control describes it.
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
		flow.Last = &control.Endpoint{Verb: f.Last.Verb.String(), Announced: f.Last.Announced, Advertised: f.Last.Advertised}
		if f.Last.Advertised == 0 {
			flow.Last.Reason, flow.Last.Why = f.Last.Reason.String(), f.Last.Reason.Sentence()
		}
	}
	return flow
}

// eventOf returns an event as package control describes it. It shares no memory with ev.
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
		to.Verb, to.Announced, to.Advertised, to.Expected = ev.Verb.String(), ev.Announced, ev.Advertised, ev.Expected
	}
	if ev.Kind == engine.Refused {
		to.Reason, to.Why = ev.Reason.String(), ev.Reason.Sentence()
	}
	if ev.Err != nil {
		to.Why = ev.Err.Error()
	}
	return to
}
