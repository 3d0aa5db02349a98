package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// script says how a scripted server words its replies and puts them on the wire.
// What is nil goes as ordinary servers do it.
type script struct {
	// passive words the nth 227, counted from 0, without CR LF.
	passive func(n int, at netip.AddrPort) string
	// extendedPassive words the nth 229.
	extendedPassive func(n int, port uint16) string
	// passivePort is where it listens for data, activePort where its connections
	// to clients come from; any if 0.
	passivePort, activePort uint16
	// lateClose is how long it leaves a data connection open after the last byte.
	lateClose time.Duration
	// write sends a reply, in as many segments as it likes.
	write func(conn *net.TCPConn, reply string) error
	// coalesce keeps replies back until the client has to act, and sends them together.
	coalesce bool
	// replies are those to commands that have no meaning here.
	replies map[string]string
	// patience is how long it waits for a client at least; it is not stretched.
	patience time.Duration
}

func (s script) wait(d time.Duration) time.Duration { return max(Scale(d), s.patience) }

// scriptedServer is a small FTP server with files that follow from their names.
type scriptedServer struct {
	host   *Host
	script script

	mu       sync.Mutex
	received []string
	sent     []string
	stored   map[string][]byte
	errs     []error
	conns    []*net.TCPConn
}

// startScripted starts a scripted server until the test's end. An error in it
// fails the test then.
func startScripted(t testing.TB, host *Host, at netip.AddrPort, how script) *scriptedServer {
	t.Helper()
	if how.passive == nil {
		how.passive = func(_ int, at netip.AddrPort) string {
			return fmt.Sprintf("227 Entering Passive Mode (%s).", numbers(at, "%d"))
		}
	}
	if how.extendedPassive == nil {
		how.extendedPassive = func(_ int, port uint16) string {
			return fmt.Sprintf("229 Entering Extended Passive Mode (|||%d|)", port)
		}
	}
	if how.write == nil {
		how.write = writeOnce
	}
	s := &scriptedServer{host: host, script: how, stored: make(map[string][]byte)}
	listener, err := host.Listen(testContext(t, 10*time.Second), at)
	must.Do(t, err)
	var sessions sync.WaitGroup
	sessions.Go(func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			sessions.Go(func() {
				defer conn.Close()
				if err := (&serverSession{server: s, conn: conn, in: bufio.NewReader(conn)}).serve(); err != nil {
					s.mu.Lock()
					s.errs = append(s.errs, err)
					s.mu.Unlock()
				}
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		// A session whose client has given up would wait for a long time.
		s.mu.Lock()
		for _, conn := range s.conns {
			conn.SetDeadline(time.Now().Add(Scale(500 * time.Millisecond)))
		}
		s.mu.Unlock()
		sessions.Wait()
		if err := errors.Join(s.errs...); err != nil {
			t.Errorf("scripted server: %v", err)
		}
	})
	return s
}

// lines are those that arrived and those that were sent, without CR LF.
func (s *scriptedServer) lines() (received, sent []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.received...), append([]string(nil), s.sent...)
}

// connections are the control connections that there have been.
func (s *scriptedServer) connections() []*net.TCPConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.conns)
}

// file is a stored file.
func (s *scriptedServer) file(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored[name]
}

// numbers writes an address and a port as PORT and 227 have them, each of the
// six numbers in a format such as "%d" or "%03d".
func numbers(at netip.AddrPort, format string) string {
	ip, port := at.Addr().As4(), at.Port()
	return fmt.Sprintf(strings.Repeat(","+format, 6)[1:], ip[0], ip[1], ip[2], ip[3], port>>8, port&0xff)
}

// parseNumbers reads what numbers writes.
func parseNumbers(text string) (netip.AddrPort, error) {
	var n [6]byte
	fields := strings.Split(text, ",")
	if len(fields) != len(n) {
		return netip.AddrPort{}, fmt.Errorf("not six numbers: %q", text)
	}
	for i, field := range fields {
		value, err := strconv.ParseUint(field, 10, 8)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("in %q: %w", text, err)
		}
		n[i] = byte(value)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(n[:4])), uint16(n[4])<<8|uint16(n[5])), nil
}

// fileContent is the content of a scripted server's file. The lengths differ.
func fileContent(name string) []byte {
	var seed uint64
	for _, b := range []byte(name) {
		seed = seed*31 + uint64(b)
	}
	return randomBytes(seed, int(1000+seed%5000))
}

// serverSession is one control connection of a scripted server.
type serverSession struct {
	server  *scriptedServer
	conn    *net.TCPConn
	in      *bufio.Reader
	passive int
	// pending are replies that have not been sent yet.
	pending string
	// open makes the data connection that has been arranged.
	open func() (*net.TCPConn, error)
	// discard drops it unused.
	discard func()
}

