package netns

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// scriptedClient is one control connection, driven command by command. Whatever
// goes wrong ends the test.
type scriptedClient struct {
	t    testing.TB
	host *Host
	conn *net.TCPConn
	in   *bufio.Reader
	// lateClose is how long a data connection stays half closed.
	lateClose time.Duration
	// write sends text, in as many segments as it likes.
	write func(conn *net.TCPConn, text string) error
	// patience is how long it waits for the server at least; it is not stretched.
	patience time.Duration
	// sent and received are whole lines, without CR LF.
	sent, received []string
}

func scaledContext(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), Scale(d))
}

// dialScripted opens a control connection and reads the greeting. A zero local
// address leaves the choice to the kernel.
func dialScripted(t testing.TB, host *Host, local, server netip.AddrPort) *scriptedClient {
	t.Helper()
	c := &scriptedClient{t: t, host: host}
	c.connect(local, server)
	return c
}

func (c *scriptedClient) connect(local, server netip.AddrPort) {
	c.t.Helper()
	if c.write == nil {
		c.write = writeOnce
	}
	c.conn = c.dial(local, server)
	c.t.Cleanup(func() { c.conn.Close() })
	c.in = bufio.NewReader(c.conn)
	c.want("220")
}

func (c *scriptedClient) dial(local, server netip.AddrPort) *net.TCPConn {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), c.wait(5*time.Second))
	defer cancel()
	conn, err := c.host.Dial(ctx, local, server)
	if err != nil {
		c.t.Fatalf("connect: %v\nlast replies: %q", err, last(c.received))
	}
	return conn
}

func (c *scriptedClient) wait(d time.Duration) time.Duration { return max(Scale(d), c.patience) }

// send puts text on the wire, as one segment unless there is another way to
// write: no CR LF is added, and there is no delay for more.
func (c *scriptedClient) send(text string) {
	c.t.Helper()
	must.Do(c.t, c.conn.SetDeadline(time.Now().Add(c.wait(8*time.Second))))
	if err := c.write(c.conn, text); err != nil {
		c.t.Fatalf("send %q: %v", text, err)
	}
}

// want reads a reply, of several lines perhaps, and returns its last line. The
// reply must start with the code.
func (c *scriptedClient) want(code string) string {
	c.t.Helper()
	for {
		must.Do(c.t, c.conn.SetReadDeadline(time.Now().Add(c.wait(8*time.Second))))
		line, err := c.in.ReadString('\n')
		if err != nil {
			c.t.Fatalf("waiting for a %s reply (%q so far): %v\nlast commands: %q\nlast replies: %q",
				code, line, err, last(c.sent), last(c.received))
		}
		line = strings.TrimRight(line, "\r\n")
		c.received = append(c.received, line)
		if len(line) >= 4 && line[3] == ' ' && strings.Trim(line[:3], "0123456789") == "" {
			if line[:3] != code {
				c.t.Fatalf("want a %s reply, got %q\nlast commands: %q", code, line, last(c.sent))
			}
			return line
		}
	}
}

func last(lines []string) []string { return lines[max(0, len(lines)-5):] }

// do sends one command and returns the reply to it.
func (c *scriptedClient) do(code, command string) string {
	c.t.Helper()
	c.sent = append(c.sent, command)
	c.send(command + "\r\n")
	return c.want(code)
}

func (c *scriptedClient) login() {
	c.t.Helper()
	c.do("331", "USER anonymous")
	c.do("230", "PASS a")
	c.do("200", "TYPE I")
}

// quit ends the dialogue and wants the server to close the connection in order.
func (c *scriptedClient) quit() {
	c.t.Helper()
	c.do("221", "QUIT")
	if rest, err := io.ReadAll(c.in); err != nil || len(rest) > 0 {
		c.t.Fatalf("after QUIT: %q, %v", rest, err)
	}
}

var (
	passiveNumbers = regexp.MustCompile(`\d+(?:,\d+){5}`)
	extendedPort   = regexp.MustCompile(`\(\|\|\|(\d+)\|\)`)
)

// passive sends PASV or EPSV and returns where the server says it listens.
func (c *scriptedClient) passive(verb Verb) netip.AddrPort {
	c.t.Helper()
	c.sent = append(c.sent, string(verb))
	c.send(string(verb) + "\r\n")
	return c.wantPassive(verb)
}

// wantPassive reads the reply to PASV or EPSV.
func (c *scriptedClient) wantPassive(verb Verb) netip.AddrPort {
	c.t.Helper()
	if verb == PASV {
		reply := c.want("227")
		at, err := parseNumbers(passiveNumbers.FindString(reply))
		if err != nil {
			c.t.Fatalf("in %q: %v", reply, err)
		}
		return at
	}
	reply := c.want("229")
	match := extendedPort.FindStringSubmatch(reply)
	if match == nil {
		c.t.Fatalf("no port in %q", reply)
	}
	port, err := strconv.ParseUint(match[1], 10, 16)
	if err != nil {
		c.t.Fatalf("in %q: %v", reply, err)
	}
	server := c.conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	return netip.AddrPortFrom(server, uint16(port))
}

