package netns

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// lossyPatience is for connections of which much gets lost: TCP doubles its
// time-outs, from a second on while a connection opens.
const lossyPatience = 60 * time.Second

// watch counts, before anything else looks at them, packets of control connections
// that conntrack finds invalid, and those that acknowledge selectively.
const watch = `table inet watch {
	counter invalid {
	}
	counter sack_to_server {
	}
	counter sack_to_client {
	}
	chain prerouting {
		type filter hook prerouting priority -199;
		ct state invalid tcp dport 21 counter name "invalid"
		ct state invalid tcp sport 21 counter name "invalid"
		tcp dport 21 tcp option sack exists counter name "sack_to_server"
		tcp sport 21 tcp option sack exists counter name "sack_to_client"
	}
}
`

// TestLoss makes hundreds of transfers, active and passive, over links that lose 5 % of
// the packets, double as many and let a tenth overtake others, on both sides of
// the router and in both directions.
func TestLoss(t *testing.T) {
	t.Parallel()
	const transfers, connections = 500, 50
	faults := Faults{Loss: 0.05, Duplicate: 0.05, Delay: 2 * time.Millisecond, Reorder: 0.1}
	lab, lost := lossyLab(t, Config{
		Situation: DNATMasquerade, Family: IPv4, Helper: Ours,
		// With the default of half a second, a line of which a piece gets lost twice
		// passes as it is, as it should: TCP waits 200 ms, and then 400 ms.
		Daemon: Daemon{Flags: []string{"--hold-time", "30s"}},
	}, faults)
	router, ctx := lab.ServerRouter(), testContext(t, 5*time.Minute)
	must.Do(t, router.Nft(ctx, watch))
	server := lab.serve(t, script{
		write: anyWrite, coalesce: true, patience: lossyPatience,
	})
	start := time.Now()
	// Who is held up, for TCP doubles its time-outs, leaves more to the others.
	numbers := make(chan int, transfers)
	for i := range transfers {
		numbers <- i
	}
	close(numbers)
	var clients sync.WaitGroup
	for range connections {
		clients.Go(func() { lossyClient(t, lab, server, numbers) })
	}
	clients.Wait()
	took := time.Since(start)

	counter := func(name string) int {
		n, err := router.Counter(ctx, "watch", name)
		must.Do(t, err)
		return n
	}
	if n := counter("invalid"); n > 0 {
		t.Errorf("conntrack found %d packets of control connections invalid", n)
	}
	invalid, err := router.Invalid(ctx)
	must.Do(t, err)
	toServer, toClient := counter("sack_to_server"), counter("sack_to_client")
	if toServer == 0 || toClient == 0 {
		t.Errorf("%d packets with SACK went to the server and %d to the client on control connections", toServer, toClient)
	}
	packetsLost := lost()
	if packetsLost == 0 {
		t.Error("nothing was lost")
	}
	for _, h := range []*Host{lab.Client, lab.Server} {
		seen := tcpCounters(t, h)
		for _, name := range []string{"RetransSegs", "TCPOFOQueue", "TCPDSACKOldSent", "TCPDSACKRecv"} {
			if seen[name] == 0 {
				t.Errorf("the %s's TCP has counted no %s", h.Name, name)
			}
		}
		t.Logf("%s: sent again %d, arrived out of order %d, arrived twice %d, SACK recoveries %d",
			h.Name, seen["RetransSegs"], seen["TCPOFOQueue"], seen["TCPDSACKOldSent"], seen["TCPSackRecovery"])
	}
	counts := stopAndCount(t, router)
	held := counts["held"]
	if counts["expected"] < transfers || counts["failed"] > 0 || held == 0 {
		t.Errorf("the daemon has not helped everywhere, or held nothing: %v", counts)
	}
	t.Logf("%d transfers in %s; %d packets lost, %d held, given up %d times; SACK on control connections: %d to the server, %d to the client; invalid in all: %d",
		transfers, took.Round(time.Millisecond), packetsLost, held, counts["hold_timeouts"], toServer, toClient, invalid)
}