func (s *serverSession) serve() error {
	defer s.forgetData()
	if err := s.reply("220 Scripted FTP server"); err != nil {
		return err
	}
	for {
		if err := s.conn.SetDeadline(time.Now().Add(s.server.script.wait(30 * time.Second))); err != nil {
			return err
		}
		line, err := s.in.ReadString('\n')
		if err == io.EOF && line == "" {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a command (%q so far): %w", line, err)
		}
		line = strings.TrimRight(line, "\r\n")
		s.server.mu.Lock()
		s.server.received = append(s.server.received, line)
		s.server.mu.Unlock()
		verb, argument, _ := strings.Cut(line, " ")
		if err := s.command(strings.ToUpper(verb), argument); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		if strings.EqualFold(verb, "QUIT") {
			return nil
		}
	}
}

func (s *serverSession) command(verb, argument string) error {
	switch verb {
	case "USER":
		return s.reply("331 Any password will do")
	case "PASS":
		return s.reply("230 Logged in")
	case "TYPE", "NOOP":
		return s.reply("200 Fine")
	case "PASV":
		at, err := s.listen()
		if err != nil {
			return err
		}
		s.passive++
		return s.reply(s.server.script.passive(s.passive-1, at))
	case "EPSV":
		at, err := s.listen()
		if err != nil {
			return err
		}
		s.passive++
		return s.reply(s.server.script.extendedPassive(s.passive-1, at.Port()))
	case "PORT":
		return s.active(parseNumbers(argument))
	case "EPRT":
		return s.active(parseExtended(argument))
	case "RETR":
		return s.transfer(func(data *net.TCPConn) error {
			_, err := data.Write(fileContent(argument))
			return err
		})
	case "STOR":
		return s.transfer(func(data *net.TCPConn) error {
			content, err := io.ReadAll(data)
			s.server.mu.Lock()
			s.server.stored[argument] = content
			s.server.mu.Unlock()
			return err
		})
	case "QUIT":
		return s.reply("221 Goodbye")
	}
	if reply, ok := s.server.script.replies[verb]; ok {
		return s.reply(reply)
	}
	return s.reply("502 Not in this script")
}

func (s *serverSession) reply(text string) error {
	s.server.mu.Lock()
	s.server.sent = append(s.server.sent, text)
	s.server.mu.Unlock()
	s.pending += text + "\r\n"
	// After a preliminary reply the server waits for the data connection.
	if s.server.script.coalesce && s.in.Buffered() > 0 && text[0] != '1' {
		return nil
	}
	text, s.pending = s.pending, ""
	if err := s.server.script.write(s.conn, text); err != nil {
		return fmt.Errorf("reply %q: %w", text, err)
	}
	return nil
}

func (s *serverSession) localAddr() netip.Addr {
	return s.conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

func (s *serverSession) listen() (netip.AddrPort, error) {
	s.forgetData()
	ctx, cancel := scaledContext(10 * time.Second)
	defer cancel()
	at := netip.AddrPortFrom(s.localAddr(), s.server.script.passivePort)
	listener, err := s.server.host.Listen(ctx, at)
	for errors.Is(err, syscall.EADDRINUSE) && ctx.Err() == nil {
		// A program that this process is starting has a copy of a socket that is
		// closed here, until it begins.
		time.Sleep(time.Millisecond)
		listener, err = s.server.host.Listen(ctx, at)
	}
	if err != nil {
		return netip.AddrPort{}, err
	}
	s.discard = func() { listener.Close() }
	s.open = func() (*net.TCPConn, error) {
		if err := listener.SetDeadline(time.Now().Add(s.server.script.wait(5 * time.Second))); err != nil {
			return nil, err
		}
		return listener.AcceptTCP()
	}
	return listener.Addr().(*net.TCPAddr).AddrPort(), nil
}

func (s *serverSession) active(client netip.AddrPort, err error) error {
	if err != nil {
		return s.reply("501 " + err.Error())
	}
	s.forgetData()
	s.open = func() (*net.TCPConn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), s.server.script.wait(5*time.Second))
		defer cancel()
		return s.server.host.Dial(ctx, netip.AddrPortFrom(s.localAddr(), s.server.script.activePort), client)
	}
	return s.reply("200 Noted")
}

func (s *serverSession) transfer(f func(*net.TCPConn) error) error {
	if s.open == nil {
		return s.reply("425 Use PORT or PASV first")
	}
	if err := s.reply("150 Here it comes"); err != nil {
		return err
	}
	data, err := s.open()
	if err != nil {
		return s.reply("425 " + err.Error())
	}
	err = f(data)
	time.Sleep(s.server.script.lateClose)
	if closeErr := data.Close(); err != nil || closeErr != nil {
		return s.reply("426 " + errors.Join(err, closeErr).Error())
	}
	s.forgetData()
	return s.reply("226 Done")
}

func (s *serverSession) forgetData() {
	if s.discard != nil {
		s.discard()
	}
	s.open, s.discard = nil, nil
}

// parseExtended reads the argument of EPRT.
func parseExtended(text string) (netip.AddrPort, error) {
	fields := strings.Split(text, "|")
	if len(fields) != 5 {
		return netip.AddrPort{}, fmt.Errorf("not an EPRT argument: %q", text)
	}
	ip, err := netip.ParseAddr(fields[2])
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(fields[3], 10, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(ip, uint16(port)), nil
}
