// Package top shows what a daemon does while it does it: a screen of its control connections, the
// busiest first, with rates, and what has happened to one of them.
package top

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
)

const (
	// every is how often the daemon is asked, seldom how often at least. In between, the daemon may
	// spend one part in share of the time on answering.
	every  = time.Second
	seldom = 10 * time.Second
	share  = 10
	// patience is how long it may take to answer.
	patience = 5 * time.Second
	// gather is for how long events are collected before they are shown.
	gather = 100 * time.Millisecond
	// maxGather is how many are collected at most.
	maxGather = 4096
)

// Run shows the daemon that client asks on a terminal, until the user or ctx ends it. It
// returns an error if there is no daemon at first; one that goes away is waited for.
func Run(ctx context.Context, client *control.Client, in io.Reader, out io.Writer) error {
	client.Timeout = patience
	version, err := client.Version(ctx)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	p := tea.NewProgram(newModel(version.Version), tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out))
	go poll(ctx, client, p.Send)
	go follow(ctx, client, p.Send)
	if _, err := p.Run(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("show the screen: %w", err)
	}
	return nil
}

// answer is what the daemon says of itself at a time.
type answer struct {
	at       time.Time
	counters counters
	flows    control.Flows
	err      error
}

// poll asks the daemon again and again.
func poll(ctx context.Context, client *control.Client, send func(tea.Msg)) {
	for ctx.Err() == nil {
		begin := time.Now()
		a := answer{at: begin}
		a.err = client.Metrics(ctx, func(body io.Reader) (err error) {
			a.counters, err = readCounters(body)
			return err
		})
		if a.err == nil {
			a.flows, a.err = client.Flows(ctx)
		}
		send(a)
		pause := every
		if a.err == nil {
			pause = min(max(every, (share-1)*time.Since(begin)), seldom)
		}
		wait(ctx, pause)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// happened are events, oldest first.
type happened []control.Event

// follow follows the daemon's events, with those that it has kept, and begins anew when it has stopped.
func follow(ctx context.Context, client *control.Client, send func(tea.Msg)) {
	events := make(chan control.Event, maxGather)
	go func() {
		since := time.Unix(0, 0)
		for ctx.Err() == nil {
			// The reason why there are none is poll's to show.
			_ = client.Events(ctx, control.EventsQuery{Since: since}, func() {}, func(line []byte) error {
				var ev control.Event
				if err := json.Unmarshal(line, &ev); err != nil {
					return err
				}
				if ev.Time.After(since) {
					since = ev.Time.Add(1)
				}
				select {
				case events <- ev:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			wait(ctx, every)
		}
		close(events)
	}()
	for ev := range events {
		batch := happened{ev}
		wait(ctx, gather)
		for range len(events) {
			if ev, ok := <-events; ok {
				batch = append(batch, ev)
			}
		}
		send(batch)
	}
}

// ErrNoTerminal is returned where there is none to show anything on.
var ErrNoTerminal = errors.New("top needs a terminal: use \"nfq-ftphelper flows\" or \"nfq-ftphelper flows --watch\" here")
