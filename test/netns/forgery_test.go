package netns

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
)

// The tests in this file have one end of a control connection forge a packet of the other end. It is
// next to the router and knows all numbers, so the packet is right in every respect but the interface
// it arrives on. What the router then drops must open nothing.

// victimPort is the port of the other end that the forger tries to open.
const victimPort = 3306

// An antiSpoofing is what makes a router drop packets that arrive on the wrong interface.
type antiSpoofing string

const (
	trusting   antiSpoofing = "no protection" // shows that the forgery is right: it opens the port
	rpFilter   antiSpoofing = "rp_filter"
	filterRule antiSpoofing = "forward rule"
)

// forEachForgery runs an attack with every helper and every protection.
func forEachForgery(t *testing.T, attack func(*testing.T, *forgery)) {
	helpers := []struct {
		name   string
		helper Helper
		daemon Daemon
	}{
		{"kernel", Kernel, Daemon{}},
		{"full", Ours, Daemon{}},
		{"lean", Ours, Daemon{BackEnd: BackEnd{Helper: "carrier", Ruleset: "lean"}}},
	}
	for _, h := range helpers {
		for _, family := range Families {
			for _, protection := range []antiSpoofing{trusting, rpFilter, filterRule} {
				if protection == rpFilter && family == IPv6 {
					continue // Linux has it for IPv4 only
				}
				t.Run(fmt.Sprintf("%s/%s/%s", h.name, family, protection), func(t *testing.T) {
					t.Parallel()
					if h.helper == Kernel {
						needKernelHelper(t)
					}
					lab := newLab(t, Config{Situation: DNAT, Family: family, Helper: h.helper, Daemon: h.daemon})
					f := &forgery{t: t, lab: lab, family: family, protection: protection}
					f.protect()
					f.connect()
					f.login()
					attack(t, f)
				})
			}
		}
	}
}

// TestForgedReply has a client forge the server's answer to its own PASV or EPSV.
func TestForgedReply(t *testing.T) {
	t.Parallel()
	forEachForgery(t, func(t *testing.T, f *forgery) {
		own, public := f.lab.Addresses.Server.Addr(), f.lab.ServerAddress
		verb, answer := "EPSV", func(port uint16) string { return fmt.Sprintf("229 here (|||%d|)", port) }
		if f.family == IPv4 {
			verb, answer = "PASV", func(port uint16) string {
				return fmt.Sprintf("227 here (%s)", numbers(netip.AddrPortFrom(own, port), "%d"))
			}
		}
		f.say(f.client, verb)
		f.hear(f.fromClient, verb)
		f.forge(f.lab.Client, f.client, netip.AddrPortFrom(own, 21), answer(victimPort))
		f.wantOpen(f.lab.Client, f.lab.Server, netip.AddrPortFrom(own, victimPort), netip.AddrPortFrom(public, victimPort))
		if f.protection == trusting {
			return
		}
		listener := f.listen(f.lab.Server, netip.AddrPortFrom(own, 0))
		f.say(f.server, answer(address(listener).Port()))
		f.hear(f.fromServer, answer(0)[:4])
		f.wantConnection(f.lab.Client, listener, netip.AddrPortFrom(public, address(listener).Port()))
	})
}

// TestForgedCommand has a server forge a PORT or EPRT of its client.
func TestForgedCommand(t *testing.T) {
	t.Parallel()
	forEachForgery(t, func(t *testing.T, f *forgery) {
		own := f.lab.Addresses.Client.Addr()
		command := eprtCommand
		if f.family == IPv4 {
			command = portCommand
		}
		victim := netip.AddrPortFrom(own, victimPort)
		client := f.client.LocalAddr().(*net.TCPAddr).AddrPort()
		f.forgeTo(f.lab.Server, f.server, client, netip.AddrPortFrom(f.lab.ServerAddress, 21), command(victim))
		f.wantOpen(f.lab.Server, f.lab.Client, victim, victim)
		if f.protection == trusting {
			return
		}
		listener := f.listen(f.lab.Client, netip.AddrPortFrom(own, 0))
		f.say(f.client, command(address(listener)))
		f.hear(f.fromClient, command(address(listener))[:4])
		f.wantConnection(f.lab.Server, listener, address(listener))
	})
}

// forgery is a control connection, both ends of which the test speaks for.
type forgery struct {
	t          *testing.T
	lab        *Lab
	family     Family
	protection antiSpoofing

	listener               *net.TCPListener // the server's
	client, server         *net.TCPConn
	fromServer, fromClient *bufio.Reader
}

