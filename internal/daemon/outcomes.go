package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

const (
	// defaultExpiry is the timeout of expectations until the first event of the kernel reports another.
	defaultExpiry = 300 * time.Second
	// settleTime is the longest time between the removal of a used expectation and the event of its
	// connection, which has to pass the filter first.
	settleTime = 2 * time.Second
	// replaceTime is the longest time between the eviction of an expectation by the kernel and the
	// installation of its replacement.
	replaceTime = 10 * time.Millisecond
	// sweepEvery is the period of sweep.
	sweepEvery = time.Second
	// sweepAtOnce is the number of expectations that sweep reads while it holds the lock.
	sweepAtOnce = 256
	// maxOpened is the number of expectations, and of control connections, that are kept.
	maxOpened = 1 << 16
	// pollEvery is the shortest period of poll, and 1/pollShare the largest part of the time that it
	// takes.
	pollEvery = time.Second
	pollShare = 100
	// warnEvery is the shortest time between two warnings about lost events.
	warnEvery = time.Minute
	// findTime is the longest time in which the engines find a connection.
	findTime = time.Second
)

// outcomes reports what becomes of announced data connections and of control connections, from
// conntrack's events. It delays the engines by no more than a map access.
type outcomes struct {
	readyAtOnce
	close     func() error // may be called more than once
	listener  *expect.Listener
	conntrack conntrack
	publish   func(control.Event)
	// find returns the control connection with that original tuple, if an engine tracks it.
	find func(expect.Tuple) (queue uint16, f engine.Flow, ok bool)
	// warn logs; warned is when it did.
	warn   func(message string, args ...any)
	warned time.Time

	mu      sync.Mutex
	opened  map[place]*opened
	evicted map[expect.Tuple]*opened // by master, its expectation that the kernel removed last
	// controls has the control connections; true: reported as closed.
	controls map[expect.Tuple]bool
	ended    map[expect.Tuple]time.Time // when conntrack removed the connection; kept for settleTime
	expiry   time.Duration              // timeout of the expectation that was installed last
	lost     uint64                     // times that events were lost
	unsure   bool                       // events were lost since the last sweep
}

// conntrack has the methods of expect.Client that outcomes uses.
type conntrack interface {
	Expected(expect.Expectation) (time.Duration, error)
	Lookup(expect.Tuple) (*expect.Master, expect.Direction, error)
	Close() error
}

// place identifies an expectation.
type place struct {
	master expect.Tuple
	at     netip.AddrPort
}

// opened is an expected data connection.
type opened struct {
	event    control.Event // its announcement
	from     netip.Addr    // address of the side that connects
	deadline time.Time     // when the expectation expires
	removed  time.Time     // when conntrack removed the expectation; zero before
	reason   string        // why, one of control.Expiries
}

// eventsSysctl is 0 where conntrack's events are turned off.
const eventsSysctl = "/proc/sys/net/netfilter/nf_conntrack_events"

// openOutcomes subscribes to conntrack's events.
func openOutcomes() (*outcomes, error) {
	if text, err := os.ReadFile(eventsSysctl); err == nil && strings.TrimSpace(string(text)) == "0" {
		return nil, errors.New("the sysctl net.netfilter.nf_conntrack_events is 0: set it to 2 and restart the daemon")
	}
	client, err := expect.Dial()
	if err != nil {
		return nil, err
	}
	o := newOutcomes(client)
	if o.listener, err = expect.Listen(); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	o.close = sync.OnceValue(func() error { return errors.Join(o.listener.Close(), o.conntrack.Close()) })
	return o, nil
}

func newOutcomes(c conntrack) *outcomes {
	return &outcomes{
		conntrack: c, expiry: defaultExpiry,
		opened: make(map[place]*opened), evicted: make(map[expect.Tuple]*opened), controls: make(map[expect.Tuple]bool),
		ended: make(map[expect.Tuple]time.Time),
	}
}

// String implements task.
func (o *outcomes) String() string { return "outcomes" }

// Run reports outcomes until ctx is done, and then closes o.
func (o *outcomes) Run(ctx context.Context) error {
	var received sync.WaitGroup
	received.Go(o.receive)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var poll time.Time
	for {
		select {
		case now := <-tick.C:
			o.sweep(now)
			if begin := time.Now(); begin.After(poll) {
				o.poll()
				poll = begin.Add(max(pollEvery, pollShare*time.Since(begin)))
			}
		case <-ctx.Done():
			err := o.close()
			received.Wait()
			return err
		}
	}
}

