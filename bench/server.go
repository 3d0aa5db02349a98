package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// The FTP server has as little as the workloads need, in one thread: a greeting, USER,
// NOOP, PASV, RETR and QUIT. The name of a file is its length.

const (
	controlPort = 21
	// Passive ports are one range, so that rules can open it where there is no helper. Each session cycles through
	// its own ports, so that successive transfers differ.
	firstDataPort   = 20000
	portsPerSession = 4
	maxSessions     = 2048
	lastDataPort    = firstDataPort + maxSessions*portsPerSession - 1
	maxLine         = 512
)

// session is a control connection of the server.
type session struct {
	fd    int
	slot  int
	turn  int // index of its next port
	line  [maxLine]byte
	have  int   // bytes of line
	left  int64 // bytes of the file still to send
	data  int   // data connection, or -1
	ready bool  // a PASV was answered, and its port is not used yet
}

// server is the whole state. Everything is indexed by file descriptor.
type server struct {
	epoll     int
	control   int
	file      int    // what is sent, again and again
	address   string // as PASV's answer has it
	listeners [maxSessions * portsPerSession]int
	free      []int            // slots
	byFD      map[int]*session // of control connections, data connections and listeners that are waited for
}

// fileLength is the length of the piece of file that is sent again and again.
const fileLength = 1 << 20

// serve runs the server, in the network namespace of the process, until that is killed. Its
// answers to PASV have the address.
func serve(address netip.Addr) error {
	runtime.LockOSThread()
	if err := allowManyFiles(); err != nil {
		return err
	}
	s := &server{byFD: make(map[int]*session)}
	a := address.As4()
	s.address = fmt.Sprintf("%d,%d,%d,%d", a[0], a[1], a[2], a[3])
	if err := s.open(); err != nil {
		return err
	}
	fmt.Println("ready")
	var events [256]unix.EpollEvent
	for {
		n, err := unix.EpollWait(s.epoll, events[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for events: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			s.handle(int(e.Fd))
		}
	}
}

// manyFiles is enough for all listeners, sessions and data connections.
const manyFiles = maxSessions*(portsPerSession+2) + 100

// allowManyFiles makes room for thousands of sockets.
func allowManyFiles() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("getrlimit: %w", err)
	}
	limit.Cur, limit.Max = max(limit.Cur, manyFiles), max(limit.Max, manyFiles)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("%d open files are needed: raise the limit (ulimit -Hn) to that (%w)", manyFiles, err)
	}
	return nil
}

func (s *server) open() (err error) {
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("make an epoll: %w", err)
	}
	if s.file, err = unix.MemfdCreate("file", unix.MFD_CLOEXEC); err != nil {
		return fmt.Errorf("make a file: %w", err)
	}
	if _, err := unix.Pwrite(s.file, make([]byte, fileLength), 0); err != nil {
		return fmt.Errorf("fill the file: %w", err)
	}
	if s.control, err = listen(controlPort); err != nil {
		return err
	}
	for i := range s.listeners {
		if s.listeners[i], err = listen(firstDataPort + i); err != nil {
			return err
		}
	}
	for slot := range maxSessions {
		s.free = append(s.free, maxSessions-1-slot)
	}
	return s.watch(s.control, unix.EPOLLIN)
}

func listen(port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			// Accepted connections inherit it.
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Port: port}),
			unix.Listen(fd, maxSessions))
	}
	if err != nil {
		return 0, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return fd, nil
}

func (s *server) watch(fd int, events uint32) error {
	return unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

func (s *server) unwatch(fd int) {
	delete(s.byFD, fd)
	_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, fd, nil)
}

func (s *server) handle(fd int) {
	if fd == s.control {
		s.accept()
		return
	}
	t, ok := s.byFD[fd]
	switch {
	case !ok: // closed since the events were fetched
	case fd == t.fd:
		s.read(t)
	case fd == t.data:
		s.send(t)
	default:
		s.transfer(t)
	}
}