// lossyLab is a lab on whose links there are faults: netem's where the kernel has
// it. It returns how to count the packets that got lost.
//
// The links are wires in either case. At the end of a veth pair a packet that the
// router holds would be the memory of the TCP that has sent it, which therefore
// would not join it with what follows when it sends that again, as it does on a
// network: all that it sent again would be held, and what is missing never come.
func lossyLab(t *testing.T, c Config, faults Faults) (*Lab, func() int) {
	t.Helper()
	wire := &Wire{Faults: faults, Seed: seed(t)}
	if CheckNetem() == nil {
		wire.Faults = Faults{}
	}
	c.Connect = wire.Connect
	must.CloseAtEnd(t, wire)
	lab := newLab(t, c)
	if CheckNetem() != nil {
		return lab, func() int {
			t.Logf("wire: %d packets passed, %d were lost, %d doubled, %d overtook others",
				wire.Passed.Load(), wire.Lost.Load(), wire.Duplicated.Load(), wire.Overtook.Load())
			return int(wire.Lost.Load())
		}
	}
	ctx := testContext(t, 5*time.Minute)
	ends := []struct {
		host *Host
		name string
	}{
		{lab.Client, "eth0"}, {lab.ClientRouter().Host, "eth0"}, {lab.ServerRouter().Host, "eth1"}, {lab.Server, "eth0"},
	}
	for _, end := range ends {
		must.Do(t, end.host.AddNetem(ctx, end.name, faults))
	}
	return lab, func() (total int) {
		for _, end := range ends {
			n, err := end.host.LostToNetem(ctx, end.name)
			must.Do(t, err)
			t.Logf("netem: %d packets lost at the %s's %s", n, end.host.Name, end.name)
			total += n
		}
		return total
	}
}

// seedEnv names the environment variable with the seed of random choices. Without
// it each run has its own, and prints it.
const seedEnv = "FTPHELPER_SEED"

func seed(t testing.TB) uint64 {
	t.Helper()
	n := rand.Uint64()
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	t.Logf("%s=%d", seedEnv, n)
	return n
}

// announces says whether a text has a line that may be rewritten.
var announces = regexp.MustCompile(`(?m)^(PORT|EPRT|227|229) `)

// anyWrite writes text whole, in two pieces, or in single bytes; lines that may be rewritten
// whole.
//
// Of such a line the router holds the first piece until it has the others, so that nothing of it
// is acknowledged; and a TCP that has lost much sends one segment before that, so that the others
// would come when the hold time is up. TestSplitLines has them without loss.
func anyWrite(conn *net.TCPConn, text string) error {
	whole := announces.MatchString(text)
	how := rand.IntN(3)
	switch {
	case how == 0:
		return writeOnce(conn, text)
	case how == 1 && !whole:
		return writeBytes(conn, text)
	}
	at := 1 + rand.IntN(len(text)-1)
	if whole {
		at = strings.Index(text, "\n") + 1
	}
	if err := writeOnce(conn, text[:at]); err != nil || at == len(text) {
		return err
	}
	return writeOnce(conn, text[at:])
}

// onGoroutine is a test's TB for another goroutine, which is what Fatal ends.
type onGoroutine struct{ testing.TB }

func (t onGoroutine) Fatal(args ...any) {
	t.Helper()
	t.Error(args...)
	runtime.Goexit()
}

func (t onGoroutine) Fatalf(format string, args ...any) {
	t.Helper()
	t.Errorf(format, args...)
	runtime.Goexit()
}

// lossyClient makes transfers by all verbs, some of them pipelined.
func lossyClient(t *testing.T, lab *Lab, server *scriptedServer, transfers <-chan int) {
	c := &scriptedClient{t: onGoroutine{t}, host: lab.Client, write: anyWrite, patience: lossyPatience}
	c.connect(netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, 21))
	c.login()
	p := pipeline{client: c, lab: lab}
	for i := range transfers {
		verb := Verbs[i%len(Verbs)]
		name := fmt.Sprintf("%s-%d", verb, i)
		pipelined := i/len(Verbs)%2 == 1
		switch {
		case pipelined && verb.active():
			p.active(verb, name)
		case pipelined:
			p.passive(verb, name)
		case i%8 == 2:
			c.store(name, fileContent(name), c.passive(verb), netip.AddrPort{})
			wantContent(c.t, name, server.file(name), fileContent(name))
		default:
			wantContent(c.t, name, c.fetchBy(verb, name, lab.ServerAddress), fileContent(name))
		}
	}
	c.quit()
}

// tcpCounters are the counters of a host's TCP, by their names in /proc/net/snmp
// and /proc/net/netstat.
func tcpCounters(t testing.TB, h *Host) map[string]int {
	t.Helper()
	counters := make(map[string]int)
	err := h.Do(func() error {
		for _, file := range []string{"snmp", "netstat"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			// Each line with names has one with numbers behind it.
			lines := strings.Split(string(text), "\n")
			for i := 0; i+1 < len(lines); i += 2 {
				names, numbers := strings.Fields(lines[i]), strings.Fields(lines[i+1])
				if len(names) == 0 || len(names) != len(numbers) || names[0] != "Tcp:" && names[0] != "TcpExt:" {
					continue
				}
				for k := 1; k < len(names); k++ {
					counters[names[k]], _ = strconv.Atoi(numbers[k])
				}
			}
		}
		return nil
	})
	must.Do(t, err)
	return counters
}
