package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// fake is a Daemon.
type fake struct {
	Bus
	flows   []Flow
	err     error
	waits   chan struct{} // if there is one, Ready waits for a value
	waiting atomic.Int32
}

func (f *fake) Live(context.Context) error { return f.err }
func (f *fake) Ready(ctx context.Context) error {
	if f.waits != nil {
		f.waiting.Add(1)
		<-f.waits
	}
	return f.err
}
func (f *fake) Version() Version { return Version{Version: "v1", Go: "go1"} }
func (f *fake) Status(context.Context) (Status, error) {
	return Status{Version: "v1", Ready: true, Refusals: f.Refusals()}, f.err
}
func (f *fake) Flows(_ context.Context, yield func(Flow) error) (int, error) {
	for _, flow := range f.flows {
		if err := yield(flow); err != nil {
			return 0, err
		}
	}
	return 3, f.err
}

// start serves a fake on a socket until the test's end.
func start(t *testing.T, d *fake) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "run", "control.sock")
	l, err := Listen(path)
	must.Do(t, err)
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "numbers") })
	s := Serve(l, NewHandler(d, metrics), slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("got %s after Close, want it removed", path)
		}
	})
	return path
}

// say sends text on a new connection and returns the answer.
func say(t *testing.T, path, text string) string {
	t.Helper()
	c, err := net.Dial("unix", path)
	must.Do(t, err)
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Log(err) // it has answered already
	}
	must.Do(t, c.SetReadDeadline(time.Now().Add(2*readTimeout)))
	answer, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%.50q: %v", text, err)
	}
	return string(answer)
}

// TestRequests sends right and wrong requests.
func TestRequests(t *testing.T) {
	t.Parallel()
	d := &fake{}
	path := start(t, d)
	const end = " HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n"
	for _, c := range []struct{ request, want string }{
		{"GET /livez" + end + "\r\n", "200 OK"},
		{"GET /readyz" + end + "\r\n", "\r\nok\n"},
		{"GET /metrics" + end + "\r\n", "numbers\n"},
		{"GET /v1/status" + end + "\r\n", `{"version":"v1","go":"","started":"0001-01-01T00:00:00Z","ready":true,`},
		{"GET /v1/events?since=yesterday" + end + "\r\n", `{"error":"since=\"yesterday\" is not a time such as 2006-01-02T15:04:05Z"}`},
		{"GET /v1/events?follow=perhaps" + end + "\r\n", `{"error":"follow=\"perhaps\" is neither yes nor no"}`},
		{"GET /v1/version" + end + "\r\n", `{"version":"v1","go":"go1"}`},
		{"GET /v1/flows" + end + "\r\n", `],"closing":0,"unchecked":3}`},
		{"GET /v2" + end + "\r\n", `{"error":"unknown path \"/v2\": the paths are /livez, /metrics, /readyz, /v1/events, /v1/flows, /v1/status, /v1/version"}`},
		{"POST /livez" + end + "\r\n", `405 Method Not Allowed`},
		{"OPTIONS *" + end + "\r\n", `405 Method Not Allowed`},
		{"DELETE /livez" + end + "\r\n", `{"error":"the method \"DELETE\" is not served: use GET"}`},
		{"GET /livez" + end + "Content-Length: 5\r\n\r\nhello", `{"error":"a request has no body here"}`},
		{"GET /livez" + end + "Transfer-Encoding: chunked\r\n\r\n", `{"error":"a request has no body here"}`},
		{"GET /livez" + end + "Content-Length: 5\r\n\r\n", `{"error":"a request has no body here"}`}, // which never comes
		{"GET /" + strings.Repeat("x", 1<<20) + end + "\r\n", "431 Request Header Fields Too Large"},
		{"GET /livez" + end + strings.Repeat("X: y\r\n", 1<<16) + "\r\n", "431 Request Header Fields Too Large"},
		{"nonsense\r\n\r\n", "400 Bad Request"},
		{"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "400 Bad Request"},
	} {
		if answer := say(t, path, c.request); !strings.Contains(answer, c.want) {
			t.Errorf("%.60q is answered with\n%s\nwant %s", c.request, answer, c.want)
		}
	}
	d.err = errors.New("queue 7 sleeps")
	for _, p := range []string{PathLive, PathReady, PathFlows} {
		if answer := say(t, path, "GET "+p+end+"\r\n"); !strings.Contains(answer, "503 ") || !strings.Contains(answer, `{"error":"queue 7 sleeps"}`) {
			t.Errorf("%s: got the answer\n%s", p, answer)
		}
	}
}

// TestSlow has many clients that send half a request: they get an error, and others are served meanwhile.
func TestSlow(t *testing.T) {
	t.Parallel()
	path := start(t, &fake{})
	var all sync.WaitGroup
	var refused atomic.Int32
	for range maxConns { // there is room for no more
		c, err := net.Dial("unix", path)
		must.Do(t, err)
		defer c.Close()
		if _, err := io.WriteString(c, "GET /livez HT"); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			answer, err := io.ReadAll(c)
			switch {
			case err == nil && strings.Contains(string(answer), `408 Request Timeout`) && strings.Contains(string(answer), `{"error":"the request took too long to arrive"}`):
				refused.Add(1)
			case err != nil && !errors.Is(err, unix.ECONNRESET) || len(answer) > 0:
				t.Errorf("half a request: got %v and the answer\n%s", err, answer)
			}
		})
	}
	client := NewClient(path)
	client.Timeout = readTimeout / 2
	if err := client.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	all.Wait()
	if n := refused.Load(); n != maxConns-1 { // one has made room
		t.Errorf("got %d clients refused as too slow, want %d", n, maxConns-1)
	}
}

