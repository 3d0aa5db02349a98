package netns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// The tests in this file have one side send the first part of a line that has to
// be rewritten, so that the router holds it, and not the rest.

// pauser writes a line of a server in two parts and waits in between.
type pauser struct {
	armed  atomic.Bool
	paused chan struct{}
	goOn   chan struct{}
	over   chan struct{}
}

func (p *pauser) write(conn *net.TCPConn, text string) error {
	if !strings.HasPrefix(text, "227 ") || !p.armed.CompareAndSwap(true, false) {
		return writeOnce(conn, text)
	}
	half := halfOf(text)
	if err := writeSegment(conn, half); err != nil {
		return err
	}
	p.paused <- struct{}{}
	select {
	case <-p.goOn:
	case <-p.over:
		return fmt.Errorf("%q was to be followed by something", half)
	}
	return writeOnce(conn, text[len(half):])
}

// halfOf is the line up to the middle of its address.
func halfOf(line string) string {
	return line[:strings.IndexByte(line, ',')+len(",1")]
}

// halfLine is a control connection on which one side has sent half a line.
type halfLine struct {
	sender, receiver *net.TCPConn
	half             string
	before           uint64 // bytes that had arrived before it
	// finish sends the rest, and wants both sides to get along with what arrives.
	finish func()
}

// arrived says whether the half has arrived, and nothing behind it.
func (h halfLine) arrived(t testing.TB) bool {
	t.Helper()
	info, err := tcpInfo(h.receiver)
	must.Do(t, err)
	switch n := info.Bytes_received - h.before; n {
	case 0:
		return false
	case uint64(len(h.half)):
		return true
	default:
		t.Fatalf("%d bytes arrived of %q", n, h.half)
		return false
	}
}

func (h halfLine) wait(t testing.TB, timeout time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(timeout); !h.arrived(t); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q has not arrived", h.half)
		}
	}
}

// dialogue is a client and a server that can stop in the middle of a line.
type dialogue struct {
	client *scriptedClient
	server *scriptedServer
	pauser *pauser
	lab    *Lab
}

func startDialogue(t *testing.T, lab *Lab) dialogue {
	t.Helper()
	p := &pauser{paused: make(chan struct{}), goOn: make(chan struct{}), over: make(chan struct{})}
	server := lab.serve(t, script{write: p.write})
	t.Cleanup(func() { close(p.over) })
	client := lab.login(t)
	return dialogue{client, server, p, lab}
}

// fetch makes a passive and an active transfer.
func (d dialogue) fetch() {
	d.client.t.Helper()
	d.client.wantFiles(d.lab.ServerAddress, PASV, PORT)
}

// halve has one side send half a line.
func (d dialogue) halve(verb Verb) halfLine {
	t := d.client.t
	t.Helper()
	received := func(conn *net.TCPConn) uint64 {
		info, err := tcpInfo(conn)
		must.Do(t, err)
		return info.Bytes_received
	}
	serverConn := d.server.connections()[0]
	if verb == PASV {
		h := halfLine{sender: serverConn, receiver: d.client.conn, before: received(d.client.conn)}
		d.pauser.armed.Store(true)
		d.client.pipeline("PASV")
		<-d.pauser.paused
		_, sent := d.server.lines()
		h.half = halfOf(sent[len(sent)-1])
		h.finish = func() {
			d.pauser.goOn <- struct{}{}
			if at := d.client.wantPassive(PASV); at.Addr() != d.lab.Addresses.Server.Addr() {
				t.Errorf("the client was told %s: the line did not stay as it was", at)
			}
		}
		return h
	}
	line := portCommand(netip.AddrPortFrom(d.client.ownAddress(), 1025))
	h := halfLine{sender: d.client.conn, receiver: serverConn, before: received(serverConn), half: halfOf(line)}
	d.client.send(h.half)
	h.finish = func() {
		d.client.send(line[len(h.half):] + "\r\n")
		d.client.want("200")
		received, _ := d.server.lines()
		if got := received[len(received)-1]; got != line {
			t.Errorf("the server got %q, not %q", got, line)
		}
	}
	return h
}

