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
	ctx, cancel := scaledContext(5 * time.Second)
	defer cancel()
	conn, err := host.Dial(ctx, local, server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &scriptedClient{t: t, host: host, conn: conn, in: bufio.NewReader(conn)}
	c.want("220")
	return c
}

// send puts text on the wire as one segment: no CR LF is added, and there is no
// delay for more.
func (c *scriptedClient) send(text string) {
	c.t.Helper()
	if err := c.conn.SetDeadline(time.Now().Add(Scale(8 * time.Second))); err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Fatalf("send %q: %v", text, err)
	}
}

// want reads a reply, of several lines perhaps, and returns its last line. The
// reply must start with the code.
func (c *scriptedClient) want(code string) string {
	c.t.Helper()
	for {
		if err := c.conn.SetReadDeadline(time.Now().Add(Scale(8 * time.Second))); err != nil {
			c.t.Fatal(err)
		}
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
	if verb == PASV {
		reply := c.do("227", "PASV")
		at, err := parseNumbers(passiveNumbers.FindString(reply))
		if err != nil {
			c.t.Fatalf("in %q: %v", reply, err)
		}
		return at
	}
	reply := c.do("229", "EPSV")
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
	ctx, cancel := scaledContext(5 * time.Second)
	defer cancel()
	data, err := c.host.Dial(ctx, local, at)
	if err != nil {
		c.t.Fatalf("data connection: %v\nlast replies: %q", err, last(c.received))
	}
	c.do("150", "RETR "+name)
	content := c.readAll(data)
	c.want("226")
	return content
}

// store uploads a file to where the server listens.
func (c *scriptedClient) store(name string, content []byte, at, local netip.AddrPort) {
	c.t.Helper()
	ctx, cancel := scaledContext(5 * time.Second)
	defer cancel()
	data, err := c.host.Dial(ctx, local, at)
	if err != nil {
		c.t.Fatalf("data connection: %v\nlast replies: %q", err, last(c.received))
	}
	c.do("150", "STOR "+name)
	if _, err := data.Write(content); err != nil {
		c.t.Fatalf("write to the data connection: %v", err)
	}
	if err := data.Close(); err != nil {
		c.t.Fatal(err)
	}
	c.want("226")
}

// listen opens a listener for data on the control connection's own address.
func (c *scriptedClient) listen(port uint16) *net.TCPListener {
	c.t.Helper()
	ctx, cancel := scaledContext(5 * time.Second)
	defer cancel()
	own := c.conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	listener, err := c.host.Listen(ctx, netip.AddrPortFrom(own, port))
	if err != nil {
		c.t.Fatal(err)
	}
	return listener
}

// fetchActive downloads a file over a connection from the server. The command
// that announces where to is worded by announce.
func (c *scriptedClient) fetchActive(name string, port uint16, announce func(netip.AddrPort) string) []byte {
	c.t.Helper()
	listener := c.listen(port)
	defer listener.Close()
	c.do("200", announce(listener.Addr().(*net.TCPAddr).AddrPort()))
	c.do("150", "RETR "+name)
	if err := listener.SetDeadline(time.Now().Add(Scale(5 * time.Second))); err != nil {
		c.t.Fatal(err)
	}
	data, err := listener.AcceptTCP()
	if err != nil {
		c.t.Fatalf("no data connection from the server: %v\nlast commands: %q", err, last(c.sent))
	}
	content := c.readAll(data)
	c.want("226")
	return content
}

// readAll reads to the end and closes the connection.
func (c *scriptedClient) readAll(data *net.TCPConn) []byte {
	c.t.Helper()
	if err := data.SetDeadline(time.Now().Add(Scale(8 * time.Second))); err != nil {
		c.t.Fatal(err)
	}
	content, err := io.ReadAll(data)
	if err != nil {
		c.t.Fatalf("read from the data connection: %v", err)
	}
	time.Sleep(c.lateClose)
	if err := data.Close(); err != nil {
		c.t.Fatal(err)
	}
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
