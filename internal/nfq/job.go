package nfq

import (
	"context"
	"errors"
	"math/bits"
	"sync/atomic"
	"time"
)

// ErrNotServed is returned by Do when the queue is not served any more.
var ErrNotServed = errors.New("the queue is not served")

// job is a function to be called between two packets.
type job struct {
	f     func()
	taken atomic.Bool // by runJob, or by Do when it gives up
	done  chan struct{}
}

// Do calls f on the goroutine that serves the queue, between two packets, where f may use the handler, and
// waits for f. Packets wait for one such function at most. If ctx is done first, or the queue is not served
// (ErrNotServed), f is not called and Do returns the error. It may be called from any goroutine but that one.
func (q *Queue) Do(ctx context.Context, f func()) error {
	j := &job{f: f, done: make(chan struct{})}
	select {
	case q.jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-q.ended:
		return ErrNotServed
	}
	q.interrupt()
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
	<-j.done // runJob has taken it
	return nil
}

// runJob runs one job of Do, if there is one. Each Do sends a message, which comes after those in the socket.
func (q *Queue) runJob() error {
	select {
	case j := <-q.jobs:
		if j.taken.CompareAndSwap(false, true) {
			j.f()
			close(j.done)
		}
	default:
		return nil
	}
	return q.queueVerdicts(q.verdicts[:0]) // the handler's deadline may have changed
}

// Durations is a histogram of durations, by powers of two from 1024 ns on.
type Durations struct {
	// Counts[i] is the number of durations below 1024<<i ns, and from half of that on for i > 0; the last
	// one has no upper bound.
	Counts [17]uint64
	// Sum is the sum of all durations.
	Sum time.Duration
}

func (d *Durations) add(t time.Duration) {
	d.Counts[min(bits.Len64(uint64(t)>>10), len(d.Counts)-1)]++
	d.Sum += t
}

// Handling returns the times from the receipt of a packet to its verdict, or until it was held. It has to be
// called through Do.
func (q *Queue) Handling() Durations { return q.handling }
