package expect_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// heard is what a Listener has received, or why it ended.
type heard struct {
	expect.Event
	err error
}

// listen opens a Listener on the lab's host, until the test's end.
func (l *lab) listen() <-chan heard {
	l.t.Helper()
	var listener *expect.Listener
	l.do(func() (err error) { listener, err = expect.Listen(); return err })
	all, ended := make(chan heard, 1000), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			ev, err := listener.Receive()
			if errors.Is(err, os.ErrClosed) {
				return
			}
			all <- heard{ev, err}
		}
	}()
	l.t.Cleanup(func() {
		if err := listener.Close(); err != nil {
			l.t.Error(err)
		}
		<-ended
	})
	return all
}

// wantEvent waits for an event that has what want has, but for the seconds and the sender.
func wantEvent(t *testing.T, what string, all <-chan heard, want expect.Event) expect.Event {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case got := <-all:
			if got.err != nil {
				t.Fatalf("%s: %v", what, got.err)
			}
			ev := got.Event
			ev.Left, ev.Port = 0, 0
			if want.Kind == expect.Related {
				ev.Tuples = want.Tuples
			}
			if ev == want {
				return got.Event
			}
		case <-timeout:
			t.Fatalf("%s: there is no %+v", what, want)
		}
	}
}

// TestListen has data connections come, be dropped by a filter, stay away and be announced twice, and
// reads what conntrack says of it.
func TestListen(t *testing.T) {
	l := newLab(t, ours)
	err := l.host.Nft(t.Context(), "table inet f { chain o { type filter hook output priority 0; tcp dport 40001 drop; }; }")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		all := l.listen()
		m := l.connect(f.local, f.public, f.own)
		dial := func(x expect.Expectation) error {
			local := netip.AddrPortFrom(m.Client().Addr(), 0)
			c, err := l.host.Dial(t.Context(), local, x.Dst)
			if err == nil {
				c.Close()
			}
			return err
		}
		announce := func(port uint16) (x expect.Expectation, made, removed expect.Event) {
			t.Helper()
			x = expect.For(m, expect.Reply, port)
			if err := l.client.Announce(m, x, expect.Update{}); err != nil {
				t.Fatal(err)
			}
			made = expect.Event{Kind: expect.ExpectationNew, Master: m.Tuples[expect.Original], Expected: expect.Tuple{Src: netip.AddrPortFrom(x.Src, 0), Dst: x.Dst}}
			removed = made
			removed.Kind = expect.ExpectationDestroyed
			if got := wantEvent(t, "announced", all, made); got.Left != 300 || got.Port == 0 {
				t.Errorf("announced: %+v", got)
			}
			return x, made, removed
		}

		x, _, removed := announce(40000)
		dial(x) // is refused: nothing listens there
		if got := wantEvent(t, "used", all, removed); got.Left == 0 || got.Port != 0 {
			t.Errorf("used: %+v", got)
		}
		wantEvent(t, "used", all, expect.Event{Kind: expect.Related, Master: m.Tuples[expect.Original]})

		x, _, removed = announce(40001)
		go dial(x)
		if got := wantEvent(t, "dropped", all, removed); got.Left == 0 || got.Port != 0 {
			t.Errorf("dropped: %+v", got)
		}

		x, _, removed = announce(40002)
		if left, err := l.client.Expected(x); err != nil || left < 290*time.Second {
			t.Errorf("expected for %v, %v", left, err)
		}
		if err := l.client.SetTimeout(x, 1); err != nil {
			t.Fatal(err)
		}
		// Some kernels say so much later.
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			left, err := l.client.Expected(x)
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("it does not expire: %v, %v", left, err)
			}
			if left == 0 {
				break
			}
		}

		_, _, removed = announce(40003)
		x = expect.For(m, expect.Reply, 40004)
		if err := l.client.Announce(m, x, expect.Update{}); err != nil {
			t.Fatal(err)
		}
		if got := wantEvent(t, "replaced", all, removed); got.Left == 0 || got.Port != 0 {
			t.Errorf("replaced: %+v", got)
		}
		removed.Expected.Dst = x.Dst
		if err := l.client.Unexpect(x); err != nil {
			t.Fatal(err)
		}
		if got := wantEvent(t, "deleted", all, removed); got.Left == 0 || got.Port == 0 {
			t.Errorf("deleted: %+v", got)
		}

		family := map[bool]string{true: "ipv4", false: "ipv6"}[x.Src.Is4()]
		if _, err := l.host.Run(t.Context(), "", "conntrack", "-D", "-f", family, "-p", "tcp", "--orig-port-dst", "21"); err != nil {
			t.Fatal(err)
		}
		wantEvent(t, "the control connection", all, expect.Event{Kind: expect.Destroyed, Tuples: m.Tuples})
	}
}

