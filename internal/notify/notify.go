// Package notify reports the daemon's state to the service manager: sd_notify(3). Without a service manager it
// does nothing.
package notify

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/sdnotify"
	"golang.org/x/sys/unix"
)

// Manager is the service manager that has started the process. The methods of the zero Manager do nothing.
type Manager struct {
	socket   *sdnotify.Notifier
	watchdog time.Duration // the manager ends a process that does not notify it for so long; 0: never
}

// FromEnvironment returns the manager that NOTIFY_SOCKET names, or the zero Manager. It returns an error if the
// manager cannot be reached, or if WATCHDOG_USEC is malformed.
func FromEnvironment() (*Manager, error) {
	name := os.Getenv(sdnotify.Socket)
	if name == "" {
		return &Manager{}, nil
	}
	watchdog, err := watchdogTime()
	if err != nil {
		return nil, err
	}
	socket, err := sdnotify.Open(name)
	if err != nil {
		return nil, fmt.Errorf("the service manager can't be reached: %s=%s: %w", sdnotify.Socket, name, err)
	}
	return &Manager{socket, watchdog}, nil
}

// watchdogTime returns WATCHDOG_USEC, or 0 if WATCHDOG_PID names another process: sd_watchdog_enabled(3).
func watchdogTime() (time.Duration, error) {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0, nil
	}
	text := os.Getenv("WATCHDOG_USEC")
	if text == "" {
		return 0, nil
	}
	microseconds, err := strconv.ParseUint(text, 10, 63)
	if err != nil || microseconds == 0 || microseconds > uint64(maxWatchdog/time.Microsecond) {
		return 0, fmt.Errorf("the service manager's WATCHDOG_USEC=%s is not a number of microseconds", text)
	}
	return time.Duration(microseconds) * time.Microsecond, nil
}

const maxWatchdog time.Duration = 1<<63 - 1

// Ready reports that the daemon is ready, at the start or after Reloading. The status is a short line that
// "systemctl status" shows.
func (m *Manager) Ready(status string) error { return m.send(sdnotify.Ready, statusLine(status)) }

// Reloading reports that new settings are being applied, until Ready.
func (m *Manager) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("reading the monotonic clock: %w", err)
	}
	return m.send(sdnotify.Reloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// Stopping reports that the daemon is stopping.
func (m *Manager) Stopping() error { return m.send(sdnotify.Stopping, statusLine("stopping")) }

func statusLine(status string) string {
	return sdnotify.Statusf("%s", strings.ReplaceAll(status, "\n", " "))
}

func (m *Manager) send(assignments ...string) error {
	if err := m.socket.Notify(assignments...); err != nil {
		return fmt.Errorf("notify the service manager of %s: %w", assignments[0], err)
	}
	return nil
}

// Watch calls alive twice in each watchdog period, and notifies the manager whenever alive returns nil, until ctx
// is done. The context of alive has a timeout of a quarter of the period.
func (m *Manager) Watch(ctx context.Context, alive func(context.Context) error, log *slog.Logger) {
	if m.watchdog == 0 {
		return
	}
	period := m.watchdog / 2
	tick := time.NewTicker(max(period, 1))
	defer tick.Stop()
	for {
		if err := m.watch(ctx, alive, period/2); err != nil && ctx.Err() == nil {
			log.Error("watchdog not notified: the service manager will soon end the daemon", "why", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (m *Manager) watch(ctx context.Context, alive func(context.Context) error, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := alive(ctx); err != nil {
		return err
	}
	return m.send("WATCHDOG=1")
}

// Close ends the connection to the manager.
func (m *Manager) Close() error { return m.socket.Close() }