// protect makes the router drop what arrives on the wrong interface, and count it before that.
func (f *forgery) protect() {
	f.t.Helper()
	r, ip := f.lab.ServerRouter(), "ip"
	if f.family == IPv6 {
		ip = "ip6"
	}
	wrong := []string{
		fmt.Sprintf("iifname eth0 %s saddr %s", ip, f.lab.Addresses.Server.Addr()),
		fmt.Sprintf("iifname eth1 %s saddr %s", ip, f.lab.Addresses.Client.Addr()),
	}
	rules := "table inet spoofed {\n\tcounter forged { }\n\tchain count { type filter hook prerouting priority -140;\n"
	for _, match := range wrong {
		rules += "\t\t" + match + " counter name forged\n"
	}
	rules += "\t}\n"
	switch f.protection {
	case rpFilter:
		for _, name := range []string{"all", "eth0", "eth1"} {
			if err := r.Sysctl("ipv4.conf."+name+".rp_filter", "1"); err != nil {
				f.t.Fatal(err)
			}
		}
	case filterRule:
		rules += "\tchain forward { type filter hook forward priority -10;\n"
		for _, match := range wrong {
			rules += "\t\t" + match + " drop\n"
		}
		rules += "\t}\n"
	}
	if err := r.Nft(testContext(f.t, 20*time.Second), rules+"}\n"); err != nil {
		f.t.Fatal(err)
	}
}

// connect opens the control connection, and has the server greet.
func (f *forgery) connect() {
	f.t.Helper()
	f.open()
	f.say(f.server, "220 hello")
	f.hear(f.fromServer, "220")
}

// open opens the control connection, on which neither side has said anything yet.
func (f *forgery) open() {
	f.t.Helper()
	if f.listener == nil {
		f.listener = f.listen(f.lab.Server, netip.AddrPortFrom(f.lab.Addresses.Server.Addr(), 21))
	}
	client, err := f.lab.Client.Dial(testContext(f.t, 10*time.Second), netip.AddrPort{}, netip.AddrPortFrom(f.lab.ServerAddress, 21))
	if err != nil {
		f.t.Fatal(err)
	}
	f.client, f.server = client, f.accept(f.listener)
	f.fromServer, f.fromClient = bufio.NewReader(f.client), bufio.NewReader(f.server)
	for _, conn := range []*net.TCPConn{f.client, f.server} {
		f.t.Cleanup(func() { conn.Close() })
	}
}

func (f *forgery) login() {
	f.t.Helper()
	f.say(f.client, "USER anonymous")
	f.hear(f.fromClient, "USER")
	f.say(f.server, "230 hello")
	f.hear(f.fromServer, "230")
}

func (f *forgery) listen(h *Host, at netip.AddrPort) *net.TCPListener {
	f.t.Helper()
	listener, err := h.Listen(testContext(f.t, 10*time.Second), at)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { listener.Close() })
	return listener
}

func (f *forgery) accept(listener *net.TCPListener) *net.TCPConn {
	f.t.Helper()
	if err := listener.SetDeadline(time.Now().Add(Scale(10 * time.Second))); err != nil {
		f.t.Fatal(err)
	}
	conn, err := listener.AcceptTCP()
	if err != nil {
		f.t.Fatalf("no connection to %s: %v", listener.Addr(), err)
	}
	return conn
}

func (f *forgery) say(conn *net.TCPConn, line string) {
	f.t.Helper()
	if err := writeOnce(conn, line+"\r\n"); err != nil {
		f.t.Fatal(err)
	}
}

func (f *forgery) hear(from *bufio.Reader, start string) {
	f.t.Helper()
	deadline := time.Now().Add(Scale(10 * time.Second))
	for _, conn := range []*net.TCPConn{f.client, f.server} {
		if err := conn.SetReadDeadline(deadline); err != nil {
			f.t.Fatal(err)
		}
	}
	line, err := from.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, start) {
		f.t.Fatalf("want a line that starts with %q, got %q, %v", start, line, err)
	}
}

// forge has the client send a line to itself as if it came from the server.
func (f *forgery) forge(attacker *Host, conn *net.TCPConn, src netip.AddrPort, line string) {
	f.t.Helper()
	f.forgeTo(attacker, conn, src, conn.LocalAddr().(*net.TCPAddr).AddrPort(), line)
}

// forgeTo sends a line to the router as the next segment of the peer of conn, and waits until the
// router has counted it.
func (f *forgery) forgeTo(attacker *Host, conn *net.TCPConn, src, dst netip.AddrPort, line string) {
	f.t.Helper()
	next, ack, err := peerNumbers(conn)
	if err != nil {
		f.t.Fatal(err)
	}
	f.inject(attacker, forgedPacket(f.t, src, dst, next, ack, line+"\r\n"))
	r, ctx := f.lab.ServerRouter(), testContext(f.t, 10*time.Second)
	for {
		n, err := r.Counter(ctx, "spoofed", "forged")
		if err != nil {
			f.t.Fatal(err)
		}
		if n > 0 {
			return
		}
	}
}

