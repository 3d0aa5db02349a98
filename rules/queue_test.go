package rules

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// The addresses of the client and the server, which has the rules.
var (
	client4 = netip.MustParseAddr("192.0.2.1")
	server4 = netip.MustParseAddr("192.0.2.2")
	client6 = netip.MustParseAddr("2001:db8::1")
	server6 = netip.MustParseAddr("2001:db8::2")
)

// newLab returns the namespaces of client and server, and moves the test's thread to the server's.
func newLab(t *testing.T) (client, server netns.NsHandle) {
	t.Helper()
	client = newNamespace(t)
	server = newNamespace(t)
	must.Do(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: "veth"},
		PeerName:      "veth",
		PeerNamespace: netlink.NsFd(client),
	}))
	up := func(addrs ...netip.Addr) {
		link, err := netlink.LinkByName("veth")
		must.Do(t, err)
		for _, a := range addrs {
			ipnet := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen()-8, a.BitLen())}
			must.Do(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: ipnet, Flags: unix.IFA_F_NODAD}))
		}
		must.Do(t, netlink.LinkSetUp(link))
	}
	up(server4, server6)
	within(t, client, func() { up(client4, client6) })
	return client, server
}

// The lines of every connection; the server greets.
var (
	said    = []string{"USER anonymous\r\n", "PASV\r\n", "QUIT\r\n"}
	replied = []string{"220 ready\r\n", "331 and you are?\r\n", "227 Entering Passive Mode (192,0,2,2,4,1)\r\n", "221 bye\r\n"}
)

// talk has the conversation between a listener in the test's namespace, at the address after NAT, and a client in
// another one.
func talk(t *testing.T, client netns.NsHandle, dialled, listen netip.AddrPort, options string) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(listen))
	must.Do(t, err)
	defer l.Close()

	served := make(chan error, 1)
	go func() { served <- serve(l) }()

	within(t, client, func() {
		dialer := net.Dialer{Timeout: 10 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			c.Control(func(fd uintptr) {
				if options != "" {
					err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, options)
				}
			})
			return err
		}}
		conn, err := dialer.Dial("tcp", dialled.String())
		must.Do(t, err)
		defer conn.Close()
		must.Do(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
		must.Do(t, converse(conn))
	})
	must.Do(t, <-served)
}

func serve(l *net.TCPListener) error {
	if err := l.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	for i, reply := range replied {
		if _, err := io.WriteString(conn, reply); err != nil {
			return err
		}
		if i == len(said) {
			break
		}
		if line, err := r.ReadString('\n'); err != nil || line != said[i] {
			return fmt.Errorf("the server read %q, %v, want %q", line, err, said[i])
		}
	}
	return nil
}

func converse(conn net.Conn) error {
	r := bufio.NewReader(conn)
	for i, want := range replied {
		if line, err := r.ReadString('\n'); err != nil || line != want {
			return fmt.Errorf("the client read %q, %v, want %q", line, err, want)
		}
		if i == len(said) {
			break
		}
		if _, err := io.WriteString(conn, said[i]); err != nil {
			return err
		}
	}
	return nil
}

// queue accepts all packets of a queue and keeps them.
type queue struct {
	mu      sync.Mutex
	packets []segment
}

// segment is a queued TCP packet.
type segment struct {
	src, dst netip.AddrPort
	seq      uint32
	fin      bool
	synAck   bool
	payload  string
	hook     byte
	mark     uint32
}

func openQueue(t *testing.T, ns netns.NsHandle, number uint16) *queue {
	t.Helper()
	nfq, err := nfqueue.Open(&nfqueue.Config{
		NetNS: int(ns), NfQueue: number, MaxPacketLen: 0xffff, MaxQueueLen: 256,
		Copymode: nfqueue.NfQnlCopyPacket, WriteTimeout: time.Second,
	})
	must.Do(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		nfq.Close()
	})
	q := &queue{}
	must.Do(t, nfq.RegisterWithErrorFunc(ctx, func(a nfqueue.Attribute) int {
		s, err := parseSegment(*a.Payload)
		if err != nil {
			t.Errorf("queued: %v", err)
		}
		s.hook = *a.Hook
		if a.Mark != nil {
			s.mark = *a.Mark
		}
		q.mu.Lock()
		q.packets = append(q.packets, s)
		q.mu.Unlock()
		if err := nfq.SetVerdict(*a.PacketID, nfqueue.NfAccept); err != nil {
			t.Errorf("verdict: %v", err)
		}
		return 0
	}, func(err error) int {
		if ctx.Err() == nil {
			t.Errorf("queue: %v", err)
		}
		return 0
	}))
	return q
}

func parseSegment(b []byte) (segment, error) {
	var src, dst netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_TCP:
		src, _ = netip.AddrFromSlice(b[12:16])
		dst, _ = netip.AddrFromSlice(b[16:20])
		b = b[int(b[0]&0xf)*4:]
	case len(b) >= 40 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_TCP:
		src, _ = netip.AddrFromSlice(b[8:24])
		dst, _ = netip.AddrFromSlice(b[24:40])
		b = b[40:]
	default:
		return segment{}, fmt.Errorf("% x is no TCP packet", b)
	}
	return segment{
		src:     netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[0:])),
		dst:     netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
		seq:     binary.BigEndian.Uint32(b[4:]),
		fin:     b[13]&1 != 0,
		synAck:  b[13]&0x12 == 0x12,
		payload: string(b[int(b[12]>>4)*4:]),
	}, nil
}

