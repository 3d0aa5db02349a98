package control

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxFollowers is the number of followers at the same time.
	maxFollowers = 16
	// followerBuffer is the number of events that wait for one follower.
	followerBuffer = 1024
)

// ErrFollowers is returned where maxFollowers follow the events already.
var ErrFollowers = fmt.Errorf("%d programs follow the events already: stop one of them", maxFollowers)

// Bus hands events to followers, and keeps the last events. It never waits for a follower: a slow one
// misses events, and gets their number. The zero Bus has no followers.
type Bus struct {
	mu        sync.Mutex
	followers []*Follower
	backlog   ring
	refusals  ring
}

// Numbers of events that are kept: of all, and of those about endpoints that were not opened.
const (
	maxBacklog  = 4096
	maxRefusals = 10
)

// Publish hands an event to every follower. It may be called from any goroutine.
func (b *Bus) Publish(ev Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.backlog.add(&ev, maxBacklog)
	if ev.Kind == "refused" || ev.Kind == "failed" {
		b.refusals.add(&ev, maxRefusals)
	}
	for _, f := range b.followers {
		f.publish(ev)
	}
}

// Refusals returns the last events about endpoints that were not opened, oldest first.
func (b *Bus) Refusals() []Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refusals.since(time.Time{})
}

// Follow adds a follower, which has to be closed. It starts with the kept events that happened at since or
// later. It returns ErrFollowers if there are too many.
func (b *Bus) Follow(since time.Time) (*Follower, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.followers) >= maxFollowers {
		return nil, ErrFollowers
	}
	f := &Follower{bus: b, events: make(chan Event, followerBuffer), backlog: b.backlog.since(since)}
	if b.backlog.dropped > 0 && since.Before(b.backlog.oldest().Time) {
		older := Event{Time: since, Kind: KindMissed, Why: fmt.Sprintf("older events are not kept: the daemon keeps the last %d", maxBacklog)}
		f.backlog = slices.Insert(f.backlog, 0, older)
	}
	b.followers = append(b.followers, f)
	return f, nil
}

// ring keeps the last events.
type ring struct {
	events  []Event
	next    int    // place of the next event, once the ring is full
	dropped uint64 // events overwritten
}

func (r *ring) add(ev *Event, room int) {
	if len(r.events) < room {
		r.events = append(r.events, *ev)
		return
	}
	r.events[r.next] = *ev
	r.next = (r.next + 1) % room
	r.dropped++
}

func (r *ring) oldest() *Event { return &r.events[r.next] }

// since returns a copy of the events that happened at begin or later, oldest first.
func (r *ring) since(begin time.Time) []Event {
	var kept []Event
	for i := range r.events {
		if ev := &r.events[(r.next+i)%len(r.events)]; !ev.Time.Before(begin) {
			kept = append(kept, *ev)
		}
	}
	return kept
}

// Follower receives the events of a Bus.
type Follower struct {
	bus     *Bus
	backlog []Event
	events  chan Event
	missed  atomic.Uint64 // events missed after the last one in events
}

// Backlog returns the events that happened before Follow, oldest first.
func (f *Follower) Backlog() []Event { return f.backlog }

func (f *Follower) publish(ev Event) {
	if f.missed.Load() > 0 {
		ev.Missed = f.missed.Swap(0)
	}
	select {
	case f.events <- ev:
	default:
		f.missed.Add(ev.Missed + 1)
	}
}

// Events returns the events that happen from Follow on. A slow reader misses some: as many as the next
// event's Missed says, or Missed returns while there is no next event.
func (f *Follower) Events() <-chan Event { return f.events }

// Missed returns the number of events missed since the last one in Events, and resets it.
func (f *Follower) Missed() uint64 { return f.missed.Swap(0) }

// Close removes the follower from its Bus.
func (f *Follower) Close() {
	f.bus.mu.Lock()
	defer f.bus.mu.Unlock()
	f.bus.followers = slices.DeleteFunc(f.bus.followers, func(other *Follower) bool { return other == f })
}