// TestRestOfLineIsLate sends the rest of a line when the hold time is long over.
// The first part has passed by then, unchanged, so the line stays as it was; and
// the connection goes on.
func TestRestOfLineIsLate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		holdTime time.Duration
		flags    []string
	}{
		{500 * time.Millisecond, nil},
		{1200 * time.Millisecond, []string{"--hold-time", "1.2s"}},
	} {
		for _, verb := range []Verb{PASV, PORT} {
			t.Run(fmt.Sprintf("%s/%s", verb, test.holdTime), func(t *testing.T) {
				t.Parallel()
				lab := newLab(t, Config{
					Situation: DNATMasquerade, Family: IPv4, Helper: Ours, Daemon: Daemon{Flags: test.flags},
				})
				d := startDialogue(t, lab)
				d.fetch()
				start := time.Now()
				half := d.halve(verb)
				half.wait(t, test.holdTime+Scale(2*time.Second))
				if waited := time.Since(start); waited < test.holdTime {
					t.Errorf("the first part arrived after %s, sooner than %s", waited, test.holdTime)
				}
				half.finish()
				d.client.do("200", "NOOP")
				d.fetch()
				d.client.quit()
				wantNothingInvalid(t, lab.Routers...)
				counts := stopAndCount(t, lab.ServerRouter())
				if counts["hold_timeouts"] != 1 || counts["failed"] != 1 || counts["expected"] != 4 {
					t.Errorf("want one line given up, and four helped: %v", counts)
				}
			})
		}
	}
}

// TestStopWhileHolding takes the daemon away while it holds the first part of a
// line. If it is stopped, it lets go of that; if it is killed, it is lost with it,
// and has to be sent again. Either way the connection goes on.
func TestStopWhileHolding(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"stopped", "killed"} {
		for _, verb := range []Verb{PASV, PORT} {
			t.Run(fmt.Sprintf("%s/%s", verb, how), func(t *testing.T) {
				t.Parallel()
				stopWhileHolding(t, how, verb)
			})
		}
	}
}

func stopWhileHolding(t *testing.T, how string, verb Verb) {
	lab := newLab(t, Config{
		Situation: DNATMasquerade, Family: IPv4, Helper: Ours,
		Daemon: Daemon{Flags: []string{"--hold-time", "1h"}},
	})
	if how == "stopped" {
		neverRetransmit(t, lab.Client)
		neverRetransmit(t, lab.Server)
	}
	d := startDialogue(t, lab)
	d.fetch()
	half := d.halve(verb)
	router, ctx := lab.ServerRouter(), testContext(t, time.Minute)
	waitHeld(t, router)
	if half.arrived(t) {
		t.Fatalf("%q was not held", half.half)
	}

	if how == "stopped" {
		must.Do(t, router.StopDaemon(ctx))
	} else if err := router.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	half.wait(t, Scale(5*time.Second))
	if info, err := tcpInfo(half.sender); err != nil || how == "stopped" && info.Total_retrans > 0 {
		t.Errorf("what arrived may have been sent again: %v", err)
	}
	half.finish()
	d.client.do("200", "NOOP")

	must.Do(t, router.StartDaemon(ctx))
	d.client.do("200", "NOOP")
	d.fetch()
	d.client.quit()
	wantNothingInvalid(t, lab.Routers...)
}

// waitHeld waits until the router's daemon holds a packet, and not just because it
// has not looked at it yet.
func waitHeld(t testing.TB, r *Router) {
	t.Helper()
	steady := 0
	for deadline := time.Now().Add(Scale(5 * time.Second)); steady < 10; time.Sleep(Scale(5 * time.Millisecond)) {
		waiting, err := r.WaitingPackets()
		must.Do(t, err)
		if steady++; waiting == 0 {
			steady = 0
		}
		if time.Now().After(deadline) {
			t.Fatal("no packet is held")
		}
	}
}