// fetch downloads a file from where the server listens.
func (c *scriptedClient) fetch(name string, at, local netip.AddrPort) []byte {
	c.t.Helper()
	return c.retrieve(name, c.dial(local, at))
}

// retrieve downloads a file over a data connection.
func (c *scriptedClient) retrieve(name string, data *net.TCPConn) []byte {
	c.t.Helper()
	c.do("150", "RETR "+name)
	content := c.readAll(data)
	c.want("226")
	return content
}

// store uploads a file to where the server listens.
func (c *scriptedClient) store(name string, content []byte, at, local netip.AddrPort) {
	c.t.Helper()
	data := c.dial(local, at)
	c.do("150", "STOR "+name)
	if _, err := data.Write(content); err != nil {
		c.t.Fatalf("write to the data connection: %v", err)
	}
	must.Do(c.t, data.Close())
	c.want("226")
}

func (c *scriptedClient) ownAddress() netip.Addr {
	return c.conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// listen opens a listener for data on the control connection's own address.
func (c *scriptedClient) listen(port uint16) *net.TCPListener {
	c.t.Helper()
	ctx, cancel := scaledContext(5 * time.Second)
	defer cancel()
	listener, err := c.host.Listen(ctx, netip.AddrPortFrom(c.ownAddress(), port))
	must.Do(c.t, err)
	return listener
}

// fetchActive downloads a file over a connection from the server. The command
// that announces where to is worded by announce.
func (c *scriptedClient) fetchActive(name string, port uint16, announce func(netip.AddrPort) string) []byte {
	c.t.Helper()
	listener := c.listen(port)
	defer listener.Close()
	c.do("200", announce(address(listener)))
	c.do("150", "RETR "+name)
	content := c.readAll(c.accept(listener))
	c.want("226")
	return content
}

func address(listener *net.TCPListener) netip.AddrPort {
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

// accept waits for the server's data connection.
func (c *scriptedClient) accept(listener *net.TCPListener) *net.TCPConn {
	c.t.Helper()
	must.Do(c.t, listener.SetDeadline(time.Now().Add(c.wait(5*time.Second))))
	data, err := listener.AcceptTCP()
	if err != nil {
		c.t.Fatalf("no data connection from the server: %v\nlast commands: %q", err, last(c.sent))
	}
	return data
}

// fetchBy downloads a file over a data connection that a verb arranges. The server
// must say that it listens where the client has reached it.
func (c *scriptedClient) fetchBy(verb Verb, name string, server netip.Addr) []byte {
	c.t.Helper()
	switch verb {
	case PORT:
		return c.fetchActive(name, 0, portCommand)
	case EPRT:
		return c.fetchActive(name, 0, eprtCommand)
	}
	at := c.passive(verb)
	if at.Addr() != server {
		c.t.Fatalf("%s: the client was told %s", name, at)
	}
	return c.fetch(name, at, netip.AddrPort{})
}

// wantFiles downloads a scripted server's file by each verb. All the names differ, and so do the contents.
func (c *scriptedClient) wantFiles(server netip.Addr, verbs ...Verb) {
	c.t.Helper()
	for _, verb := range verbs {
		name := fmt.Sprintf("%s-%d-%d", verb, c.conn.LocalAddr().(*net.TCPAddr).Port, len(c.received))
		wantContent(c.t, name, c.fetchBy(verb, name, server), fileContent(name))
	}
}

// pipeline sends commands together.
func (c *scriptedClient) pipeline(commands ...string) {
	c.t.Helper()
	c.sent = append(c.sent, commands...)
	c.send(strings.Join(commands, "\r\n") + "\r\n")
}

// readAll reads to the end and closes the connection.
func (c *scriptedClient) readAll(data *net.TCPConn) []byte {
	c.t.Helper()
	must.Do(c.t, data.SetDeadline(time.Now().Add(c.wait(8*time.Second))))
	content, err := io.ReadAll(data)
	if err != nil {
		c.t.Fatalf("read from the data connection: %v", err)
	}
	time.Sleep(c.lateClose)
	must.Do(c.t, data.Close())
	return content
}

func portCommand(at netip.AddrPort) string { return "PORT " + numbers(at, "%d") }

func eprtCommand(at netip.AddrPort) string {
	protocol := 1
	if at.Addr().Is6() {
		protocol = 2
	}
	return fmt.Sprintf("EPRT |%d|%s|%d|", protocol, at.Addr(), at.Port())
}
