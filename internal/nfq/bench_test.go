package nfq_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// acceptEnv makes the test binary a program that lets every packet of queue 7 go.
const acceptEnv = "NFQ_TEST_ACCEPT"

func TestMain(m *testing.M) {
	if os.Getenv(acceptEnv) == "" {
		os.Exit(m.Run())
	}
	if err := accept(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// accept says "ready", serves until SIGTERM, and says how many packets it has handled, and how
// many objects it has allocated and how many microseconds it has worked meanwhile.
func accept() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var packets acceptAll
	q := nfq.New(7, &packets, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx) }()
	select {
	case <-q.Ready():
	case err := <-ended:
		return err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := processorTime()
	fmt.Println("ready")
	<-ctx.Done()
	runtime.ReadMemStats(&after)
	err := <-ended
	fmt.Println(packets, after.Mallocs-before.Mallocs, processorTime()-began)
	return err
}

// processorTime is what this process has used, in microseconds.
func processorTime() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return (u.Utime.Nano() + u.Stime.Nano()) / 1000
}

// acceptAll is a Handler that lets everything go, and counts.
type acceptAll uint64

func (n *acceptAll) Handle(id uint32, _ []byte, verdicts []nfq.Verdict) []nfq.Verdict {
	*n++
	return append(verdicts, nfq.Verdict{ID: id})
}
func (*acceptAll) Deadline() (time.Time, bool)                 { return time.Time{}, false }
func (*acceptAll) Expire(verdicts []nfq.Verdict) []nfq.Verdict { return verdicts }
func (*acceptAll) Flush(verdicts []nfq.Verdict) []nfq.Verdict  { return verdicts }

// contestant is a program that serves the queue, and how it did.
type contestant struct {
	name  string
	start func() *exec.Cmd // nil: no program
	rates []float64        // round trips per second, of each round
	cpu   []float64        // microseconds of processor time per packet, of each round
	alloc float64          // objects allocated per packet
}

// BenchmarkRoundTrip sends a small segment there and back on each of some connections at once,
// every one of them through the queue, and compares programs that let all packets go: this
// package, and one in C on libnetfilter_queue. They take turns.
func BenchmarkRoundTrip(b *testing.B) {
	for _, connections := range []int{1, 1000} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) { compare(b, connections) })
	}
}

const rounds = 5

func compare(b *testing.B, connections int) {
	contestants := []*contestant{
		{name: "plain"},
		{name: "Go", start: func() *exec.Cmd {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), acceptEnv+"=1")
			return cmd
		}},
	}
	var c *contestant
	if path, err := compileAccept(b.TempDir()); err != nil {
		b.Logf("no comparison with C: %v", err)
	} else {
		c = &contestant{name: "C", start: func() *exec.Cmd { return exec.Command(path, "7") }}
		contestants = append(contestants, c)
	}
	queued := newTrack(b, connections, true)
	plain := newTrack(b, connections, false)
	for range rounds {
		for _, x := range contestants {
			if x.start == nil {
				x.rates = append(x.rates, plain.run(b, b.N))
			} else {
				x.round(b, queued, b.N)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, x := range contestants {
		b.ReportMetric(median(x.rates), x.name+"-trips/s")
		if x.start != nil {
			b.ReportMetric(median(x.cpu), x.name+"-µs/packet")
		}
		if x.name == "Go" {
			b.ReportMetric(x.alloc, x.name+"-allocs/packet")
			if c != nil {
				b.ReportMetric(ratio(x.rates, c.rates), x.name+"/C")
			}
		}
	}
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// ratio is the median of the rounds' ratios: what else the machine does changes over time.
func ratio(x, y []float64) float64 {
	r := make([]float64, len(x))
	for i := range x {
		r[i] = x[i] / y[i]
	}
	return median(r)
}

func compileAccept(dir string) (string, error) {
	path := filepath.Join(dir, "accept")
	out, err := exec.Command("gcc", "-O2", "-o", path, "testdata/accept.c", "-lnetfilter_queue", "-lnfnetlink").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compile testdata/accept.c (packages gcc, libc6-dev, libnetfilter-queue-dev): %w\n%s", err, out)
	}
	return path, nil
}

func (c *contestant) round(b *testing.B, t *track, n int) {
	cmd := c.start()
	p, err := t.host.Start(cmd)
	must.Do(b, err)
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	must.Do(b, p.WaitOutput(ctx, func(out string) bool { return strings.HasPrefix(out, "ready\n") }))
	c.rates = append(c.rates, t.run(b, n))
	must.Do(b, p.Signal(syscall.SIGTERM))
	if err := p.Wait(ctx); err != nil && c.name != "C" {
		b.Fatal(err)
	}
	want := float64(2 * n * len(t.clients))
	if c.name == "C" {
		used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		c.cpu = append(c.cpu, float64(used.Microseconds())/want)
		return
	}
	var packets, allocated, used float64
	if _, err := fmt.Sscanf(p.Output(), "ready\n%g %g %g", &packets, &allocated, &used); err != nil {
		b.Fatalf("output %q: %v", p.Output(), err)
	}
	if packets < want {
		b.Fatalf("%v packets of %v were handled", packets, want)
	}
	c.alloc, c.cpu = allocated/packets, append(c.cpu, used/packets)
}

// track is connections on a host, as file descriptors that block.
type track struct {
	host             *netns.Host
	clients, servers []int
}

func newTrack(b *testing.B, connections int, queued bool) *track {
	b.Helper()
	host := netns.NewTestHost(b, "host")
	if queued {
		err := host.Do(func() error {
			_, err := rules.Apply(rules.Config{Ports: []rules.PortRange{{First: port, Last: port}}, Queue: 7})
			return err
		})
		must.Do(b, err)
	}
	at := netip.MustParseAddrPort("127.0.0.1:2121")
	listener, err := host.Listen(b.Context(), at)
	must.Do(b, err)
	defer listener.Close()
	t := &track{host: host}
	descriptor := func(conn interface{ File() (*os.File, error) }) int {
		f, err := conn.File()
		must.Do(b, err)
		b.Cleanup(func() { f.Close() })
		return int(f.Fd()) // it blocks from now on
	}
	for range connections {
		client, err := host.Dial(b.Context(), netip.AddrPort{}, at)
		must.Do(b, err)
		t.clients = append(t.clients, descriptor(client))
		client.Close()
		server, err := listener.AcceptTCP()
		must.Do(b, err)
		t.servers = append(t.servers, descriptor(server))
		server.Close()
	}
	return t
}

// run makes n round trips on every connection, and returns how many there were in a second.
func (t *track) run(b *testing.B, n int) float64 {
	b.Helper()
	line := []byte("NOOP\r\n")
	got := make([]byte, 64)
	pass := func(from, to []int) error {
		for _, fd := range from {
			if _, err := unix.Write(fd, line); err != nil {
				return err
			}
		}
		for _, fd := range to {
			n, err := unix.Read(fd, got)
			if err == nil && n != len(line) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := time.Now()
	for range n {
		must.Do(b, errors.Join(pass(t.clients, t.servers), pass(t.servers, t.clients)))
	}
	return float64(n*len(t.clients)) / time.Since(begin).Seconds()
}
