// Package logqueue writes log lines in a separate goroutine, so that a blocked standard error does not block
// packets.
package logqueue

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	// capacity is the number of records that wait to be written; further ones are lost, and counted.
	capacity = 1024
	// patience is the longest time for which the end of the log waits.
	patience = time.Second
)

// queue is shared by all handlers of a log.
type queue struct {
	records chan record
	stop    chan struct{}
	lost    atomic.Uint64
}

type record struct {
	slog.Record
	to slog.Handler
}

// New returns a log whose records another goroutine hands to the handler in order, and a function that ends it:
// that writes the records logged before, for patience at the longest; later ones are discarded. The number of
// lost records is logged with the next record that is written. Values in a record must not change any more.
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

// write hands records on until the log has ended and no record is left.
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

// hand hands one record on. An error of its handler cannot be reported.
func (q *queue) hand(r record, to slog.Handler) {
	ctx := context.Background()
	_ = r.to.Handle(ctx, r.Record)
	if n := q.lost.Swap(0); n > 0 {
		lost := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines lost: they were not read as fast as they were written", 0)
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
