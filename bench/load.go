package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Operation is what the load generator does over and over, on every connection.
type Operation string

// The operations.
const (
	// Noop is NOOP and its reply.
	Noop Operation = "noop"
	// Pasv is PASV and its reply, without a data connection.
	Pasv Operation = "pasv"
	// Transfer is PASV, a data connection, RETR, and all replies.
	Transfer Operation = "transfer"
)

// job is a job of the load generator.
type job struct {
	Operation   Operation
	Connections int
	// Count is the number of operations on each connection; if it is 0, operations start for Duration.
	Count    int
	Duration time.Duration
	// Length of the file of a transfer, in bytes.
	Length int64
	// Server is the address of the control connection. PASV must be answered with that address, unless
	// AnyAddress: then no helper rewrites it, and data connections go to Server.
	Server     netip.Addr
	AnyAddress bool
	// Patience is the longest time without progress on any connection.
	Patience time.Duration
}

// outcome is the outcome of a job. With an error, nothing else is set.
type outcome struct {
	Error string
	// Operations is their number; Elapsed is the time from the start of the first to the end of the last.
	Operations int
	Elapsed    time.Duration
	// Lines is the number of lines on the control connections, in both directions.
	Lines     int
	Latencies Latencies
}

// load runs the jobs that it reads from input, in the network namespace of the process. For each it writes an empty
// outcome when it has connected and logged in, waits for any JSON value, and writes the outcome at the end.
func load(input io.Reader, output io.Writer) error {
	runtime.LockOSThread()
	if err := allowManyFiles(); err != nil {
		return err
	}
	in, out := json.NewDecoder(input), json.NewEncoder(output)
	for {
		var j job
		if err := in.Decode(&j); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a job: %w", err)
		}
		wait := func() error {
			if err := out.Encode(outcome{}); err != nil {
				return err
			}
			var start any
			return in.Decode(&start)
		}
		o, err := do(j, wait)
		if err != nil {
			o = outcome{Error: err.Error()}
		}
		if err := out.Encode(o); err != nil {
			return fmt.Errorf("write what came of it: %w", err)
		}
	}
}

// client is one control connection of the load generator.
type client struct {
	fd      int
	data    int // data connection, or -1
	at      netip.AddrPort
	since   time.Time // of the operation that runs
	left    int       // operations still to do, if they are counted
	line    [maxLine]byte
	have    int
	bytes   int64 // received on the data connection
	state   state
	eof     bool // of the data connection
	closing bool // 226 was seen
}

// state is what a client waits for.
type state int

const (
	greeted    state = iota // 220
	loggedIn                // 230
	idle                    // nothing: it waits for the others
	nooped                  // 200
	passive                 // 227
	connecting              // the data connection
	receiving               // the file and 226
)

// generator does one job.
type generator struct {
	job
	epoll    int
	clients  []*client
	byFD     map[int]*client
	begin    time.Time
	waiting  int // clients that are not idle
	done     int
	lines    int
	last     time.Time
	recorder recorder
	scratch  []byte
}

func do(j job, wait func() error) (outcome, error) {
	g := &generator{job: j, byFD: make(map[int]*client), scratch: make([]byte, fileLength)}
	defer g.close()
	var err error
	if g.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return outcome{}, fmt.Errorf("make an epoll: %w", err)
	}
	if err := g.connect(); err != nil {
		return outcome{}, err
	}
	if err := wait(); err != nil {
		return outcome{}, err
	}
	g.lines = 0
	g.begin = time.Now()
	for _, c := range g.clients {
		if err := g.start(c, time.Now()); err != nil {
			return outcome{}, err
		}
	}
	if err := g.run(); err != nil {
		return outcome{}, err
	}
	return outcome{
		Operations: g.done,
		Elapsed:    g.last.Sub(g.begin),
		Lines:      g.lines,
		Latencies:  g.recorder.latencies(),
	}, nil
}

func (g *generator) close() {
	for _, c := range g.clients {
		unix.Close(c.fd)
		if c.data >= 0 {
			unix.Close(c.data)
		}
	}
	unix.Close(g.epoll)
}

// connect opens the control connections, a few at a time, and logs in.
func (g *generator) connect() error {
	const atOnce = 100
	for i := range g.Connections {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("make a socket: %w", err)
		}
		c := &client{fd: fd, data: -1, left: g.Count}
		g.clients = append(g.clients, c)
		if err := errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.Connect(fd, &unix.SockaddrInet4{Port: controlPort, Addr: g.Server.As4()}),
			unix.SetNonblock(fd, true),
			g.watch(fd, c, unix.EPOLLIN),
		); err != nil {
			return fmt.Errorf("control connection %d to %s: %w", i+1, g.Server, err)
		}
		g.waiting++
		if (i+1)%atOnce == 0 || i+1 == g.Connections {
			if err := g.run(); err != nil {
				return fmt.Errorf("log in: %w", err)
			}
		}
	}
	return nil
}

