package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// TestHang has the goroutine that serves a queue hang for a while: queries fail meanwhile, and
// succeed again afterwards.
func TestHang(t *testing.T) {
	host := netns.NewTestHost(t, "host")
	log, path := slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "control.sock")
	d := &daemon{settings: Settings{Control: path, Version: "v1"}, log: log, choice: backend.Plan{Rules: rules.Config{Queue: 7, Queues: 1}}}
	w := &worker{number: 7, engine: engine.New(engine.Config{})}
	w.queue = nfq.New(w.number, w.engine, log)
	d.workers = append(d.workers, w)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- host.Do(func() error { return w.queue.Run(ctx) }) }()
	<-w.queue.Ready()
	err := host.Do(func() (err error) {
		if d.server, err = d.newStatusServer(); err != nil {
			return err
		}
		d.server.serve(ruleState{})
		return nil
	})
	must.Do(t, err)

	client := control.NewClient(path)
	live := func() error { return client.Ready(t.Context()) }
	scrape := func() error {
		return client.Metrics(t.Context(), func(r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
	}
	must.Do(t, errors.Join(live(), scrape()))
	begun, goOn := make(chan struct{}), make(chan struct{})
	go w.queue.Do(t.Context(), func() {
		close(begun)
		<-goOn
	})
	<-begun
	if err := live(); err == nil || !strings.HasPrefix(err.Error(), "the daemon says: queue 7 has not been served for 2") {
		t.Errorf("live while the queue hangs: got %v, want queue 7 not served", err)
	}
	if err := scrape(); err == nil || !strings.HasPrefix(err.Error(), "the daemon says: metrics not available: queue 7 has not been served for 5") {
		t.Errorf("metrics while the queue hangs: got %v, want queue 7 not served", err)
	}
	close(goOn)
	if err := errors.Join(live(), scrape()); err != nil {
		t.Errorf("afterwards: got %v, want no error", err)
	}

	// At the end it stops being ready before the queue ends.
	d.server.state.Store(nil)
	if err := live(); err == nil || !strings.Contains(err.Error(), "is stopping") {
		t.Errorf("before the end: got %v, want that it is stopping", err)
	}
	stop()
	must.Do(t, <-ended)
	if err := scrape(); err == nil || !strings.Contains(err.Error(), "queue 7: "+nfq.ErrNotServed.Error()) {
		t.Errorf("after the end of the queue: got %v, want %v", err, nfq.ErrNotServed)
	}
	must.Do(t, d.server.close())
}

// TestLookup looks up a missing connection in conntrack, and does not look it up after the deadline.
func TestLookup(t *testing.T) {
	at := netip.MustParseAddrPort
	f := &engine.Flow{Tuples: [2]expect.Tuple{{Src: at("203.0.113.101:40000"), Dst: at("192.0.2.2:21")}, {Src: at("192.168.1.2:21"), Dst: at("203.0.113.101:40000")}}}
	var d statusServer
	if _, err := d.lookup(f, time.Now().Add(-time.Second)); !errors.Is(err, errNoTime) {
		t.Errorf("after the deadline: got %v, want %v", err, errNoTime)
	}
	ct, err := expect.Dial()
	must.Do(t, err)
	defer ct.Close()
	d.conntrack = ct
	if _, err := d.lookup(f, time.Now().Add(time.Minute)); !errors.Is(err, expect.ErrNoEntry) {
		t.Errorf("before the deadline: got %v, want %v", err, expect.ErrNoEntry)
	}
}

// TestEmit checks that emit never waits for a follower that does not read.
func TestEmit(t *testing.T) {
	d := statusServer{socket: &control.Socket{}}
	at := netip.MustParseAddrPort
	client, server, public := at("203.0.113.101:40000"), at("192.168.1.2:21"), at("192.0.2.2:21")
	master := &expect.Master{Tuples: [2]expect.Tuple{{Src: client, Dst: public}, {Src: server, Dst: client}}}
	ev := &engine.Event{Kind: engine.Refused, Master: master, Verb: parse.PORT, Announced: at("203.0.113.101:20"), Reason: engine.LowPort}
	f, err := d.Follow(time.Now())
	must.Do(t, err)
	for range 10_000 {
		d.emit(7, ev)
	}
	got := <-f.Events()
	want := control.Event{
		Time: got.Time, Queue: 7, Kind: "refused", Client: client, Server: server, Verb: "PORT", Announced: ev.Announced,
		Reason: "low_port", Why: "the port is below the lowest one allowed",
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if n := len(f.Events()) + int(f.Missed()); n != 9_999 {
		t.Errorf("got %d events buffered or missed, want 9999", n)
	}
	f.Close()
	if n := testing.AllocsPerRun(100, func() { d.emit(7, ev) }); n > 0 {
		t.Errorf("got %v allocations for an event, want 0", n)
	}
	without := statusServer{}
	without.emit(7, ev)
	if len(without.events.Refusals()) > 0 {
		t.Error("got kept events, want none without a control socket")
	}
}

// TestEventWords parses all events as JSON, and compares each value with the list of words.
func TestEventWords(t *testing.T) {
	at := netip.MustParseAddrPort
	master := &expect.Master{Tuples: [2]expect.Tuple{
		{Src: at("203.0.113.101:40000"), Dst: at("192.0.2.2:21")}, {Src: at("192.168.1.2:21"), Dst: at("203.0.113.101:40000")},
	}}
	check := func(ev control.Event) {
		text, err := json.Marshal(ev)
		must.Do(t, err)
		var fields map[string]any
		must.Do(t, json.Unmarshal(text, &fields))
		for key, value := range fields {
			if word, ok := value.(string); ok {
				if err := engine.IsWord(key, word); err != nil {
					t.Errorf("%v: %s", err, text)
				}
			} else if engine.IsWord(key, "") != nil {
				t.Errorf("%s: got another type than string: %s", key, text)
			}
		}
		if fields["kind"] == nil {
			t.Errorf("got no kind: %s", text)
		}
	}
	for kind := engine.Tracked; kind <= engine.Missed; kind++ {
		for verb := parse.PORT; verb.Announces(); verb++ {
			for _, reason := range engine.Reasons() {
				check(eventOf(7, &engine.Event{Kind: kind, Master: master, Verb: verb, Line: []byte("x"), Announced: at("192.168.1.2:30000"),
					Advertised: at("192.0.2.2:30000"), Expected: at("192.0.2.2:30000"), Reason: reason, Err: errors.New("x")}))
			}
		}
	}
	check(control.Event{Kind: control.KindMissed, Missed: 3})
}

// TestListenAnywhere listens at addresses that this host does not have.
func TestListenAnywhere(t *testing.T) {
	for _, at := range []string{"192.0.2.99:0", "[2001:db8::99]:0"} {
		l, err := listenAnywhere(netip.MustParseAddrPort(at))
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		l.Close()
	}
}
