package netns

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// The tests in this file have a client that speaks another protocol, such as a browser, and a server that makes it send a
// PORT: the router must not let the server reach the port of the client that it names (NAT slipstreaming).

const (
	requestLine = "POST / HTTP/1.1\r\n"
	clientHello = "\x16\x03\x01\x00\x60\x01\x00\x00\x5c\x03\x03"
)

// TestSlipstream has the kernel's helper show that each form of the attack works.
func TestSlipstream(t *testing.T) {
	t.Parallel()
	type attack struct {
		name string
		// before is what happens before the PORT, which begins a segment.
		before func(*forgery)
		ours   bool // it is an attack on our daemon only
		why    string
	}
	greet := func(f *forgery) { f.say(f.server, "220 hello"); f.hear(f.fromServer, "220") }
	send := func(f *forgery, text string) {
		f.t.Helper()
		if err := writeOnce(f.client, text); err != nil {
			f.t.Fatal(err)
		}
		for range strings.Count(text, "\n") {
			f.hear(f.fromClient, "")
		}
	}
	attacks := []attack{
		{name: "POST", why: "not-ftp", before: func(f *forgery) { greet(f); send(f, requestLine+"Host: x\r\n\r\n") }},
		{name: "a verb of FTP", why: "not-ftp", before: func(f *forgery) { greet(f); send(f, "STAT / HTTP/1.1\r\n"); send(f, "Host: x\r\n\r\n") }},
		{name: "TLS before the greeting", why: "not-ftp", before: func(f *forgery) { send(f, clientHello+"\nUSER x\n"); greet(f) }},
		{name: "ignored, then forgotten", why: "not-ftp", before: func(f *forgery) {
			greet(f)
			send(f, requestLine)
			evictOthers(f)
			send(f, "USER x\r\n")
		}},
		{name: "the head passed before the daemon started", ours: true, why: "midstream", before: func(f *forgery) {
			router, ctx := f.lab.ServerRouter(), testContext(f.t, 20*time.Second)
			if err := router.StopDaemon(ctx); err != nil {
				f.t.Fatal(err)
			}
			greet(f)
			send(f, requestLine)
			if err := router.StartDaemon(ctx); err != nil {
				f.t.Fatal(err)
			}
			send(f, "USER x\r\n")
		}},
		{name: "a second SYN-ACK", ours: true, why: "midstream", before: func(f *forgery) {
			f.openTwice(requestLine)
			greet(f)
			send(f, "USER x\r\n")
		}},
	}
	for _, helper := range []Helper{Kernel, Ours} {
		for _, a := range attacks {
			if a.ours && helper == Kernel {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", helper, a.name), func(t *testing.T) {
				t.Parallel()
				config := Config{Situation: Routed, Family: IPv4, Helper: helper}
				if helper == Kernel {
					needKernelHelper(t)
				} else {
					config.Daemon.Flags = []string{"--max-connections", "1", "--log-level", "debug"}
				}
				f := &forgery{t: t, lab: newLab(t, config), family: IPv4}
				f.open()
				a.before(f)
				victim := netip.AddrPortFrom(f.lab.Addresses.Client.Addr(), victimPort)
				send(f, portCommand(victim)+"\r\n")
				if helper == Kernel {
					f.wantConnection(f.lab.Server, f.listen(f.lab.Client, victim), victim)
					return
				}
				if expected := f.expectations(); expected != "" {
					t.Errorf("it opened a port:\n%s", expected)
				}
				said := func(log string) bool { return strings.Contains(log, a.why) }
				if err := f.lab.ServerRouter().DaemonProcess().WaitOutput(testContext(t, 10*time.Second), said); err != nil {
					t.Errorf("the log does not say %q: %v", a.why, err)
				}
				f.client.Close()
				f.server.Close()
				honest := &forgery{t: t, lab: f.lab, family: IPv4}
				honest.listener = f.listener
				honest.connect()
				honest.login()
				honest.wantPORT()
			})
		}
	}
}

// openTwice opens another control connection. Before the client has answered the server's SYN-ACK, the server sends
// a second one, which acknowledges all that the client is about to send, too.
func (f *forgery) openTwice(text string) {
	f.t.Helper()
	r, ctx := f.lab.ServerRouter(), testContext(f.t, 20*time.Second)
	lose := func(what string) {
		f.t.Helper()
		must.Do(f.t, r.Nft(ctx, "table ip lost\ndelete table ip lost\n"+
			"table ip lost {\nchain handshake { type filter hook prerouting priority -300;\n"+what+"\n}\n}\n"))
	}
	lose("tcp dport 21 tcp flags & (syn | ack) == ack ip length < 60 drop")
	client, err := f.lab.Client.Dial(ctx, netip.AddrPort{}, netip.AddrPortFrom(f.lab.ServerAddress, 21))
	must.Do(f.t, err)
	f.t.Cleanup(func() { client.Close() })
	const window = 500 // of the second one
	lose(fmt.Sprintf("tcp sport 21 tcp flags & (syn | ack) == syn | ack tcp window != %d drop", window))
	next, ack, err := peerNumbers(client)
	must.Do(f.t, err)
	at := client.LocalAddr().(*net.TCPAddr).AddrPort()
	f.inject(f.lab.Server, forgedPacket(f.t, netip.AddrPortFrom(f.lab.Addresses.Server.Addr(), 21), at, next-1, ack+uint32(len(text)), "",
		func(tcp *layers.TCP) { tcp.SYN, tcp.PSH, tcp.Window = true, false, window }))
	read := func(log string) bool { return strings.Count(log, "kind=tracked client="+at.String()) == 2 }
	must.Do(f.t, r.DaemonProcess().WaitOutput(ctx, read))
	must.Do(f.t, writeOnce(client, text))
	f.client, f.server = client, f.accept(f.listener)
	f.t.Cleanup(func() { f.server.Close() })
	must.Do(f.t, r.Nft(ctx, "delete table ip lost\n"))
	f.fromServer, f.fromClient = bufio.NewReader(f.client), bufio.NewReader(f.server)
	for range strings.Count(text, "\n") {
		f.hear(f.fromClient, "")
	}
}