func (g *generator) watch(fd int, c *client, events uint32) error {
	g.byFD[fd] = c
	return unix.EpollCtl(g.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// run handles events until all clients are idle.
func (g *generator) run() error {
	var events [256]unix.EpollEvent
	for g.waiting > 0 {
		n, err := unix.EpollWait(g.epoll, events[:], int(g.Patience/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for events: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("nothing has happened for %s; %d of %d connections wait, the first one for %s",
				g.Patience, g.waiting, g.Connections, g.firstWaiting())
		}
		for _, e := range events[:n] {
			c, ok := g.byFD[int(e.Fd)]
			if !ok {
				continue
			}
			if int(e.Fd) == c.fd {
				err = g.readControl(c)
			} else {
				err = g.handleData(c)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *generator) firstWaiting() string {
	for _, c := range g.clients {
		switch c.state {
		case idle:
		case connecting:
			return fmt.Sprintf("a data connection to %s", c.at)
		case receiving:
			return fmt.Sprintf("the rest of a file (got %d of %d bytes)", c.bytes, g.Length)
		default:
			return "the answer to " + map[state]string{greeted: "connecting", loggedIn: "USER", nooped: "NOOP", passive: "PASV"}[c.state]
		}
	}
	return "nothing"
}

// start begins the next operation, at a time that the caller has just read.
func (g *generator) start(c *client, now time.Time) error {
	c.since = now
	g.waiting++
	if g.Operation == Noop {
		c.state = nooped
		return g.send(c, noopLine)
	}
	c.state = passive
	return g.send(c, pasvLine)
}

var (
	noopLine = []byte("NOOP\r\n")
	pasvLine = []byte("PASV\r\n")
	userLine = []byte("USER anonymous\r\n")
)

// finish ends an operation, and begins the next one unless the time is up.
func (g *generator) finish(c *client) error {
	now := time.Now()
	g.recorder.add(now.Sub(c.since))
	g.done++
	g.last = now
	g.waiting--
	c.state = idle
	if g.Count > 0 {
		if c.left--; c.left == 0 {
			return nil
		}
	} else if now.Sub(g.begin) >= g.Duration {
		return nil
	}
	return g.start(c, now)
}

func (g *generator) send(c *client, line []byte) error {
	g.lines++
	if _, err := unix.Write(c.fd, line); err != nil {
		return fmt.Errorf("send %q: %w", bytes.TrimSpace(line), err)
	}
	return nil
}

func (g *generator) readControl(c *client) error {
	n, err := unix.Read(c.fd, c.line[c.have:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control connection: %w", err)
	}
	if n == 0 {
		return errors.New("the server has closed the control connection")
	}
	c.have += n
	for {
		line, rest, found := bytes.Cut(c.line[:c.have], []byte("\r\n"))
		if !found {
			return nil
		}
		g.lines++
		if err := g.reply(c, line); err != nil {
			return err
		}
		c.have = copy(c.line[:], rest)
	}
}

// reply handles a line of the server.
func (g *generator) reply(c *client, line []byte) error {
	code, _, _ := bytes.Cut(line, []byte(" "))
	switch {
	case c.state == greeted && string(code) == "220":
		c.state = loggedIn
		return g.send(c, userLine)
	case c.state == loggedIn && string(code) == "230":
		c.state = idle
		g.waiting--
		return nil
	case c.state == nooped && string(code) == "200":
		return g.finish(c)
	case c.state == passive && string(code) == "227":
		return g.announced(c, line)
	case c.state == receiving && string(code) == "150":
		return nil
	case c.state == receiving && string(code) == "226":
		c.closing = true
		return g.received(c)
	}
	return fmt.Errorf("%q comes unexpected", line)
}

// announced takes the answer to PASV.
func (g *generator) announced(c *client, line []byte) error {
	at, err := parse227(line)
	if err != nil {
		return err
	}
	if g.AnyAddress {
		at = netip.AddrPortFrom(g.Server, at.Port())
	}
	if at.Addr() != g.Server {
		return fmt.Errorf("%q does not announce %s: it was not rewritten", line, g.Server)
	}
	c.at = at
	if g.Operation == Pasv {
		return g.finish(c)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	c.data, c.state, c.bytes, c.eof, c.closing = fd, connecting, 0, false, false
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("data connection to %s: %w", at, err)
	}
	return g.watch(fd, c, unix.EPOLLOUT)
}

// parse227 reads the address in an answer to PASV.
func parse227(line []byte) (netip.AddrPort, error) {
	_, rest, _ := bytes.Cut(line, []byte("("))
	inner, _, found := bytes.Cut(rest, []byte(")"))
	var numbers [6]byte
	i := 0
	for ; i < len(numbers) && found; i++ {
		var field []byte
		field, inner, _ = bytes.Cut(inner, []byte(","))
		n, err := strconv.ParseUint(string(field), 10, 8)
		if err != nil {
			break
		}
		numbers[i] = byte(n)
	}
	if i < len(numbers) || len(inner) > 0 {
		return netip.AddrPort{}, fmt.Errorf("%q has no address", line)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(numbers[:4])), uint16(numbers[4])<<8|uint16(numbers[5])), nil
}

// handleData goes on with a data connection.
func (g *generator) handleData(c *client) error {
	if c.state == connecting {
		code, err := unix.GetsockoptInt(c.data, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err == nil {
			err = unix.EpollCtl(g.epoll, unix.EPOLL_CTL_MOD, c.data, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(c.data)})
		}
		if err != nil {
			return fmt.Errorf("data connection to %s: %w", c.at, err)
		}
		c.state = receiving
		var line [40]byte
		return g.send(c, append(strconv.AppendInt(append(line[:0], "RETR "...), g.Length, 10), "\r\n"...))
	}
	// The kernel throws it away: to look at it would be the client's work, not the helper's.
	n, _, err := unix.Recvfrom(c.data, g.scratch, unix.MSG_TRUNC)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return fmt.Errorf("data connection to %s: %w", c.at, err)
	case n > 0:
		c.bytes += int64(n)
		return nil
	}
	c.eof = true
	delete(g.byFD, c.data)
	unix.Close(c.data)
	c.data = -1
	return g.received(c)
}

// received ends a transfer when the whole file and 226 have arrived.
func (g *generator) received(c *client) error {
	if !c.eof || !c.closing {
		return nil
	}
	if c.bytes != g.Length {
		return fmt.Errorf("%d bytes have come instead of %d", c.bytes, g.Length)
	}
	return g.finish(c)
}
