// Package logqueue is a log for which nobody waits: lines are handed to a goroutine that writes them,
// so that a reader of standard error who has stopped reading stops no packets.
package logqueue

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	// capacity is how many records wait to be written at most; those that find no room are lost, and counted.
	capacity = 1024
	// patience is for how long the end of the log is waited for.
	patience = time.Second
)

// queue is what all handlers of a log share.
type queue struct {
	records chan record
	stop    chan struct{}
	lost    atomic.Uint64
}

type record struct {
	slog.Record
	to slog.Handler
}

// New returns a log whose records another goroutine hands to the handler, in their order, and a
// function that ends it: what has been logged before is written then, unless that takes longer than
// a second; what is logged later is not. How many records have been lost is logged as soon as there is
// somebody who reads. What a record refers to must not change any more.
func New(to slog.Handler) (log *slog.Logger, end func()) {
	q := &queue{records: make(chan record, capacity), stop: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.write(to)
	}()
	return slog.New(handler{to, q}), func() {
		close(q.stop)
		select {
		case <-done:
		case <-time.After(patience):
		}
	}
}

// write hands records on until it is to stop, and none is left.
func (q *queue) write(to slog.Handler) {
	for {
		select {
		case r := <-q.records:
			q.hand(r, to)
		case <-q.stop:
			if len(q.records) == 0 {
				return
			}
		}
	}
}

// hand hands one record on. What its handler returns as an error has nowhere to go.
func (q *queue) hand(r record, to slog.Handler) {
	ctx := context.Background()
	_ = r.to.Handle(ctx, r.Record)
	if n := q.lost.Swap(0); n > 0 {
		lost := slog.NewRecord(time.Now(), slog.LevelWarn, "the log was not read as fast as it was written: lines are missing", 0)
		lost.Add("lines", n)
		_ = to.Handle(ctx, lost)
	}
}

// handler is a slog.Handler that queues records for another.
type handler struct {
	to slog.Handler
	*queue
}

func (h handler) Enabled(ctx context.Context, level slog.Level) bool { return h.to.Enabled(ctx, level) }

func (h handler) Handle(_ context.Context, r slog.Record) error {
	select {
	case h.records <- record{r.Clone(), h.to}:
	default:
		h.lost.Add(1)
	}
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.to.WithAttrs(attrs), h.queue}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.to.WithGroup(name), h.queue} }