// inject sends packets to the router.
func (f *forgery) inject(attacker *Host, packets ...[]byte) {
	f.t.Helper()
	etherType := uint16(unix.ETH_P_IP)
	if f.family == IPv6 {
		etherType = unix.ETH_P_IPV6
	}
	r := f.lab.ServerRouter()
	routerInterface := map[*Host]string{f.lab.Client: "eth0", f.lab.Server: "eth1"}[attacker]
	gateway, err := r.nl.LinkByName(routerInterface)
	if err != nil {
		f.t.Fatal(err)
	}
	own, err := attacker.nl.LinkByName("eth0")
	if err != nil {
		f.t.Fatal(err)
	}
	to := &unix.SockaddrLinklayer{Protocol: etherType<<8 | etherType>>8, Ifindex: own.Attrs().Index, Halen: 6}
	copy(to.Addr[:], gateway.Attrs().HardwareAddr)
	err = attacker.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		f.t.Fatalf("send a packet: %v", err)
	}
}

// peerNumbers returns the sequence number of the next byte that the peer of conn sends, and what it has
// to acknowledge.
func peerNumbers(conn *net.TCPConn) (next, ack uint32, err error) {
	const off = -1 // TCP_REPAIR_OFF_NO_WP of linux/tcp.h: no window probe
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	read := func(fd, queue int) (uint32, error) {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
			return 0, err
		}
		n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		return uint32(n), err
	}
	controlErr := raw.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
			return
		}
		const receive, send = 1, 2 // TCP_RECV_QUEUE, TCP_SEND_QUEUE
		if next, err = read(int(fd), receive); err == nil {
			ack, err = read(int(fd), send)
		}
		if offErr := unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, off); err == nil {
			err = offErr
		}
	})
	if err == nil {
		err = controlErr
	}
	if err != nil {
		err = fmt.Errorf("read the sequence numbers of a connection: %w", err)
	}
	return next, ack, err
}

// forgedPacket returns an IP packet with a TCP segment.
func forgedPacket(t testing.TB, src, dst netip.AddrPort, seq, ack uint32, payload string, change ...func(*layers.TCP)) []byte {
	t.Helper()
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()),
		Seq: seq, Ack: ack, ACK: true, PSH: true, Window: 500,
	}
	for _, f := range change {
		f(tcp)
	}
	var network gopacket.NetworkLayer
	if src.Addr().Is4() {
		network = &layers.IPv4{
			Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP,
			SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice(),
		}
	} else {
		network = &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP,
			SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice(),
		}
	}
	if err := tcp.SetNetworkLayerForChecksum(network); err != nil {
		t.Fatal(err)
	}
	buffer := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		network.(gopacket.SerializableLayer), tcp, gopacket.Payload(payload))
	if err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

// wantOpen wants the attacker to reach the victim if the router trusts everything, and nothing to be
// expected otherwise.
func (f *forgery) wantOpen(attacker, victim *Host, listens, dials netip.AddrPort) {
	f.t.Helper()
	if f.protection == trusting {
		f.wantConnection(attacker, f.listen(victim, listens), dials)
		return
	}
	// The packet was dropped by the time it was counted. A line from each side comes after it.
	for _, end := range []struct {
		conn *net.TCPConn
		peer *bufio.Reader
		line string
	}{{f.client, f.fromClient, "NOOP"}, {f.server, f.fromServer, "200 yes"}} {
		if attacker == f.lab.Client && end.conn == f.server {
			continue // the server has yet to answer the PASV
		}
		f.say(end.conn, end.line)
		f.hear(end.peer, end.line)
	}
	if expected := f.expectations(); expected != "" {
		f.t.Errorf("a forged packet that the router dropped opened a port:\n%s", expected)
	}
}

// expectations are those that the router's conntrack has.
func (f *forgery) expectations() string {
	f.t.Helper()
	expected, err := f.lab.ServerRouter().Run(testContext(f.t, 10*time.Second), "", "conntrack", "-L", "expect", "-f", strings.ToLower(f.family.String()))
	if err != nil {
		f.t.Fatal(err)
	}
	return expected
}

// wantConnection wants a connection to get through, to the listener.
func (f *forgery) wantConnection(from *Host, listener *net.TCPListener, to netip.AddrPort) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Scale(10*time.Second))
	defer cancel()
	conn, err := from.Dial(ctx, netip.AddrPort{}, to)
	if err != nil {
		f.t.Fatal(err)
	}
	conn.Close()
	f.accept(listener).Close()
}
