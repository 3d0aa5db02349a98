package netns

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestQueues has four queues on a router that changes both addresses of every connection. All
// packets of a connection arrive in the same queue, those of the client and those of the server,
// and each queue helps its own connections.
func TestQueues(t *testing.T) {
	t.Parallel()
	const queues, connections = 4, 32
	for _, family := range Families {
		t.Run(family.String(), func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{
				Situation: DNATMasquerade, Family: family, Helper: Ours,
				Daemon: Daemon{BackEnd: BackEnd{Queues: queues}},
			})
			// What one connection sends again, because nobody has answered yet, would show while another
			// one is watched.
			for _, h := range []*Host{lab.Client, lab.Server} {
				retransmitAfter(t, h, Scale(3*time.Second))
			}
			router := lab.ServerRouter()
			server := lab.serve(t, script{})
			var clients []*scriptedClient
			for range connections {
				c := lab.login(t)
				clients = append(clients, c)
			}

			// One after the other talks while all are open.
			expected := make(map[int]int) // data connections, by queue
			for i, c := range clients {
				segments, queued := segmentsOf(t, c.conn, server.connections()[i]), queuedBy(t, router)
				c.wantFiles(lab.ServerAddress, family.Verbs()...)
				segments = segmentsOf(t, c.conn, server.connections()[i]) - segments
				for number, n := range queuedBy(t, router) {
					switch n -= queued[number]; n {
					case 0:
					case segments:
						expected[number] += 2 * len(family.Verbs())
					default:
						t.Errorf("connection %d: %d packets came to queue %d of the %d that both sides sent", i, n, number, segments)
					}
				}
			}
			// And all at the same time.
			var all sync.WaitGroup
			for _, c := range clients {
				c.t = onGoroutine{t}
				all.Go(func() {
					c.wantFiles(lab.ServerAddress, family.Verbs()...)
					c.quit()
				})
			}
			all.Wait()

			wantNothingInvalid(t, lab.Routers...)
			if len(expected) < 2 {
				t.Errorf("of %d queues only %v were used", queues, expected)
			}
			for number, counts := range stopAndCountQueues(t, router) {
				if counts["expected"] != expected[number] || counts["failed"] > 0 || counts["unknown"] > 0 || counts["overflows"] > 0 {
					t.Errorf("the daemon is to have helped %d times in queue %d: %v", expected[number], number, counts)
				}
			}
			t.Logf("data connections by queue: %v", expected)
		})
	}
}

// queuedBy is how many packets have been queued, by the number of the queue.
func queuedBy(t testing.TB, r *Router) map[int]int {
	t.Helper()
	queued, err := r.QueuedByQueue()
	must.Do(t, err)
	return queued
}

// segmentsOf is how many segments with text the ends of a connection have sent.
func segmentsOf(t testing.TB, ends ...*net.TCPConn) int {
	t.Helper()
	total := 0
	for _, end := range ends {
		_, segments, err := sentOnce(end)
		must.Do(t, err)
		total += segments
	}
	return total
}
