package daemon

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
)

const (
	// repeatTime is the period after which repeated events are logged as a count.
	repeatTime = time.Minute
	// maxLines is the number of lines for one kind of event in a period. Further events are counted.
	maxLines = 60
	// maxRepeats is the number of counters in a period. Further events are counted without their client.
	maxRepeats = 100
)

// eventLog writes the events of all engines to the log. An event that repeats on a connection, or exceeds
// maxLines, is counted; the counts are logged once a period. At debug level every event has a line.
type eventLog struct {
	log    *slog.Logger
	opened atomic.Bool // a line at info level for each opened data connection (--log-opened)
	period time.Duration

	mu      sync.Mutex
	monitor bool
	began   time.Time // start of the period; zero for none
	timer   *time.Timer
	lines   map[engine.Kind]int
	counts  map[repeat]uint64
}

// repeat identifies a counter.
type repeat struct {
	kind   engine.Kind
	reason engine.Reason
	client netip.Addr // invalid: several clients, or unknown
}

func newEventLog(log *slog.Logger) *eventLog {
	return &eventLog{log: log, period: repeatTime, lines: make(map[engine.Kind]int), counts: make(map[repeat]uint64)}
}

// emit logs or counts an event. It may be called from any goroutine.
func (l *eventLog) emit(ev *engine.Event) {
	level := ev.Kind.Level()
	switch {
	case ev.Kind == engine.Expected && l.opened.Load():
		level = slog.LevelInfo
	case ev.Kind == engine.Expected, ev.Kind == engine.WouldOpen: // never counted
	case level >= slog.LevelInfo && l.repeated(ev):
		level = slog.LevelDebug
	}
	ev.Log(l.log, level)
}

// repeated counts an event and returns true, or returns false if the event is to have a line.
func (l *eventLog) repeated(ev *engine.Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.began.IsZero() {
		l.began = time.Now()
		l.timer = time.AfterFunc(l.period, l.flush)
	}
	if !ev.Again && l.lines[ev.Kind] < maxLines {
		l.lines[ev.Kind]++
		return false
	}
	r := repeat{kind: ev.Kind, reason: ev.Reason}
	if ev.Kind != engine.Unknown { // its source may be forged
		r.client = ev.Master.Client().Addr()
	}
	if _, ok := l.counts[r]; !ok && len(l.counts) >= maxRepeats {
		r.client = netip.Addr{}
	}
	l.counts[r]++
	l.monitor = ev.Monitor
	return true
}

// flush logs the counts and ends the period.
func (l *eventLog) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.began.IsZero() {
		return
	}
	l.timer.Stop()
	period := "minute"
	if took := max(time.Since(l.began).Round(time.Second), time.Second); took != time.Minute {
		period = took.String()
	}
	for _, r := range slices.SortedFunc(maps.Keys(l.counts), func(a, b repeat) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.reason, b.reason), a.client.Compare(b.client))
	}) {
		args := []any{"kind", r.kind, "count", l.counts[r]}
		if r.kind == engine.Refused {
			args = append(args, "reason", r.reason)
		}
		if r.client.IsValid() {
			args = append(args, "client_address", r.client)
		}
		if l.monitor {
			args = append(args, "monitor", true)
		}
		l.log.Log(context.Background(), r.kind.Level(), fmt.Sprintf("%s: %d more in the last %s", r.kind.Text(l.monitor), l.counts[r], period), args...)
	}
	l.began = time.Time{}
	clear(l.lines)
	clear(l.counts)
}
