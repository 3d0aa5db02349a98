package control

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	// maxFollowers is how many may follow the events at the same time.
	maxFollowers = 16
	// followerBuffer is how many events may wait for one follower.
	followerBuffer = 1024
)

// ErrFollowers is returned where too many follow the events already.
var ErrFollowers = fmt.Errorf("%d programs follow the events already: stop one of them", maxFollowers)

// Bus hands events to those who follow them. It never waits for one: who is too slow misses
// events, and is told how many. The zero Bus has no followers.
type Bus struct {
	mu        sync.Mutex
	followers atomic.Pointer[[]*Follower] // nil for none; what it points to does not change
}

// Followed reports whether anybody follows. It costs next to nothing.
func (b *Bus) Followed() bool { return b.followers.Load() != nil }

// Publish hands an event to every follower. It may be called from any goroutine.
func (b *Bus) Publish(ev Event) {
	followers := b.followers.Load()
	if followers == nil {
		return
	}
	for _, f := range *followers {
		f.publish(ev)
	}
}

// Follow adds a follower, which has to be closed. It returns ErrFollowers if there are too many.
func (b *Bus) Follow() (f *Follower, err error) {
	b.change(func(all []*Follower) []*Follower {
		if len(all) >= maxFollowers {
			err = ErrFollowers
			return all
		}
		f = &Follower{bus: b, events: make(chan Event, followerBuffer)}
		return append(all, f)
	})
	return f, err
}

// change replaces the list of followers by what of makes of a copy.
func (b *Bus) change(of func([]*Follower) []*Follower) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*Follower
	if old := b.followers.Load(); old != nil {
		all = slices.Clone(*old)
	}
	if all = of(all); len(all) == 0 {
		b.followers.Store(nil)
	} else {
		b.followers.Store(&all)
	}
}

// Follower is one who follows the events of a Bus.
type Follower struct {
	bus    *Bus
	events chan Event
	missed atomic.Uint64 // behind all that is in events
}

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
	f.bus.change(func(all []*Follower) []*Follower {
		return slices.DeleteFunc(all, func(other *Follower) bool { return other == f })
	})
}
