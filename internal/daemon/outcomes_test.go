package daemon

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// table is a conntrack that has what a test has put there.
type table struct {
	expected map[netip.AddrPort]time.Duration
	masters  map[expect.Tuple]*expect.Master
}

func (t *table) Expected(e expect.Expectation) (time.Duration, error) {
	if !e.Src.IsValid() {
		return 0, fmt.Errorf("%+v has no source", e)
	}
	return t.expected[e.Dst], nil
}

func (t *table) Lookup(tuple expect.Tuple) (*expect.Master, expect.Direction, error) {
	if m := t.masters[tuple]; m != nil {
		return m, expect.Original, nil
	}
	return nil, expect.Original, expect.ErrNoEntry
}

func (t *table) Close() error { return nil }

// outcomesTest has one control connection, and takes down what is published.
type outcomesTest struct {
	*testing.T
	*outcomes
	table    table
	master   *expect.Master
	now      time.Time
	events   []control.Event
	warnings int
}

func newOutcomesTest(t *testing.T) *outcomesTest {
	at := netip.MustParseAddrPort
	client := at("203.0.113.101:40000")
	o := &outcomesTest{T: t, now: time.Now(), master: &expect.Master{Tuples: [2]expect.Tuple{
		{Src: client, Dst: at("192.0.2.2:21")}, {Src: at("192.168.1.2:21"), Dst: client},
	}}}
	o.table = table{make(map[netip.AddrPort]time.Duration), map[expect.Tuple]*expect.Master{o.master.Tuples[0]: o.master}}
	o.outcomes = newOutcomes(&o.table)
	o.publish = func(ev control.Event) { o.events = append(o.events, ev) }
	o.warn = func(string, ...any) { o.warnings++ }
	o.find = func(t expect.Tuple) (uint16, engine.Flow, bool) {
		if t != o.master.Tuples[0] {
			return 0, engine.Flow{}, false
		}
		return 7, engine.Flow{Tuples: o.master.Tuples, Expected: 3, Refused: 1}, true
	}
	return o
}

// announce has the server announce a port, which conntrack expects.
func (o *outcomesTest) announce(port uint16) (removed expect.Event) {
	x := expect.For(o.master, expect.Reply, port)
	ev := &engine.Event{Kind: engine.Expected, Master: o.master, Verb: parse.Reply227, Announced: netip.AddrPortFrom(o.master.Server().Addr(), port), Advertised: x.Dst, Expected: x.Dst}
	o.table.expected[x.Dst] = 300 * time.Second
	report := eventOf(7, ev)
	report.Time = o.now
	made := expect.Event{Kind: expect.ExpectationNew, Master: x.Master, Expected: expect.Tuple{Src: netip.AddrPortFrom(x.Src, 0), Dst: x.Dst}, Left: 300, Port: 1}
	o.take(made, o.now)
	o.announced(ev, report)
	made.Kind, made.Port = expect.ExpectationDestroyed, 0
	return made
}

// remove has conntrack remove an expectation.
func (o *outcomesTest) remove(ev expect.Event) {
	delete(o.table.expected, ev.Expected.Dst)
	o.take(ev, o.now)
}

func (o *outcomesTest) connect(port uint16, from string) {
	dst := netip.AddrPortFrom(o.master.Tuples[0].Dst.Addr(), port)
	o.take(expect.Event{Kind: expect.Related, Master: o.master.Tuples[0], Tuples: [2]expect.Tuple{{Src: netip.MustParseAddrPort(from), Dst: dst}}}, o.now)
}

// pass has time pass.
func (o *outcomesTest) pass(d time.Duration) {
	o.now = o.now.Add(d)
	o.sweep(o.now)
}