// announced records an expectation that an engine has installed. It may be called from any goroutine.
func (o *outcomes) announced(ev *engine.Event, report control.Event) {
	dir := expect.Original
	if ev.Verb.IsReply() {
		dir = expect.Reply
	}
	at := place{ev.Master.Tuples[expect.Original], ev.Expected}
	x := &opened{event: report, from: ev.Master.Tuples[dir.Other()].Src.Addr()}
	o.mu.Lock()
	defer o.mu.Unlock()
	if before := o.opened[at]; before != nil {
		if before.removed.IsZero() || before.reason == control.ExpiredDeleted {
			before.reason = control.ExpiredReplaced
		}
		o.expired(at, before)
	}
	if len(o.opened) >= maxOpened {
		o.lost++
		return
	}
	x.deadline = report.Time.Add(o.expiry)
	o.opened[at] = x
}

// receive handles conntrack's events until the listener is closed.
func (o *outcomes) receive() {
	for {
		ev, err := o.listener.Receive()
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil: // malformed ones count as lost
			o.mu.Lock()
			o.lost++
			o.unsure = true
			o.mu.Unlock()
		default:
			o.take(ev, time.Now())
		}
	}
}

// take handles one of conntrack's events.
func (o *outcomes) take(ev expect.Event, now time.Time) {
	switch ev.Kind {
	case expect.ExpectationNew:
		o.installed(ev, now)
	case expect.ExpectationDestroyed:
		o.removed(ev, now)
	case expect.Related:
		o.used(ev, now)
	case expect.Destroyed:
		if o.destroyed(ev.Tuples[expect.Original], now) {
			o.closed(ev.Tuples[expect.Original])
		}
	}
}

// installed records when a new expectation expires, and which one it has replaced.
func (o *outcomes) installed(ev expect.Event, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.expiry = time.Duration(ev.Left) * time.Second
	if x := o.opened[place{ev.Master, ev.Expected.Dst}]; x != nil {
		x.deadline, x.removed = now.Add(o.expiry), time.Time{}
	}
	if before, ok := o.evicted[ev.Master]; ok {
		if now.Sub(before.removed) < replaceTime {
			before.reason = control.ExpiredReplaced
		}
		delete(o.evicted, ev.Master)
	}
}

// removed records that conntrack has removed an expectation. The connection that used it may still be
// in the filter, so the outcome is known later.
func (o *outcomes) removed(ev expect.Event, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x := o.opened[place{ev.Master, ev.Expected.Dst}]
	if x == nil {
		return
	}
	x.removed = now
	_, ended := o.ended[ev.Master]
	switch {
	case ended:
		x.reason = control.ExpiredClosed
	case ev.Port != 0:
		x.reason = control.ExpiredDeleted
	case ev.Left == 0:
		x.reason = control.ExpiredTimeout
	default:
		x.reason = control.ExpiredDropped
		o.evicted[ev.Master] = x
	}
}

// used reports an expected connection, which has passed the filter.
func (o *outcomes) used(ev expect.Event, now time.Time) {
	at := place{ev.Master, ev.Tuples[expect.Original].Dst}
	o.mu.Lock()
	x := o.opened[at]
	if x != nil {
		o.forget(at, x)
	}
	o.mu.Unlock()
	var report control.Event
	if x != nil {
		report = x.event
	} else { // expected by an earlier daemon
		queue, f, ok := o.find(ev.Master)
		if !ok {
			return
		}
		report = control.Event{Queue: queue, Client: f.Master().Client(), Server: f.Master().Server(), Expected: at.at}
	}
	report.Time, report.Kind, report.From = now, control.KindUsed, ev.Tuples[expect.Original].Src
	o.publish(report)
}

// forget removes an expectation. The caller holds o.mu.
func (o *outcomes) forget(at place, x *opened) {
	delete(o.opened, at)
	if o.evicted[at.master] == x {
		delete(o.evicted, at.master)
	}
}

// expired reports an expectation whose connection did not arrive. The caller holds o.mu.
func (o *outcomes) expired(at place, x *opened) {
	o.forget(at, x)
	report := x.event
	report.Time, report.Kind, report.Reason = time.Now(), control.KindExpired, x.reason
	switch x.reason {
	case control.ExpiredTimeout:
		report.Why = fmt.Sprintf("no data connection came within %.0f s", x.deadline.Sub(x.event.Time).Seconds())
	case control.ExpiredDropped:
		report.Why = "the data connection came, and a filter on this host dropped it: run nfq-ftphelper doctor"
	case control.ExpiredReplaced:
		report.Why = "no data connection came before the next one was announced"
	case control.ExpiredClosed:
		report.Why = "no data connection came before the control connection closed"
	case control.ExpiredDeleted:
		report.Why = "another program removed the expectation"
	}
	o.publish(report)
}