// wantConversation checks that every line was queued at its hook, and nothing else but retransmissions. The client's
// packets go to server and are queued at clientHook.
func (q *queue) wantConversation(t *testing.T, server netip.AddrPort, clientHook byte) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	type position struct {
		src netip.AddrPort
		seq uint32
	}
	seen := make(map[position]bool)
	opened := false
	var in, out strings.Builder
	for _, s := range q.packets {
		if s.synAck {
			opened = s.dst != server
			continue
		}
		if s.payload == "" {
			t.Errorf("%v to %v: got no payload, want some", s.src, s.dst)
		}
		direction, hook := &out, byte(unix.NF_INET_POST_ROUTING)
		if s.dst == server {
			direction, hook = &in, clientHook
		}
		if s.hook != hook {
			t.Errorf("%v to %v %q: got hook %d, want %d", s.src, s.dst, s.payload, s.hook, hook)
		}
		if p := (position{s.src, s.seq}); !seen[p] {
			seen[p] = true
			direction.WriteString(s.payload)
		}
	}
	if !opened {
		t.Error("got no SYN-ACK of the server, want one")
	}
	if got, want := in.String(), strings.Join(said, ""); got != want {
		t.Errorf("from the client: got %q, want %q", got, want)
	}
	if got, want := out.String(), strings.Join(replied, ""); got != want {
		t.Errorf("from the server: got %q, want %q", got, want)
	}
}

// wantHelper checks the helper of a connection.
func wantHelper(t *testing.T, ns netns.NsHandle, dialled netip.AddrPort, want string) {
	t.Helper()
	conn, err := conntrack.Dial(&mdnetlink.Config{NetNS: int(ns)})
	must.Do(t, err)
	defer conn.Close()
	flows, err := conn.Dump(nil)
	must.Do(t, err)
	for _, f := range flows {
		to := netip.AddrPortFrom(f.TupleOrig.IP.DestinationAddress, f.TupleOrig.Proto.DestinationPort)
		if to == dialled {
			if f.Helper.Name != want {
				t.Errorf("got helper %q, want %q", f.Helper.Name, want)
			}
			return
		}
	}
	t.Errorf("got no connection to %v, want one", dialled)
}

func TestQueuesPayloadOfControlConnectionsAfterNAT(t *testing.T) {
	c := Config{Ports: example.Ports, Queue: example.Queue}
	const nops = "\x01\x01\x01\x01\x01\x01\x01\x01" // IPv4 options that do nothing
	redirect := "table inet mine { chain c { type nat hook prerouting priority -100; tcp dport 21 redirect to :4021; }; }"
	for _, tt := range []struct {
		name            string
		dialled, listen netip.AddrPort
		loopback        bool
		options         string
		setup           string
		passes          bool // not queued
	}{
		{name: "IPv4", dialled: netip.AddrPortFrom(server4, 21)},
		{name: "IPv6", dialled: netip.AddrPortFrom(server6, 21)},
		{name: "port in a range", dialled: netip.AddrPortFrom(server4, 2205)},
		{name: "IPv4 with options", dialled: netip.AddrPortFrom(server4, 21), options: nops},
		{name: "IPv4 loopback", dialled: netip.AddrPortFrom(server4, 21), loopback: true},
		{name: "IPv6 loopback", dialled: netip.AddrPortFrom(server6, 21), loopback: true},
		{name: "IPv4 DNAT", dialled: netip.AddrPortFrom(server4, 21), listen: netip.AddrPortFrom(server4, 4021), setup: redirect},
		{name: "IPv6 DNAT", dialled: netip.AddrPortFrom(server6, 21), listen: netip.AddrPortFrom(server6, 4021), setup: redirect},
		{name: "IPv4 other port", dialled: netip.AddrPortFrom(server4, 22), passes: true},
		{name: "IPv6 other port", dialled: netip.AddrPortFrom(server6, 22), passes: true},
		{name: "real port after DNAT", dialled: netip.AddrPortFrom(server4, 4021), setup: redirect, passes: true},
		{
			name: "port added while it runs", dialled: netip.AddrPortFrom(server4, 990),
			setup: "add element inet nfq_ftphelper ports { 990 }",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := newLab(t)
			clientHook := byte(unix.NF_INET_LOCAL_IN)
			if tt.loopback {
				client, clientHook = server, unix.NF_INET_POST_ROUTING
			}
			if !tt.listen.IsValid() {
				tt.listen = tt.dialled
			}
			apply(t, c)
			nft(t, tt.setup)
			q := openQueue(t, server, c.Queue)

			talk(t, client, tt.dialled, tt.listen, tt.options)

			if tt.passes {
				q.mu.Lock()
				defer q.mu.Unlock()
				if len(q.packets) > 0 {
					t.Errorf("got %d packets, want none", len(q.packets))
				}
				return
			}
			q.wantConversation(t, tt.listen, clientHook)
			wantHelper(t, server, tt.dialled, "sane")
		})
	}
}

// TestBypass has no program on the queue.
func TestBypass(t *testing.T) {
	client, _ := newLab(t)
	for _, r := range []Ruleset{Full, Lean} {
		testBypass(t, client, r)
	}
}

func testBypass(t *testing.T, client netns.NsHandle, r Ruleset) {
	apply(t, Config{Ports: example.Ports, Queue: example.Queue, Ruleset: r})
	for _, addr := range []netip.Addr{server4, server6} {
		to := netip.AddrPortFrom(addr, 21)
		talk(t, client, to, to, "")
	}
}

// TestPPTPIsForIPv4 has the second carrier.
func TestPPTPIsForIPv4(t *testing.T) {
	client, server := newLab(t)
	c := Config{Ports: example.Ports, Queue: example.Queue, Helper: "pptp"}
	apply(t, c)
	must.Do(t, Check(c))
	for addr, helper := range map[netip.Addr]string{server4: "pptp", server6: ""} {
		to := netip.AddrPortFrom(addr, 21)
		talk(t, client, to, to, "")
		wantHelper(t, server, to, helper)
	}
}