// wantPORT wants the client's next PORT to be helped.
func (f *forgery) wantPORT() {
	f.t.Helper()
	listener := f.listen(f.lab.Client, netip.AddrPortFrom(f.lab.Addresses.Client.Addr(), 0))
	f.say(f.client, portCommand(address(listener)))
	f.hear(f.fromClient, "PORT")
	f.wantConnection(f.lab.Server, listener, address(listener))
}

// evictOthers opens another connection, for which a daemon that tracks one forgets the others.
func evictOthers(f *forgery) {
	f.t.Helper()
	other := &forgery{t: f.t, lab: f.lab, family: f.family, listener: f.listener}
	other.connect()
}

// TestRecognised has a client that has logged in go on after the daemon has forgotten the connection, or was started anew:
// its next command, a PORT, is helped.
func TestRecognised(t *testing.T) {
	t.Parallel()
	for name, forget := range map[string]func(*forgery){
		"evicted": evictOthers,
		"daemon stopped": func(f *forgery) {
			router, ctx := f.lab.ServerRouter(), testContext(f.t, 20*time.Second)
			if err := router.StopDaemon(ctx); err != nil {
				f.t.Fatal(err)
			}
			if err := router.StartDaemon(ctx); err != nil {
				f.t.Fatal(err)
			}
		},
		"daemon killed": func(f *forgery) {
			router, ctx := f.lab.ServerRouter(), testContext(f.t, 20*time.Second)
			if err := router.KillDaemon(); err != nil {
				f.t.Fatal(err)
			}
			if err := router.StartDaemon(ctx); err != nil {
				f.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: Routed, Family: IPv4, Helper: Ours, Daemon: Daemon{Flags: []string{"--max-connections", "1"}}})
			f := &forgery{t: t, lab: lab, family: IPv4}
			f.connect()
			f.login()
			forget(f)
			f.wantPORT()
		})
	}
}

// TestHog has one client take all places for packets that wait: a neighbour's line that comes in pieces is helped all
// the same.
func TestHog(t *testing.T) {
	t.Parallel()
	const connections, each = 6, 512 // all places, and all of a connection
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours, Daemon: Daemon{Flags: []string{"--hold-time", "60s"}}})
	router, ctx := lab.ServerRouter(), testContext(t, 60*time.Second)
	neighbour := startDialogue(t, lab)
	neighbour.fetch()
	hog := netip.MustParseAddr("203.0.113.102")
	if _, err := lab.Client.Run(ctx, "", "ip", "address", "add", hog.String()+"/24", "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	for range connections {
		before := len(neighbour.server.connections())
		client := dialScripted(t, lab.Client, netip.AddrPortFrom(hog, 0), netip.AddrPortFrom(lab.ServerAddress, 21))
		server := neighbour.server.connections()[before]
		next, ack, err := peerNumbers(server)
		if err != nil {
			t.Fatal(err)
		}
		var packets [][]byte
		for i := range each { // each behind a gap
			packets = append(packets, forgedPacket(t, client.conn.LocalAddr().(*net.TCPAddr).AddrPort(), netip.AddrPortFrom(lab.ServerAddress, 21), next+10+uint32(i), ack, "x"))
		}
		(&forgery{t: t, lab: lab, family: IPv4}).inject(lab.Client, packets...)
	}
	for queuedTotal(t, router) < connections*each {
		if ctx.Err() != nil {
			t.Fatalf("%d packets wait, want %d", queuedTotal(t, router), connections*each)
		}
	}
	neighbour.pauser.armed.Store(true)
	neighbour.client.pipeline("PASV")
	<-neighbour.pauser.paused
	neighbour.pauser.goOn <- struct{}{}
	if at := neighbour.client.wantPassive(PASV); at.Addr() != lab.ServerAddress {
		t.Errorf("the client received %s: the line was not rewritten", at)
	}
}

// queuedTotal returns how many packets wait in the queues of a router for their verdict.
func queuedTotal(t testing.TB, r *Router) (n int) {
	t.Helper()
	queues, err := r.Run(testContext(t, 10*time.Second), "", "cat", "/proc/net/netfilter/nfnetlink_queue")
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(strings.NewReader(queues)); lines.Scan(); {
		var number, port, total int
		if _, err := fmt.Sscan(lines.Text(), &number, &port, &total); err != nil {
			t.Fatal(err)
		}
		n += total
	}
	return n
}
