package nfq

import (
	"context"
	"errors"
	"math/bits"
	"sync/atomic"
	"time"
)

// ErrNotServed is what Do returns when the queue is not served any more.
var ErrNotServed = errors.New("the queue is not served")

// job is a function that Do wants called.
type job struct {
	f     func()
	taken atomic.Bool // by the one who calls it, or by Do, which gives up
	done  chan struct{}
}

// Do calls f on the goroutine that serves the queue, between two packets: there it may use the
// handler. It waits for that; packets wait for f, but not for several of them, however many want
// one called. If ctx is done first, or the queue is not served any more (ErrNotServed), f is not
// called, and Do returns why. It may be called from any goroutine but that one.
func (q *Queue) Do(ctx context.Context, f func()) error {
	j := &job{f: f, done: make(chan struct{})}
	select {
	case q.jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-q.ended:
		return ErrNotServed
	}
	q.wake()
	var err error
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-q.ended:
		err = ErrNotServed
	}
	if j.taken.CompareAndSwap(false, true) {
		return err
	}
	<-j.done // it is being called
	return nil
}

// work does what has been asked for by Do, if anything was. What is asked for meanwhile comes with a
// message of its own, behind those that are there.
func (q *Queue) work() error {
	select {
	case j := <-q.jobs:
		if j.taken.CompareAndSwap(false, true) {
			j.f()
			close(j.done)
		}
	default:
		return nil
	}
	return q.give(q.verdicts[:0]) // the handler's deadline may be another one
}

// Durations counts how long something took: by powers of two, from 1024 ns on.
type Durations struct {
	// Counts has at i how many took less than 1024<<i ns, and not less than half of that but for the
	// first; the last one counts all that took longer.
	Counts [17]uint64
	// Sum is that of all.
	Sum time.Duration
}

func (d *Durations) add(t time.Duration) {
	d.Counts[min(bits.Len64(uint64(t)>>10), len(d.Counts)-1)]++
	d.Sum += t
}

// Handling returns how long it took to handle each packet, from its receipt to the verdict on it,
// or to its being held. It is to be called through Do.
func (q *Queue) Handling() Durations { return q.handling }