// TestListenOtherZone has a control connection in another zone end, by every way of setting a zone. Its
// events are left out.
func TestListenOtherZone(t *testing.T) {
	l := newLab(t, helperOnly)
	all := l.listen()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, set := range []string{"ct zone set 5", "ct original zone set 5", "ct reply zone set 5", "ct zone set 0"} {
		err := l.host.Nft(ctx, "table inet z\ndelete table inet z\ntable inet z { chain o { type filter hook output priority -300; meta l4proto tcp "+set+"; }; }")
		if err != nil {
			t.Fatal(err)
		}
		listener, err := l.host.Listen(ctx, netip.MustParseAddrPort("127.0.0.1:21"))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := l.host.Dial(ctx, netip.MustParseAddrPort("192.0.2.1:50000"), netip.MustParseAddrPort("192.0.2.2:21"))
		if err != nil {
			t.Fatal(set, err)
		}
		conn.SetLinger(0)
		conn.Close()
		listener.Close()
		if _, err := l.host.Run(ctx, "", "conntrack", "-D", "-p", "tcp", "--orig-port-dst", "21"); err != nil {
			t.Fatal(set, err)
		}
	}
	if got := <-all; got.err != nil || got.Kind != expect.Destroyed {
		t.Fatalf("the end of the connection in zone 0: %+v", got)
	}
	select {
	case got := <-all:
		t.Errorf("another event: %+v", got)
	default:
	}
}

// TestClosing resets a control connection.
func TestClosing(t *testing.T) {
	l := newLab(t, ours)
	for _, f := range families {
		m := l.connect(f.local, f.public, f.own)
		if m.Closing {
			t.Error("it is closing from the start")
		}
		if _, err := l.host.Run(t.Context(), "", "ss", "-K", "dport", "=", ":21"); err != nil {
			t.Fatal(err)
		}
		if now, _, err := l.client.Lookup(m.Tuples[expect.Original]); err != nil || !now.Closing {
			t.Errorf("after a reset: %+v, %v", now, err)
		}
	}
}

// TestListenUnread checks that the kernel drops events which are not read, and says so.
func TestListenUnread(t *testing.T) {
	l := newLab(t, ours)
	var listener *expect.Listener
	l.do(func() (err error) { listener, err = expect.Listen(); return err })
	defer listener.Close()
	m := l.connect("192.0.2.1", "192.0.2.2:21", "127.0.0.1:21")
	x := expect.For(m, expect.Reply, 40000)
	for range 10_000 {
		if err := l.client.Announce(m, x, expect.Update{}); err != nil {
			t.Fatal(err)
		}
	}
	for n := 0; ; n++ {
		_, err := listener.Receive()
		if errors.Is(err, expect.ErrEventsLost) {
			break
		}
		if err != nil || n > 100_000 {
			t.Fatalf("after %d events: %v", n, err)
		}
	}
	for range 10 { // it goes on
		if _, err := listener.Receive(); err != nil {
			t.Fatal(err)
		}
	}
}
