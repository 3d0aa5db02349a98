package rules

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

var user = Config{Ports: example.Ports, Queue: 7, Ruleset: User}

func openEarly(t testing.TB, c Config, queue uint16, opts ...nftables.ConnOption) *Early {
	t.Helper()
	e, err := OpenEarly(c, queue, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// wantElements checks what is in both maps, in nft's words.
func wantElements(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, m := range []string{"adjusted4", "adjusted6"} {
		list := nft(t, "list map inet nfq_ftphelper "+m)
		if _, elements, any := strings.Cut(list, "elements = { "); any {
			elements, _, _ = strings.Cut(elements, " }")
			got = append(got, regexp.MustCompile(`,\s+`).Split(elements, -1)...)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the maps have %q, want %q", got, want)
	}
}

func TestEarlyElements(t *testing.T) {
	newNamespace(t)
	c := Config{Ports: example.Ports, Queue: 7, Queues: 4, Ruleset: User}
	apply(t, c)
	first, third := openEarly(t, c, 7), openEarly(t, c, 9)
	a4, b4 := netip.MustParseAddrPort("192.0.2.2:21"), netip.MustParseAddrPort("192.0.2.1:40000")
	a6, b6 := netip.MustParseAddrPort("[2001:db8::2]:21"), netip.MustParseAddrPort("[2001:db8::1]:40000")
	const (
		four = "192.0.2.2 . 21 . 192.0.2.1 . 40000 : jump queue"
		back = "192.0.2.1 . 40000 . 192.0.2.2 . 21 : jump queue"
		six  = "2001:db8::2 . 21 . 2001:db8::1 . 40000 : jump queue"
	)

	must(t, first.Remove(a4, b4)) // there is none
	for range 20 {                // kernels before 2023 may say EEXIST to any of them
		must(t, first.Add(a4, b4))
	}
	wantElements(t, four+"0")
	must(t, third.Add(b4, a4))
	must(t, third.Add(a6, b6))
	wantElements(t, four+"0", back+"2", six+"2")

	must(t, third.Add(a4, b4)) // in place of the first queue's
	wantElements(t, four+"2", back+"2", six+"2")
	must(t, first.Remove(a4, b4))
	must(t, first.Remove(a4, b4))
	wantElements(t, back+"2", six+"2")
	must(t, first.Add(a4, b4)) // the connection is a good one after errors of the kernel
	wantElements(t, four+"0", back+"2", six+"2")
	if err := Check(c); err != nil {
		t.Errorf("with elements: %v", err)
	}

	must(t, ClearEarly())
	wantElements(t)
	must(t, ClearEarly())

	// The rules may be loaded again while the connection is open.
	apply(t, c)
	must(t, third.Add(a6, b6))
	wantElements(t, six+"2")
}

func TestEarlyWithoutRules(t *testing.T) {
	newNamespace(t)
	a, b := netip.MustParseAddrPort("192.0.2.2:21"), netip.MustParseAddrPort("192.0.2.1:40000")
	e := openEarly(t, user, 7)
	for _, install := range []func(){func() {}, func() { apply(t, example) }} {
		install()
		must(t, ClearEarly())
		must(t, e.Remove(a, b))
		if err := e.Add(a, b); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "the ruleset user is not installed") {
			t.Errorf("Add: %v", err)
		}
	}
	apply(t, user)
	must(t, e.Add(a, b))
}

func TestOpenEarlyRefuses(t *testing.T) {
	for _, tt := range []struct {
		c     Config
		queue uint16
		want  string
	}{
		{Config{Ruleset: User}, 0, "no control port"},
		{example, 7, "the ruleset full queues nothing before conntrack"},
		{Config{Ports: example.Ports, Queue: 7, Ruleset: Lean}, 7, "the ruleset lean queues nothing before conntrack"},
		{Config{Ports: example.Ports, Ruleset: CTHelper}, 0, "the ruleset cthelper queues nothing"},
		{user, 6, "queue 6 is none of the 1 from 7 on"},
		{user, 8, "queue 8 is none of the 1 from 7 on"},
		{Config{Ports: example.Ports, Queue: 65535, Ruleset: User}, 65535, ""},
	} {
		e, err := OpenEarly(tt.c, tt.queue)
		wantError(t, err, tt.want)
		if err == nil {
			must(t, e.Close())
		}
	}
}

func TestEarlyFamilies(t *testing.T) {
	e := openEarly(t, user, 7)
	a, b := netip.MustParseAddrPort("192.0.2.2:21"), netip.MustParseAddrPort("[2001:db8::1]:40000")
	for _, do := range []func(src, dst netip.AddrPort) error{e.Add, e.Remove} {
		wantError(t, do(a, b), "not addresses of one family")
		wantError(t, do(b, a), "not addresses of one family")
		wantError(t, do(a, netip.AddrPort{}), "not addresses of one family")
	}
}

func TestEarlyNotPermitted(t *testing.T) {
	ns := newNamespace(t)
	apply(t, user)
	a, b := netip.MustParseAddrPort("192.0.2.2:21"), netip.MustParseAddrPort("192.0.2.1:40000")
	errs := make(chan error, 3)
	go func() {
		defer close(errs)
		runtime.LockOSThread() // until the thread ends
		if err := errors.Join(netns.Set(ns), dropNetAdmin()); err != nil {
			errs <- err
			return
		}
		e, err := OpenEarly(user, 7)
		if err != nil {
			errs <- err
			return
		}
		defer e.Close()
		errs <- e.Add(a, b)
		errs <- e.Remove(a, b)
		errs <- ClearEarly()
	}()
	n := 0
	for err := range errs {
		n++
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("%d: %v", n, err)
		}
	}
	if n != 3 {
		t.Errorf("%d errors, want 3", n)
	}
}

// wire counts packets before any rule of ours, and marks those that have come past -300.
const wire = `
	table inet wire {
		counter from_client { }
		counter from_server { }
		chain count {
			tcp dport 21 counter name from_client
			tcp sport 21 counter name from_server
		}
		chain prerouting { type filter hook prerouting priority -310; iif lo return; jump count; }
		chain output { type filter hook output priority -310; jump count; }
		chain prerouting_late { type filter hook prerouting priority -250; meta mark set 1; }
		chain output_late { type filter hook output priority -250; meta mark set 1; }
	}`

// counted returns how many packets of the connection the namespace has had.
func counted(t *testing.T, ns netns.NsHandle) (client, server int) {
	t.Helper()
	within(t, ns, func() {
		found := regexp.MustCompile(`packets (\d+)`).FindAllStringSubmatch(nft(t, "list counters table inet wire"), -1)
		if len(found) != 2 {
			t.Fatalf("%d counters", len(found))
		}
		client, _ = strconv.Atoi(found[0][1])
		server, _ = strconv.Atoi(found[1][1])
	})
	return client, server
}

// until waits for something that is about to come true.
func until(t *testing.T, what string, true func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !true(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// from returns the queued packets from an end of the connection, from the n-th queued packet on.
func (q *queue) from(src netip.AddrPort, n int) []segment {
	q.mu.Lock()
	defer q.mu.Unlock()
	var found []segment
	for _, s := range q.packets[n:] {
		if s.src == src {
			found = append(found, s)
		}
	}
	return found
}

// Of a connection that has the label and is in the map, every packet is queued, once: the
// server's before conntrack, the client's after it.
func TestEarlyQueued(t *testing.T) {
	for _, place := range []string{"server's host", "client's host", "loopback"} {
		for _, addr := range []netip.Addr{server4, server6} {
			t.Run(fmt.Sprintf("%s %v", place, addr), func(t *testing.T) { testEarlyQueued(t, place, addr) })
		}
	}
}

func testEarlyQueued(t *testing.T, place string, addr netip.Addr) {
	clientNS, serverNS := newLab(t)
	here := serverNS // where the rules are
	clientHook, serverHook := byte(unix.NF_INET_PRE_ROUTING), byte(unix.NF_INET_LOCAL_OUT)
	switch place {
	case "client's host":
		here, clientHook, serverHook = clientNS, serverHook, clientHook
	case "loopback":
		clientNS, clientHook = serverNS, serverHook
	}
	within(t, here, func() {
		apply(t, user)
		nft(t, wire)
	})
	q := openQueue(t, here, user.Queue)
	early := openEarly(t, user, user.Queue, nftables.WithNetNSFd(int(here)))

	server := netip.AddrPortFrom(addr, 21)
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(server))
	must(t, err)
	defer l.Close()
	must(t, l.SetDeadline(time.Now().Add(20*time.Second)))
	var conn net.Conn
	within(t, clientNS, func() {
		conn, err = net.DialTimeout("tcp", server.String(), 20*time.Second)
		must(t, err)
	})
	defer conn.Close()
	peer, err := l.Accept()
	must(t, err)
	defer peer.Close()
	client := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	say := func(from, to net.Conn, line string) {
		t.Helper()
		must(t, to.SetDeadline(time.Now().Add(20*time.Second)))
		_, err := from.Write([]byte(line))
		must(t, err)
		got, err := bufio.NewReader(to).ReadString('\n')
		if err != nil || got != line {
			t.Fatalf("got %q, %v, want %q", got, err, line)
		}
	}

	say(peer, conn, "220 ready\r\n")
	until(t, "the greeting is acknowledged", func() bool { n, _ := counted(t, here); return n >= 3 })
	for _, s := range append(q.from(client, 0), q.from(server, 0)...) {
		if s.payload == "" || s.mark != 1 {
			t.Errorf("before the daemon keeps the numbers this is queued: %+v", s)
		}
	}
	if len(q.from(server, 0)) == 0 {
		t.Error("the greeting is not queued")
	}

	within(t, here, func() {
		ct, err := expect.Dial()
		must(t, err)
		defer ct.Close()
		m, _, err := ct.Lookup(expect.Tuple{Src: client, Dst: server})
		must(t, err)
		must(t, ct.Update(m, expect.Update{SetLabel: UserLabel}))
		must(t, early.Add(server, client))
		must(t, early.Add(server, client))
	})
	q.mu.Lock()
	before := len(q.packets)
	q.mu.Unlock()
	clientBefore, serverBefore := counted(t, here)

	// Time for acknowledgements that carry nothing.
	say(conn, peer, "PASV\r\n")
	until(t, "PASV is acknowledged", func() bool { _, n := counted(t, here); return n > serverBefore })
	clientThen, _ := counted(t, here)
	say(peer, conn, "227 Entering Passive Mode (192,0,2,2,4,1)\r\n")
	until(t, "227 is acknowledged", func() bool { n, _ := counted(t, here); return n > clientThen })
	must(t, conn.Close())
	if n, err := peer.Read(make([]byte, 1)); err == nil {
		t.Errorf("the server read %d bytes more", n)
	}
	must(t, peer.Close())

	ended := func(packets []segment) bool {
		return slices.ContainsFunc(packets, func(s segment) bool { return s.fin })
	}
	var fromClient, fromServer []segment
	var clientAll, serverAll int
	until(t, "both ends are closed, and every packet has been queued once", func() bool {
		fromClient, fromServer = q.from(client, before), q.from(server, before)
		clientAll, serverAll = counted(t, here)
		return ended(fromClient) && ended(fromServer) &&
			len(fromClient) == clientAll-clientBefore && len(fromServer) == serverAll-serverBefore
	})
	for _, s := range fromClient {
		if s.mark != 1 || s.hook != clientHook {
			t.Errorf("from the client, not after conntrack at hook %d: %+v", clientHook, s)
		}
	}
	for _, s := range fromServer {
		if s.mark != 0 || s.hook != serverHook {
			t.Errorf("from the server, not before conntrack at hook %d: %+v", serverHook, s)
		}
	}
	for _, packets := range [][]segment{fromClient, fromServer} {
		if !slices.ContainsFunc(packets, func(s segment) bool { return s.payload == "" && !s.fin }) {
			t.Errorf("no acknowledgement among %+v", packets)
		}
	}
}

// How long it takes to add an element and to remove it, with others in the map.
func BenchmarkEarly(b *testing.B) {
	for _, others := range []int{0, 100, 1000, 10000} {
		b.Run(strconv.Itoa(others), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			home, err := netns.Get()
			if err != nil {
				b.Fatal(err)
			}
			defer home.Close()
			ns, err := netns.New()
			if err != nil {
				b.Fatal(err)
			}
			defer ns.Close()
			defer netns.Set(home)
			if _, err := Apply(user); err != nil {
				b.Fatal(err)
			}
			e := openEarly(b, user, 7)
			end := func(i int) netip.AddrPort {
				return netip.AddrPortFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0a000000+uint32(i)))), 21)
			}
			for i := range others {
				if err := e.Add(end(i), end(i+1)); err != nil {
					b.Fatal(err)
				}
			}
			var add, remove time.Duration
			for b.Loop() {
				start := time.Now()
				if err := e.Add(end(1<<20), end(0)); err != nil {
					b.Fatal(err)
				}
				added := time.Now()
				if err := e.Remove(end(1<<20), end(0)); err != nil {
					b.Fatal(err)
				}
				add, remove = add+added.Sub(start), remove+time.Since(added)
			}
			b.ReportMetric(float64(add.Microseconds())/float64(b.N), "µs/add")
			b.ReportMetric(float64(remove.Microseconds())/float64(b.N), "µs/remove")
		})
	}
}
