package control

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxFollowers is how many may follow the events at the same time.
	maxFollowers = 16
	// followerBuffer is how many events may wait for one follower.
	followerBuffer = 1024
)

// ErrFollowers is returned where too many follow the events already.
var ErrFollowers = fmt.Errorf("%d programs follow the events already: stop one of them", maxFollowers)

// Bus hands events to those who follow them, and keeps the last ones. It never waits for a follower:
// one that is too slow misses events, and gets their number. The zero Bus has no followers.
type Bus struct {
	mu        sync.Mutex
	followers []*Follower
	backlog   ring
	refusals  ring
}

// How many events are kept, and how many of those that say why something was not opened.
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

// Follow adds a follower, which has to be closed; it begins with those events that are kept and
// happened at since or later. It returns ErrFollowers if there are too many.
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
	next    int    // the place of the next one, once there is no more room
	dropped uint64 // to make room
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

// since returns a copy of the events that happened then or later, oldest first.
func (r *ring) since(begin time.Time) []Event {
	var kept []Event
	for i := range r.events {
		if ev := &r.events[(r.next+i)%len(r.events)]; !ev.Time.Before(begin) {
			kept = append(kept, *ev)
		}
	}
	return kept
}

// Follower is one who follows the events of a Bus.
type Follower struct {
	bus     *Bus
	backlog []Event
	events  chan Event
	missed  atomic.Uint64 // after all that is in events
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

// Events are those that happen from Follow on. Who does not take them in time misses some: as
// many as the next one's Missed says, or Missed where there is none yet.
func (f *Follower) Events() <-chan Event { return f.events }

// Missed returns how many events have been missed since the last one that is in Events, and
// forgets that.
func (f *Follower) Missed() uint64 { return f.missed.Swap(0) }

// Close ends following.
func (f *Follower) Close() {
	f.bus.mu.Lock()
	defer f.bus.mu.Unlock()
	f.bus.followers = slices.DeleteFunc(f.bus.followers, func(other *Follower) bool { return other == f })
}
