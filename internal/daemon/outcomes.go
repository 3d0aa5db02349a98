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
	// defaultExpiry is how long expectations are good, until the kernel has said otherwise.
	defaultExpiry = 300 * time.Second
	// settleTime is how long a removed expectation may wait for its connection to pass the filter.
	settleTime = 2 * time.Second
	// replaceTime is within which time of each other the kernel evicts an expectation and installs
	// the one that takes its place.
	replaceTime = 10 * time.Millisecond
	// sweepEvery is how often expectations are looked through for those that are over.
	sweepEvery = time.Second
	// sweepAtOnce is how many are looked at while an engine may have to wait.
	sweepAtOnce = 256
	// maxOpened is how many expectations, and how many control connections, are remembered.
	maxOpened = 1 << 16
	// pollEvery is how often conntrack is asked at most which control connections are closing, and
	// pollShare is the part of the time that this may take: one in so many.
	pollEvery = time.Second
	pollShare = 100
	// warnEvery is how often the log says at most that events were lost.
	warnEvery = time.Minute
	// findTime is how long the engines may take to find a connection.
	findTime = time.Second
)

// outcomes finds out what becomes of announced data connections and of control connections, from
// conntrack's events. The engines wait for it no longer than for a look into a map.
type outcomes struct {
	listener  *expect.Listener
	conntrack conntrack // sweep's
	publish   func(control.Event)
	// find returns the control connection with that original tuple, if an engine tracks it.
	find func(expect.Tuple) (queue uint16, f engine.Flow, ok bool)
	// warn logs; warned is when it did.
	warn   func(message string, args ...any)
	warned time.Time

	mu      sync.Mutex
	opened  map[place]*opened
	evicted map[expect.Tuple]*opened // by its master, the one that the kernel has removed last
	// controls are control connections, true if they have been reported as closed.
	controls map[expect.Tuple]bool
	ended    map[expect.Tuple]time.Time // when conntrack has removed it, for a while
	expiry   time.Duration              // of the expectation that was installed last
	lost     uint64                     // how often events came faster than they were read
	unsure   bool                       // they have since the last sweep
}

// conntrack is what outcomes ask of conntrack: an *expect.Client.
type conntrack interface {
	Expected(expect.Expectation) (time.Duration, error)
	Lookup(expect.Tuple) (*expect.Master, expect.Direction, error)
	Close() error
}

// place is what an expectation is known by.
type place struct {
	master expect.Tuple
	at     netip.AddrPort
}

// opened is a data connection that is expected.
type opened struct {
	event    control.Event // of its announcement
	from     netip.Addr    // the side that connects
	deadline time.Time     // when it expires
	removed  time.Time     // when conntrack has removed the expectation; zero before
	reason   string        // of that: one of control.Expiries
}

// eventsSysctl turns conntrack's events off if it is 0.
const eventsSysctl = "/proc/sys/net/netfilter/nf_conntrack_events"

// openOutcomes begins to receive conntrack's events. It has to be closed if there is no error.
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
	return o, nil
}

func newOutcomes(c conntrack) *outcomes {
	return &outcomes{
		conntrack: c, expiry: defaultExpiry,
		opened: make(map[place]*opened), evicted: make(map[expect.Tuple]*opened), controls: make(map[expect.Tuple]bool),
		ended: make(map[expect.Tuple]time.Time),
	}
}

// run reports outcomes until ctx is done. Then it closes o.
func (o *outcomes) run(ctx context.Context) error {
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

func (o *outcomes) close() error { return errors.Join(o.listener.Close(), o.conntrack.Close()) }

// announced takes note of an expectation that an engine has installed. It may be called from any
// goroutine.
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

// receive takes conntrack's events until the listener is closed.
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

// take takes one of conntrack's events.
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

// installed learns when an expectation expires, and which one it has taken the place of.
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

// removed learns that conntrack has removed an expectation. Why shows later: its connection may be
// on its way through the filter.
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

// used reports an expected connection that has passed the filter.
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
	} else { // an earlier daemon's
		queue, f, ok := o.find(ev.Master)
		if !ok {
			return
		}
		report = control.Event{Queue: queue, Client: f.Master().Client(), Server: f.Master().Server(), Expected: at.at}
	}
	report.Time, report.Kind, report.From = now, control.KindUsed, ev.Tuples[expect.Original].Src
	o.publish(report)
}

// forget removes what is known of an expectation. The caller has o.mu.
func (o *outcomes) forget(at place, x *opened) {
	delete(o.opened, at)
	if o.evicted[at.master] == x {
		delete(o.evicted, at.master)
	}
}

// expired reports an expectation whose connection did not come. The caller has o.mu.
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

// tracked takes note of a control connection. It may be called from any goroutine.
func (o *outcomes) tracked(ev *engine.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t := ev.Master.Tuples[expect.Original]; len(o.controls) < maxOpened {
		o.controls[t] = false
	} // without room, its end in conntrack is what is reported
}

// destroyed reports whether a connection that conntrack has removed has not been reported as closed.
// Its expectations are removed next.
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

// poll reports control connections that are closing: conntrack keeps them for minutes, and its events
// of that would cost every connection of this host.
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
		case reported && over: // and there was no event about it
			delete(o.controls, t)
		case !reported:
			o.controls[t] = true
			o.mu.Unlock()
			o.closed(t)
			o.mu.Lock()
		}
	}
}

// closed reports a control connection that has closed, if it is one.
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

// sweep reports the expectations that are over. Conntrack need not say so: an expired expectation may
// stay for long before the kernel removes it. After events have been lost, it goes through all.
func (o *outcomes) sweep(now time.Time) {
	type due struct {
		at place
		x  *opened
	}
	var all []due
	o.mu.Lock()
	unsure, seen := o.unsure, 0
	o.unsure = false
	for at, x := range o.opened {
		if unsure || now.After(x.deadline.Add(settleTime)) || !x.removed.IsZero() && now.Sub(x.removed) > settleTime {
			all = append(all, due{at, x})
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
		case o.opened[d.at] != d.x: // it was used meanwhile
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

// rebuilt says that events were lost, and what that means: of a number of expectations the outcome
// is not known.
func (o *outcomes) rebuilt(now time.Time, unknown uint64) {
	why := fmt.Sprintf("conntrack's events came faster than they were read: the outcome of %d data connections is unknown", unknown)
	o.publish(control.Event{Time: now, Kind: control.KindMissed, Missed: unknown, Why: why})
	if now.Sub(o.warned) < warnEvery {
		return
	}
	o.warned = now
	o.warn("conntrack's events came faster than they were read: some used, expired and closed are not reported", "times", o.losses())
}

// losses returns how often events were lost.
func (o *outcomes) losses() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lost
}