func (s *server) accept() {
	fd, _, err := unix.Accept4(s.control, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return
	}
	if len(s.free) == 0 {
		unix.Close(fd)
		return
	}
	last := len(s.free) - 1
	t := &session{fd: fd, slot: s.free[last], data: -1}
	s.free = s.free[:last]
	// Data connections left by a client that ended during a transfer.
	for turn := range portsPerSession {
		for {
			stale, _, err := unix.Accept4(s.listener(t, turn), unix.SOCK_CLOEXEC)
			if err != nil {
				break
			}
			unix.Close(stale)
		}
	}
	s.byFD[fd] = t
	if s.watch(fd, unix.EPOLLIN) != nil {
		s.end(t)
		return
	}
	s.reply(t, "220 ready\r\n")
}

func (s *server) listener(t *session, turn int) int {
	return s.listeners[t.slot*portsPerSession+turn]
}

func (s *server) reply(t *session, text string) {
	// The line is short and the client waits for it, so it fits.
	_, _ = unix.Write(t.fd, []byte(text))
}

func (s *server) read(t *session) {
	n, err := unix.Read(t.fd, t.line[t.have:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return
	}
	if err != nil || n == 0 {
		s.end(t)
		return
	}
	t.have += n
	for {
		line, rest, found := bytes.Cut(t.line[:t.have], []byte("\r\n"))
		if !found {
			break
		}
		if !s.command(t, line) {
			s.end(t)
			return
		}
		t.have = copy(t.line[:], rest)
	}
	if t.have == maxLine {
		s.end(t)
	}
}

// command runs a command, and returns false for the last one.
func (s *server) command(t *session, line []byte) bool {
	verb, argument, _ := bytes.Cut(line, []byte(" "))
	switch string(verb) {
	case "NOOP":
		s.reply(t, "200 done\r\n")
	case "PASV":
		t.turn = (t.turn + 1) % portsPerSession
		t.ready = true
		port := firstDataPort + t.slot*portsPerSession + t.turn
		var line [80]byte
		text := append(line[:0], "227 Entering Passive Mode ("...)
		text = append(text, s.address...)
		text = strconv.AppendInt(append(text, ','), int64(port>>8), 10)
		text = strconv.AppendInt(append(text, ','), int64(port&0xff), 10)
		_, _ = unix.Write(t.fd, append(text, ").\r\n"...))
	case "RETR":
		length, err := strconv.ParseInt(string(argument), 10, 64)
		if err != nil || length < 0 || !t.ready {
			s.reply(t, "550 PASV, and a length for a name\r\n")
			break
		}
		t.left, t.ready = length, false
		s.transfer(t)
	case "USER":
		s.reply(t, "230 welcome\r\n")
	case "QUIT":
		s.reply(t, "221 bye\r\n")
		return false
	default:
		s.reply(t, "500 what?\r\n")
	}
	return true
}

// transfer begins one as soon as the client has connected.
func (s *server) transfer(t *session) {
	listener := s.listener(t, t.turn)
	_, waited := s.byFD[listener]
	fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch {
	case err != nil && !waited:
		s.byFD[listener] = t
		_ = s.watch(listener, unix.EPOLLIN)
		return
	case err != nil:
		return
	case waited:
		s.unwatch(listener)
	}
	t.data = fd
	s.reply(t, "150 here it comes\r\n")
	s.send(t)
}

// send sends as much of the file as fits, and ends the transfer with its last byte.
func (s *server) send(t *session) {
	for t.left > 0 {
		var offset int64
		n, err := unix.Sendfile(t.data, s.file, &offset, int(min(t.left, fileLength)))
		if errors.Is(err, unix.EAGAIN) {
			if _, waits := s.byFD[t.data]; !waits {
				s.byFD[t.data] = t
				_ = s.watch(t.data, unix.EPOLLOUT)
			}
			return
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			s.closeData(t)
			s.reply(t, "426 the data connection broke\r\n")
			return
		}
		t.left -= int64(max(n, 0))
	}
	s.closeData(t)
	s.reply(t, "226 complete\r\n")
}

func (s *server) closeData(t *session) {
	delete(s.byFD, t.data)
	unix.Close(t.data) // which ends the watch, too
	t.data = -1
}

func (s *server) end(t *session) {
	if t.data >= 0 {
		s.closeData(t)
	}
	if listener := s.listener(t, t.turn); s.byFD[listener] == t {
		s.unwatch(listener)
	}
	delete(s.byFD, t.fd)
	unix.Close(t.fd)
	s.free = append(s.free, t.slot)
}
