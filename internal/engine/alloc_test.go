package engine_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
)

// TestAllocations says that nothing is allocated for a packet that is only looked at, nor for
// one that is rendered again.
func TestAllocations(t *testing.T) {
	pasv := []turn{{client, "PASV\r\n"}}
	for name, c := range map[string]struct {
		before []turn
		again  turn
	}{
		"command":       {nil, turn{client, "NOOP\r\n"}},
		"reply":         {nil, turn{server, "200 ok\r\n"}},
		"retransmitted": {pasv, turn{server, "227 (192,168,1,2,145,37)\r\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply, quiet)
			w.login()
			for _, u := range c.before {
				w.say(u.dir, u.text)
			}
			packet := w.segment(c.again.dir, w.next[c.again.dir], c.again.text)
			verdicts := make([]engine.Verdict, 0, 4)
			n := testing.AllocsPerRun(100, func() { verdicts = w.eng.Handle(1, packet, verdicts[:0]) })
			if n != 0 {
				t.Errorf("%v allocations", n)
			}
			if len(verdicts) != 1 || (verdicts[0].Packet != nil) != (c.before != nil) {
				t.Errorf("verdicts %v", verdicts)
			}
		})
	}
}

func quiet(c *engine.Config) { c.Observe = nil }

func BenchmarkHandle(b *testing.B) {
	for name, u := range map[string]turn{
		"command": {client, "NOOP\r\n"},
		"reply":   {server, "226 Transfer complete.\r\n"},
	} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, natOriginal, natReply, quiet)
			w.login()
			packet := w.segment(u.dir, w.next[u.dir], u.text)
			seq := w.next[u.dir]
			verdicts := make([]engine.Verdict, 0, 4)
			b.ReportAllocs()
			for b.Loop() {
				verdicts = w.eng.Handle(1, packet, verdicts[:0])
				// The next line of the stream, not the same one again. Checksums are not looked at.
				seq += uint32(len(u.text))
				packet[24], packet[25], packet[26], packet[27] = byte(seq>>24), byte(seq>>16), byte(seq>>8), byte(seq)
			}
		})
	}
}

// BenchmarkFlows has lines from one connection after another, in no order, out of so many that are
// tracked.
func BenchmarkFlows(b *testing.B) {
	for _, n := range []int{10, 1e4, 1e6} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b, natOriginal, natReply, quiet, func(c *engine.Config) { c.MaxFlows = n })
			w.restart(quiet, func(c *engine.Config) { c.Conntrack, c.MaxFlows = &generated{}, n })
			packet := w.segment(server, 1, "220 ready\r\n")
			verdicts := make([]engine.Verdict, 0, 4)
			from := func(i int) []byte { // the client's address
				packet[17], packet[18], packet[19] = byte(i>>16), byte(i>>8), byte(i)
				return packet
			}
			for i := range n {
				verdicts = w.eng.Handle(1, from(i), verdicts[:0])
			}
			r := rand.New(rand.NewPCG(1, 2))
			b.ReportAllocs()
			for b.Loop() {
				verdicts = w.eng.Handle(1, from(r.IntN(n)), verdicts[:0])
			}
		})
	}
}

// BenchmarkTrack begins with so many connections: what each one takes, in time but for the
// question to the kernel, and in memory when it is at rest.
func BenchmarkTrack(b *testing.B) {
	for _, n := range []int{1e3, 1e5, 1e6} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b, natOriginal, natReply)
			packet := w.segment(server, 1, "220 ready\r\n")
			verdicts := make([]engine.Verdict, 0, 4)
			var before, after runtime.MemStats
			for b.Loop() {
				w.restart(quiet, func(c *engine.Config) { c.Conntrack, c.MaxFlows = &generated{}, n })
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&before)
				b.StartTimer()
				for i := range n {
					packet[17], packet[18], packet[19] = byte(i>>16), byte(i>>8), byte(i) // the client's address
					verdicts = w.eng.Handle(1, packet, verdicts[:0])
				}
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/connection")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/connection")
		})
	}
}

// BenchmarkRebuild has every packet come from a connection that has been forgotten: what it costs
// to begin with one again, but for the question to the kernel.
func BenchmarkRebuild(b *testing.B) {
	w := newWorld(b, natOriginal, natReply)
	w.restart(quiet, func(c *engine.Config) { c.Conntrack, c.MaxFlows = &generated{}, 1 })
	packet := w.segment(server, 1, "220 ready\r\n")
	verdicts := make([]engine.Verdict, 0, 4)
	b.ReportAllocs()
	for b.Loop() {
		packet[19]++
		verdicts = w.eng.Handle(1, packet, verdicts[:0])
	}
}

// BenchmarkPassive is a PASV and its answer, rewritten.
func BenchmarkPassive(b *testing.B) {
	w := newWorld(b, natOriginal, natReply, quiet)
	w.login()
	verdicts := make([]engine.Verdict, 0, 4)
	packets := [2][]byte{
		w.segment(client, w.next[client], "PASV\r\n"),
		w.segment(server, w.next[server], "227 Entering Passive Mode (192,168,1,2,145,37).\r\n"),
	}
	seq, ack := w.next, w.next[server]
	b.ReportAllocs()
	for b.Loop() {
		for dir, p := range packets {
			binary.BigEndian.PutUint32(p[24:], seq[dir])
			if dir == int(client) {
				binary.BigEndian.PutUint32(p[28:], ack)
			}
			verdicts = w.eng.Handle(1, p, verdicts[:0])
			seq[dir] += uint32(len(p) - 40)
			if dir == int(server) {
				ack += uint32(len(verdicts[0].Packet) - 40)
			}
		}
	}
}

// BenchmarkNonsense has one connection after another whose first segment is as large as Ethernet takes it, and full of
// lines that say nothing. A segment with one line is there to compare with.
func BenchmarkNonsense(b *testing.B) {
	for name, u := range map[string]turn{
		"one line":        {client, "NOOP\r\n"},
		"blank":           {client, strings.Repeat("\n", 1448)},
		"letters":         {client, strings.Repeat("x\n", 724)},
		"PORT":            {client, strings.Repeat("PORT\n", 289)},
		"blank replies":   {server, strings.Repeat("\n", 1448)},
		"unreadable":      {server, strings.Repeat("227\n", 362)},
		"within a reply":  {server, "211-" + strings.Repeat("\n", 1444)},
		"a reply's begin": {server, strings.Repeat("211-\n", 289)},
	} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, natOriginal, natReply)
			w.restart(func(c *engine.Config) {
				c.Conntrack, c.Observe, c.Mode = &generated{}, func(*engine.Event) {}, engine.Mode{}
			})
			packet := w.segment(u.dir, 1000, u.text)
			stranger := packet[17:20] // the client's address
			if u.dir == client {
				stranger = packet[13:16]
			}
			verdicts := make([]engine.Verdict, 0, 4)
			for n := 0; b.Loop(); n++ {
				stranger[0], stranger[1], stranger[2] = byte(n>>16), byte(n>>8), byte(n)
				verdicts = w.eng.Handle(1, packet, verdicts[:0])
			}
		})
	}
}