// want compares what was published since the last call.
func (o *outcomesTest) want(lines ...string) {
	o.Helper()
	var got []string
	for _, ev := range o.events {
		if ev.Queue != 7 && ev.Kind != control.KindMissed || ev.Kind != control.KindMissed && ev.Client != o.master.Client() {
			o.Errorf("published for another one: %+v", ev)
		}
		got = append(got, strings.TrimSpace(ev.Kind+" "+ev.Reason)+": "+ev.Describe())
	}
	o.events = nil
	if strings.Join(got, "\n") != strings.Join(lines, "\n") {
		o.Errorf("published\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
	if len(o.opened)+len(o.evicted) > 0 && lines != nil {
		o.Errorf("%d expectations are still there, %d evicted", len(o.opened), len(o.evicted))
	}
}

// TestOutcomes covers every outcome of an expectation.
func TestOutcomes(t *testing.T) {
	o := newOutcomesTest(t)
	o.want()

	o.remove(o.announce(1024))
	o.connect(1024, "203.0.113.101:5000")
	o.pass(time.Hour)
	o.want("used: 227 192.168.1.2:1024: data connection from 203.0.113.101:5000")

	o.announce(1025) // the event of its removal is lost, or comes late
	o.connect(1025, "203.0.113.101:5001")
	o.want("used: 227 192.168.1.2:1025: data connection from 203.0.113.101:5001")

	o.connect(1026, "203.0.113.101:5002") // an earlier daemon's
	o.want("used: data connection from 203.0.113.101:5002 to 192.0.2.2:1026")

	removal := o.announce(1027)
	removal.Left = 0
	o.pass(300 * time.Second)
	o.want()
	o.remove(removal)
	o.pass(settleTime + 1)
	o.want("expired timeout: 227 192.168.1.2:1027: no data connection came within 300 s")

	late := o.announce(1028) // the kernel has it for longer, and drops it without a word
	o.pass(301 * time.Second)
	o.pass(10 * time.Second)
	o.want()
	delete(o.table.expected, late.Expected.Dst)
	o.pass(304 * time.Second)
	o.want("expired timeout: 227 192.168.1.2:1028: no data connection came within 611 s")
	o.take(late, o.now)
	o.pass(time.Hour)
	o.want()

	o.remove(o.announce(1029))
	o.pass(time.Second)
	o.want()
	o.pass(settleTime)
	o.want("expired dropped: 227 192.168.1.2:1029: the data connection came, and a filter on this host dropped it: run nfq-ftphelper doctor")

	removal = o.announce(1030)
	removal.Left = 299
	o.remove(removal)
	removal = o.announce(1031)
	o.now = o.now.Add(time.Second)
	o.remove(removal)
	o.connect(1031, "203.0.113.101:5003")
	o.pass(settleTime)
	o.want("used: 227 192.168.1.2:1031: data connection from 203.0.113.101:5003",
		"expired replaced: 227 192.168.1.2:1030: no data connection came before the next one was announced")

	removal = o.announce(1032)
	removal.Port = 1234
	o.remove(removal)
	o.pass(settleTime + 1)
	o.want("expired deleted: 227 192.168.1.2:1032: another program removed the expectation")

	removal = o.announce(1033)
	removal.Port = 1
	o.remove(removal)
	o.announce(1033) // the same place again
	o.connect(1033, "203.0.113.101:5004")
	o.want("expired replaced: 227 192.168.1.2:1033: no data connection came before the next one was announced",
		"used: 227 192.168.1.2:1033: data connection from 203.0.113.101:5004")

	removal = o.announce(1034)
	delete(o.table.masters, o.master.Tuples[0])
	o.take(expect.Event{Kind: expect.Destroyed, Tuples: o.master.Tuples}, o.now)
	o.remove(removal)
	o.pass(settleTime + 1)
	o.want("closed: 3 data connections, 1 refused",
		"expired closed: 227 192.168.1.2:1034: no data connection came before the control connection closed")
}

// TestClosed checks that a control connection is reported as closed once, however that shows.
func TestClosed(t *testing.T) {
	o := newOutcomesTest(t)
	tuple := o.master.Tuples[0]
	track := func() {
		o.table.masters[tuple] = o.master
		o.master.Closing = false
		o.tracked(&engine.Event{Kind: engine.Tracked, Master: o.master})
		o.poll()
		o.want()
	}
	closing := func() {
		o.master.Closing = true
		o.poll()
		o.want("closed: 3 data connections, 1 refused")
		o.tracked(&engine.Event{Kind: engine.Tracked, Master: o.master}) // found again by a late packet
		o.poll()
		o.want()
	}
	destroy := func() { o.take(expect.Event{Kind: expect.Destroyed, Tuples: o.master.Tuples}, o.now) }
	for _, known := range []bool{true, false} {
		track()
		closing()
		if known {
			delete(o.table.masters, tuple)
		}
		destroy()
		o.poll()
		o.want()

		track()
		if known {
			delete(o.table.masters, tuple)
			o.poll()
		}
		destroy()
		o.poll()
		o.want("closed: 3 data connections, 1 refused")

		track() // older than the listener: there are no events of it
		closing()
		delete(o.table.masters, tuple)
		o.poll()
		o.want()
		track()
		delete(o.table.masters, tuple)
		o.poll()
		o.want("closed: 3 data connections, 1 refused")
		o.poll()
	}
	other := o.master.Tuples
	other[0].Src = netip.MustParseAddrPort("203.0.113.102:40000")
	o.take(expect.Event{Kind: expect.Destroyed, Tuples: other}, o.now)
	o.want()
	if len(o.controls) > 0 {
		t.Errorf("got %d connections, want 0", len(o.controls))
	}
	o.pass(settleTime + time.Second)
	if len(o.ended) > 0 {
		t.Errorf("got %d ended connections, want 0", len(o.ended))
	}
}

// TestEventsLost checks that lost events are reported, and the state is right afterwards.
func TestEventsLost(t *testing.T) {
	o := newOutcomesTest(t)
	o.announce(1024)
	removal := o.announce(1025)
	delete(o.table.expected, removal.Expected.Dst)
	o.lost, o.unsure = 1, true
	o.pass(time.Second)
	if len(o.events) != 1 || o.events[0].Missed != 1 || o.warnings != 1 || len(o.opened) != 1 {
		t.Errorf("got %+v, %d warnings, %d opened; want 1 missed, 1, 1", o.events, o.warnings, len(o.opened))
	}
	o.events = nil
	o.connect(1024, "203.0.113.101:5000")
	o.want("used: 227 192.168.1.2:1024: data connection from 203.0.113.101:5000")
	for range 59 {
		o.unsure = true
		o.pass(time.Second)
	}
	if len(o.events) != 59 || o.warnings != 1 {
		t.Errorf("got %d events, %d warnings; want 59, 1", len(o.events), o.warnings)
	}
	o.unsure = true
	o.pass(time.Second)
	if o.warnings != 2 {
		t.Errorf("after a minute: got %d warnings, want 2", o.warnings)
	}
	if o.losses() != 1 {
		t.Errorf("got %d losses, want 1", o.losses())
	}
}

// BenchmarkAnnounced checks what an engine does for outcomes.
func BenchmarkAnnounced(b *testing.B) {
	o := newOutcomesTest(&testing.T{})
	o.publish = func(control.Event) {}
	for b.Loop() {
		o.announce(1024)
		o.connect(1024, "203.0.113.101:5000")
	}
}