// TestManyClients has more clients at once than maxConns: the last one waits, and none is refused.
func TestManyClients(t *testing.T) {
	t.Parallel()
	d := &fake{waits: make(chan struct{})}
	path := start(t, d)
	var all sync.WaitGroup
	for range maxConns + 1 {
		all.Go(func() {
			if err := NewClient(path).Ready(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	for d.waiting.Load() < maxConns {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	if n := d.waiting.Load(); n != maxConns {
		t.Errorf("got %d requests answered at a time, want %d", n, maxConns)
	}
	for range maxConns + 1 {
		d.waits <- struct{}{}
	}
	all.Wait()
}

// TestRejectPeer has another user send a request, which the socket's mode permits.
func TestRejectPeer(t *testing.T) {
	path := start(t, &fake{})
	if mode := stat(t, path).Mode(); mode != 0o600|os.ModeSocket {
		t.Errorf("got mode %s of the socket, want 0600", mode)
	}
	for p := path; p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		must.Do(t, os.Chmod(p, 0o777))
	}
	answer := make(chan string)
	go func() {
		// The kernel knows users by thread; this one ends with the function.
		runtime.LockOSThread()
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			answer <- errno.Error()
			return
		}
		answer <- say(t, path, "GET /livez HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n")
	}()
	if answer := <-answer; !strings.Contains(answer, "403 Forbidden") || !strings.Contains(answer, "user 65534 is not permitted") {
		t.Errorf("another user: got the answer\n%s", answer)
	}
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	file, err := os.Lstat(path)
	must.Do(t, err)
	return file
}

// TestListen has several daemons want the same place.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	first, err := Listen(path)
	must.Do(t, err)
	if _, err := Listen(path); err == nil || err.Error() != "another daemon serves "+path+": choose another with --control" {
		t.Errorf("path of another daemon: got %v", err)
	}
	// It dies.
	must.Do(t, first.UnixListener.Close())
	if err := NewClient(path).Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "has died: start the daemon (nfq-ftphelper run --rules)") {
		t.Errorf("query of a dead daemon: got %v", err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatalf("path of a dead daemon: got %v, want no error", err)
	}
	// What is not its own stays.
	must.Do(t, os.Remove(path))
	third, err := Listen(path)
	must.Do(t, err)
	must.Do(t, second.Close())
	stat(t, path)
	must.Do(t, third.Close())
	if err := NewClient(path).Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no daemon answers: "+path) {
		t.Errorf("query without a daemon: got %v", err)
	}

	must.Do(t, os.WriteFile(path, nil, 0o600))
	for path, want := range map[string]string{
		path:                                     "exists and is not a socket: choose another with --control",
		filepath.Join(path, "x"):                 "not a directory: choose another with --control",
		"/proc/nfq-ftphelper/x":                  "make the control socket: mkdir /proc/nfq-ftphelper",
		"/tmp/" + strings.Repeat("x", maxPath-4): "has more than 107 bytes",
	} {
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestLocked has another program lock the socket's folder for good.
func TestLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := os.Open(dir)
	must.Do(t, err)
	defer f.Close()
	must.Do(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	made := make(chan error, 1)
	go func() {
		s, err := Listen(filepath.Join(dir, "control.sock"))
		if err == nil {
			err = s.Close()
		}
		made <- err
	}()
	select {
	case err := <-made:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * lockTimeout):
		t.Error("got a wait for the lock, want none beyond lockTimeout")
	}
}

// TestEvents has one client that reads, and one that reads later.
func TestEvents(t *testing.T) {
	t.Parallel()
	d := &fake{}
	path := start(t, d)
	d.Publish(Event{Kind: "tracked"}) // before the first follower

	slow, err := net.Dial("unix", path)
	must.Do(t, err)
	defer slow.Close()
	fmt.Fprintf(slow, "GET /v1/events HTTP/1.1\r\nHost: daemon\r\n\r\n")
	answer, err := http.ReadResponse(bufio.NewReaderSize(slow, 16), nil)
	must.Do(t, err)
	const total = 20_000
	seen, following := make(chan int), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		n := 0
		err := NewClient(path).Events(ctx, EventsQuery{}, func() { close(following) }, func(line []byte) error {
			var ev Event
			if err := json.Unmarshal(line, &ev); err != nil {
				return err
			}
			if n++; ev.Kind != "expected" || ev.Expected.Port() != uint16(n) || ev.Line != "\u009b" || bytes.ContainsRune(line, '\u009b') {
				t.Errorf("event %d: got %s", n, line)
			}
			seen <- n
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		close(seen)
	}()
	<-following
	for i := range total {
		d.Publish(Event{Kind: "expected", Expected: netip.AddrPortFrom(netip.IPv6Loopback(), uint16(i+1)), Line: "\u009b"})
		<-seen
	}
	stop()
	for range seen {
	}

	d.Publish(Event{Kind: "last"})
	lines, last, missed := json.NewDecoder(answer.Body), uint16(0), 0
	for n := 0; ; n++ {
		var ev Event
		must.Do(t, lines.Decode(&ev))
		switch {
		case ev.Kind == KindMissed:
			missed += int(ev.Missed)
			last += uint16(ev.Missed)
		case ev.Expected.IsValid() && ev.Expected.Port() != last+1:
			t.Fatalf("after %d: got %+v", last, ev)
		default:
			last++
		}
		if int(last) == total+1 && missed > 0 {
			t.Logf("%d lines, %d events missed", n, missed)
			break
		}
	}
	if missed < total/2 || missed > total-followerBuffer {
		t.Errorf("got %d events missed of %d", missed, total)
	}
}

// TestFollowers checks the limit of followers.
func TestFollowers(t *testing.T) {
	d := &fake{}
	path := start(t, d)
	var all []*Follower
	for range maxFollowers {
		f, err := d.Follow(time.Now())
		must.Do(t, err)
		all = append(all, f)
	}
	err := NewClient(path).Events(t.Context(), EventsQuery{}, func() {}, func([]byte) error { return nil })
	if err == nil || err.Error() != "the daemon says: "+ErrFollowers.Error() {
		t.Errorf("one more follower: got %v, want %v", err, ErrFollowers)
	}
	for _, f := range all {
		f.Close()
		f.Close()
	}
	if n := len(d.followers); n > 0 {
		t.Errorf("got %d followers, want 0", n)
	}
	if n := testing.AllocsPerRun(100, func() { d.Publish(Event{Kind: "tracked"}) }); n > 0 {
		t.Errorf("got %v allocations without a follower, want 0", n)
	}
}

// TestFlows reads many flows.
func TestFlows(t *testing.T) {
	d := &fake{}
	for i := range 10_000 {
		flow := Flow{Client: netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(i)), State: "read"}
		if i%2 == 1 {
			flow.Last = &Endpoint{Verb: "227", Announced: 1, Advertised: 2}
		}
		d.flows = append(d.flows, flow)
	}
	path := start(t, d)
	flows, err := NewClient(path).Flows(t.Context())
	if err != nil || len(flows.Flows) != len(d.flows) || flows.Unchecked != 3 || flows.Flows[9].Client != d.flows[9].Client || *flows.Flows[9].Last != *d.flows[9].Last {
		t.Errorf("got %v, %d flows, %d unchecked", err, len(flows.Flows), flows.Unchecked)
	}
	d.err = errors.New("queue 7 sleeps")
	if _, err := NewClient(path).Flows(t.Context()); err == nil || err.Error() != "the daemon could not list all: queue 7 sleeps" {
		t.Errorf("an answer that fails midway: got %v", err)
	}
}

// TestBacklog queries past events: all, those since a time, and more than are kept.
func TestBacklog(t *testing.T) {
	t.Parallel()
	d := &fake{}
	client := NewClient(start(t, d))
	begin := time.Date(2024, 5, 4, 12, 0, 0, 0, time.UTC)
	at := func(i int) time.Time { return begin.Add(time.Duration(i) * time.Second) }
	ask := func(since time.Time) (all []Event) {
		t.Helper()
		err := client.Events(t.Context(), EventsQuery{Since: since, Once: true}, func() {}, func(line []byte) error {
			var ev Event
			err := json.Unmarshal(line, &ev)
			all = append(all, ev)
			return err
		})
		if err != nil {
			t.Error(err)
		}
		return all
	}
	publish := func(from, to int) {
		for i := from; i < to; i++ {
			d.Publish(Event{Time: at(i), Kind: map[bool]string{true: "refused", false: "tracked"}[i%100 == 0]})
		}
	}
	publish(0, 10)
	if all := ask(time.Time{}); len(all) != 0 {
		t.Errorf("without since: got %v, want none", all)
	}
	if all := ask(begin); len(all) != 10 || !all[0].Time.Equal(begin) {
		t.Errorf("all: got %v", all)
	}
	if all := ask(at(7).Add(1)); len(all) != 2 || !all[0].Time.Equal(at(8)) {
		t.Errorf("since the last two: got %v", all)
	}
	publish(10, maxBacklog+10)
	all := ask(begin)
	if len(all) != maxBacklog+1 || all[0].Kind != KindMissed || !strings.Contains(all[0].Describe(), "keeps the last 4096") || !all[1].Time.Equal(at(10)) {
		t.Errorf("more than are kept: got %d, %+v", len(all), all[:2])
	}
	if all := ask(at(10)); len(all) != maxBacklog || all[0].Kind != "tracked" {
		t.Errorf("kept events: got %d, %+v", len(all), all[0])
	}
	refused := d.Refusals()
	if len(refused) != maxRefusals || !refused[0].Time.Equal(at(3200)) || !refused[maxRefusals-1].Time.Equal(at(4100)) {
		t.Errorf("last refusals: got %+v", refused)
	}

	// The rest comes as it happens.
	followed := make(chan Event, 1)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- client.Events(ctx, EventsQuery{Since: at(maxBacklog + 9)}, func() {}, func(line []byte) error {
			var ev Event
			err := json.Unmarshal(line, &ev)
			followed <- ev
			return err
		})
	}()
	if ev := <-followed; !ev.Time.Equal(at(maxBacklog + 9)) {
		t.Errorf("last event: got %+v", ev)
	}
	d.Publish(Event{Time: time.Now(), Kind: "encrypted"})
	if ev := <-followed; ev.Kind != "encrypted" {
		t.Errorf("next event: got %+v", ev)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