// tracked records a control connection. It may be called from any goroutine.
func (o *outcomes) tracked(ev *engine.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := ev.Master.Tuples[expect.Original]
	if reported := o.controls[t]; !reported && len(o.controls) < maxOpened {
		o.controls[t] = false
	} // beyond that, a connection is reported when conntrack removes it
}

// destroyed records that conntrack has removed a connection, and returns true if that has to be reported.
// The kernel removes the connection's expectations next.
func (o *outcomes) destroyed(t expect.Tuple, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.ended) < maxOpened {
		o.ended[t] = now
	}
	reported := o.controls[t]
	delete(o.controls, t)
	return !reported
}

// poll reports control connections that are closing. Conntrack keeps their entries for minutes, and events
// of the TCP state would cost time for every connection of this host.
func (o *outcomes) poll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for t := range o.controls {
		o.mu.Unlock()
		m, _, err := o.conntrack.Lookup(t)
		over := errors.Is(err, expect.ErrNoEntry)
		o.mu.Lock()
		switch reported, ok := o.controls[t]; {
		case !ok || !over && (err != nil || !m.Closing):
		case reported && over: // the event was lost
			delete(o.controls, t)
		case !reported:
			o.controls[t] = true
			o.mu.Unlock()
			o.closed(t)
			o.mu.Lock()
		}
	}
}

// closed reports a connection as closed, if it is a control connection.
func (o *outcomes) closed(t expect.Tuple) {
	queue, f, ok := o.find(t)
	if !ok {
		return
	}
	o.publish(control.Event{
		Time: time.Now(), Queue: queue, Kind: control.KindClosed, Client: f.Master().Client(), Server: f.Master().Server(),
		Transfers: f.Expected, Refused: f.Refused,
	})
}

// sweep reports the expectations that are over. The kernel removes an expired expectation only when it
// looks at it, so there may be no event. After lost events, sweep checks all expectations.
func (o *outcomes) sweep(now time.Time) {
	type candidate struct {
		at place
		x  *opened
	}
	var all []candidate
	o.mu.Lock()
	unsure, seen := o.unsure, 0
	o.unsure = false
	for at, x := range o.opened {
		if unsure || now.After(x.deadline.Add(settleTime)) || !x.removed.IsZero() && now.Sub(x.removed) > settleTime {
			all = append(all, candidate{at, x})
		}
		if seen++; seen%sweepAtOnce == 0 {
			o.mu.Unlock()
			o.mu.Lock()
		}
	}
	maps.DeleteFunc(o.ended, func(_ expect.Tuple, at time.Time) bool { return now.Sub(at) > settleTime })
	o.mu.Unlock()

	unknown := uint64(0)
	for _, d := range all {
		left, err := o.conntrack.Expected(expect.Expectation{Master: d.at.master, Src: d.x.from, Dst: d.at.at})
		o.mu.Lock()
		switch {
		case o.opened[d.at] != d.x: // used meanwhile
		case err == nil && left > 0:
			d.x.deadline, d.x.removed = now.Add(left), time.Time{}
		case unsure:
			o.forget(d.at, d.x)
			unknown++
		default:
			if d.x.removed.IsZero() {
				d.x.reason = control.ExpiredTimeout
			}
			o.expired(d.at, d.x)
		}
		o.mu.Unlock()
	}
	if unsure {
		o.rebuilt(now, unknown)
	}
}

// rebuilt reports that events were lost, and the number of expectations whose outcome is unknown.
func (o *outcomes) rebuilt(now time.Time, unknown uint64) {
	why := fmt.Sprintf("conntrack's events came faster than they were read: the outcome of %d data connections is unknown", unknown)
	o.publish(control.Event{Time: now, Kind: control.KindMissed, Missed: unknown, Why: why})
	if now.Sub(o.warned) < warnEvery {
		return
	}
	o.warned = now
	o.warn("conntrack's events came faster than they were read: some events used, expired and closed are missing", "times", o.losses())
}

// losses returns the number of times that events were lost.
func (o *outcomes) losses() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lost
}
