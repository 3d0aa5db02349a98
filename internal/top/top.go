// Package top is a live screen of a daemon's control connections, the busiest first, with rates, and with the events
// of a selected one.
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
	// minPeriod and maxPeriod limit the time from one query of the daemon to the next, of which answering may
	// take 1/share.
	minPeriod = time.Second
	maxPeriod = 10 * time.Second
	share     = 10
	// patience is the longest time for an answer.
	patience = 5 * time.Second
	// batchTime is the time for which events are collected before they are shown, maxBatch their number.
	batchTime = 100 * time.Millisecond
	maxBatch  = 4096
)

// Run shows the daemon of client on a terminal, until the user or ctx ends it. It returns an error if no daemon
// answers at first; later it waits for one that has stopped.
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

// answer is the state of the daemon at one time.
type answer struct {
	at       time.Time
	counters counters
	flows    control.Flows
	err      error
}

// poll queries the daemon until ctx is done.
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
		pause := minPeriod
		if a.err == nil {
			pause = min(max(minPeriod, (share-1)*time.Since(begin)), maxPeriod)
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

// follow sends the daemon's events, kept ones included, and reconnects when the daemon has stopped.
func follow(ctx context.Context, client *control.Client, send func(tea.Msg)) {
	events := make(chan control.Event, maxBatch)
	go func() {
		since := time.Unix(0, 0)
		for ctx.Err() == nil {
			// poll shows the error.
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
			wait(ctx, minPeriod)
		}
		close(events)
	}()
	for ev := range events {
		batch := happened{ev}
		wait(ctx, batchTime)
		for range len(events) {
			if ev, ok := <-events; ok {
				batch = append(batch, ev)
			}
		}
		send(batch)
	}
}

// ErrNoTerminal is returned where input or output is not a terminal.
var ErrNoTerminal = errors.New("top needs a terminal: use \"nfq-ftphelper flows\" or \"nfq-ftphelper flows --watch\" here")
