package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// listen is a service manager: it sets the environment, and returns the messages it gets.
func listen(t *testing.T, watchdog time.Duration) *net.UnixConn {
	t.Helper()
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	must.Do(t, err)
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	if watchdog > 0 {
		t.Setenv("WATCHDOG_USEC", strconv.FormatInt(watchdog.Microseconds(), 10))
		t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	}
	return conn
}

func received(t *testing.T, conn *net.UnixConn, timeout time.Duration) (string, error) {
	t.Helper()
	must.Do(t, conn.SetReadDeadline(time.Now().Add(timeout)))
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	return string(b[:n]), err
}

func manager(t *testing.T) *Manager {
	t.Helper()
	m, err := FromEnvironment()
	must.Do(t, err)
	must.CloseAtEnd(t, m)
	return m
}

func monotonic(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	must.Do(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return now.Nano() / 1000
}

// TestLife sends all notifications of a daemon's life, each as one message.
func TestLife(t *testing.T) {
	conn := listen(t, 0)
	m := manager(t)
	before := monotonic(t)
	err := errors.Join(m.Ready("serves queue 7"), m.Reloading(), m.Ready("serves\nqueue 7"), m.Stopping())
	must.Do(t, err)
	for i, want := range []string{
		"READY=1\nSTATUS=serves queue 7",
		"RELOADING=1\nMONOTONIC_USEC=",
		"READY=1\nSTATUS=serves queue 7",
		"STOPPING=1\nSTATUS=stopping",
	} {
		got, err := received(t, conn, 10*time.Second)
		must.Do(t, err)
		if i == 1 {
			number, _ := strings.CutPrefix(got, want)
			at, err := strconv.ParseInt(number, 10, 64)
			if err != nil || at < before || at > monotonic(t) {
				t.Errorf("got %q after %d", got, before)
			}
			continue
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	m.Watch(t.Context(), func(context.Context) error { return errors.New("no watchdog is set") }, slog.New(slog.DiscardHandler))
}

// queue calls functions on one goroutine, as the one that serves a queue does.
type queue chan func()

func (q queue) Do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case q <- func() { f(); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done
	return nil
}

// TestWatchdog has a queue hang: the manager is notified in time, and only while the queue is served.
func TestWatchdog(t *testing.T) {
	const watchdog = 400 * time.Millisecond
	conn := listen(t, watchdog)
	m := manager(t)
	ctx, cancel := context.WithCancel(t.Context())
	queues := []queue{make(queue), make(queue)}
	for _, q := range queues {
		go func() {
			for f := range q {
				f()
			}
		}()
		defer close(q)
	}
	var answers atomic.Uint32
	answer := func(ctx context.Context) error {
		for i, q := range queues {
			if err := q.Do(ctx, func() { answers.Add(1) }); err != nil {
				return fmt.Errorf("queue %d: %w", i, err)
			}
		}
		return nil
	}
	var log strings.Builder
	done := make(chan struct{})
	go func() {
		m.Watch(ctx, answer, slog.New(slog.NewTextHandler(&log, nil)))
		close(done)
	}()
	alive := func() {
		t.Helper()
		for range 3 {
			if got, err := received(t, conn, watchdog); err != nil || got != "WATCHDOG=1" {
				t.Fatalf("got %q within the watchdog's time (%v), want WATCHDOG=1", got, err)
			}
		}
	}
	alive()
	if n := answers.Load(); n < 6 {
		t.Errorf("got notifications after %d answers of the queues, want at least 6", n)
	}

	hang, hangs := make(chan struct{}), make(chan struct{})
	queues[1] <- func() { close(hangs); <-hang }
	<-hangs
	// One more may have been on its way.
	if got, err := received(t, conn, watchdog/4); err == nil && got != "WATCHDOG=1" {
		t.Errorf("got %q, want WATCHDOG=1", got)
	}
	if got, err := received(t, conn, 2*watchdog); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("with a queue that hangs: got %q (%v), want nothing", got, err)
	}
	close(hang)
	alive()
	cancel()
	<-done
	if !strings.Contains(log.String(), "queue 1: context deadline exceeded") {
		t.Errorf("got the log\n%s", &log)
	}
}

// TestEnvironment calls FromEnvironment with several environments.
func TestEnvironment(t *testing.T) {
	t.Run("no manager", func(t *testing.T) {
		t.Setenv("NOTIFY_SOCKET", "")
		t.Setenv("WATCHDOG_USEC", "1000")
		m := manager(t)
		must.Do(t, errors.Join(m.Ready("ready"), m.Reloading(), m.Stopping()))
		m.Watch(t.Context(), func(context.Context) error { t.Error("got a call without a watchdog"); return nil }, slog.New(slog.DiscardHandler))
	})
	t.Run("watchdog of another process", func(t *testing.T) {
		listen(t, time.Second)
		t.Setenv("WATCHDOG_PID", "1")
		if m := manager(t); m.watchdog != 0 {
			t.Errorf("got watchdog time %v, want 0", m.watchdog)
		}
	})
	t.Run("wrong time", func(t *testing.T) {
		listen(t, time.Second)
		for _, text := range []string{"0", "-1", "soon", "9223372036854775807"} {
			t.Setenv("WATCHDOG_USEC", text)
			if _, err := FromEnvironment(); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("WATCHDOG_USEC=%s: got %v", text, err)
			}
		}
	})
	t.Run("no socket", func(t *testing.T) {
		t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
		if _, err := FromEnvironment(); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	t.Run("abstract", func(t *testing.T) {
		name := fmt.Sprintf("@notify-test-%d", os.Getpid())
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		must.Do(t, err)
		defer conn.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		must.Do(t, manager(t).Ready("ready"))
		if got, err := received(t, conn, 10*time.Second); err != nil || got != "READY=1\nSTATUS=ready" {
			t.Errorf("got %q (%v)", got, err)
		}
	})
}
