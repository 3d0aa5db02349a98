package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxConns is the number of connections of a listener at the same time.
	maxConns = 64
	// silentTime is the time without a request after which a connection is closed for a new one.
	silentTime = 100 * time.Millisecond
	// maxHeader is the length of the longest request in bytes; net/http allows 4 KiB more.
	maxHeader = 4 << 10
	// readTimeout is the longest time for receiving a request, writeTimeout for sending the answer.
	readTimeout  = 5 * time.Second
	writeTimeout = 30 * time.Second
	// idleTimeout is the longest time between two requests of a connection.
	idleTimeout = 30 * time.Second
	// closeTimeout is the longest time for which Close waits for answers.
	closeTimeout = time.Second
)

// Server serves a listener.
type Server struct {
	http    http.Server
	stop    context.CancelFunc
	stopped chan struct{}
}

// Serve answers requests at l with h until the server is closed. On a Unix socket it serves only root and
// this process's user. An error is logged.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{stop: stop, stopped: make(chan struct{})}
	s.http = http.Server{
		Handler:           screen(h),
		MaxHeaderBytes:    maxHeader,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		// Without this, OPTIONS would be answered before screen.
		DisableGeneralOptionsHandler: true,

		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	go func() {
		defer close(s.stopped)
		err := s.http.Serve(&listener{Listener: l, done: ctx.Done()})
		if ctx.Err() == nil {
			log.Error("requests are not answered any more", "address", l.Addr(), "why", err)
		}
	}()
	return s
}

// Close stops serving. Answers under way have closeTimeout to end.
func (s *Server) Close() error {
	s.stop()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close()
	}
	<-s.stopped
	return err
}

// listener limits the number of connections. For one more, it closes the oldest connection on which no
// answer was given for silentTime, so that silent or slow clients do not block others. If there is none, the
// new connection waits.
type listener struct {
	net.Listener
	done <-chan struct{}

	mu    sync.Mutex
	conns []*conn // oldest first
}

func (l *listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: accepted, listener: l}
	for !l.add(c) {
		select {
		case <-time.After(silentTime / 10):
		case <-l.done:
			return nil, errors.Join(net.ErrClosed, accepted.Close())
		}
	}
	return c, nil
}

// add reports whether there is room for a connection.
func (l *listener) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= maxConns {
		i := slices.IndexFunc(l.conns, func(c *conn) bool { return !c.answered && time.Since(c.since) > silentTime })
		if i < 0 {
			return false
		}
		_ = l.conns[i].Conn.Close() // its server closes it again
		l.conns = slices.Delete(l.conns, i, i+1)
	}
	c.since = time.Now()
	l.conns = append(l.conns, c)
	return true
}

func (l *listener) remove(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = slices.DeleteFunc(l.conns, func(other *conn) bool { return other == c })
}

type connKey struct{}

// conn is a connection to a server.
type conn struct {
	net.Conn
	listener *listener
	arriving atomic.Bool // a request has started to arrive, and is not being answered yet

	// Under the listener's mu.
	answered bool      // a request is being answered
	since    time.Time // when that began, or the last answer ended
}

// answering records that the answer to a request begins or has ended.
func (c *conn) answering(begins bool) {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.answered, c.since = begins, time.Now()
}

func (c *conn) Close() error {
	c.listener.remove(c)
	return c.Conn.Close()
}

// Read answers 408 to a client that is too slow, which net/http does not.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.arriving.Store(true)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && c.arriving.Swap(false) {
		const body = `{"error":"the request took too long to arrive"}` + "\n"
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = fmt.Fprintf(c.Conn, "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
	}
	return n, err
}

// rejectPeer returns an error if the peer of a Unix socket is neither root nor this user.
func (c *conn) rejectPeer() error {
	local, ok := c.Conn.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := local.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d is not permitted: only root and the daemon's own user are", peer.Uid)
	}
	return nil
}

// screen passes on only requests that are well-formed and permitted.
func screen(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(connKey{}).(*conn)
		c.arriving.Store(false)
		c.answering(true)
		defer c.answering(false)
		switch err := c.rejectPeer(); {
		case err != nil:
			WriteError(w, http.StatusForbidden, err)
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", http.MethodGet)
			WriteError(w, http.StatusMethodNotAllowed, fmt.Errorf("the method %.20q is not served: use GET", r.Method))
		case r.ContentLength != 0:
			w.Header().Set("Connection", "close")
			WriteError(w, http.StatusBadRequest, errors.New("a request has no body here"))
		default:
			h.ServeHTTP(w, r)
		}
	})
}
