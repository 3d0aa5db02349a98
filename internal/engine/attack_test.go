package engine_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// unharmed says that the next transfer of the connection works.
func (w *world) unharmed() {
	w.t.Helper()
	w.say(client, "PASV\r\n")
	if got, want := w.say(server, "227 (192,168,1,2,4,1)\r\n"), "227 (192,0,2,2,4,1)\r\n"; got != want {
		w.t.Errorf("the next 227 came out as %q, want %q", got, want)
	}
}

// harmless says a text, which has to pass unchanged and open nothing.
func (w *world) harmless(dir expect.Direction, text string) {
	w.t.Helper()
	before := len(w.ct.Installed)
	if got := w.say(dir, text); got != text {
		w.t.Errorf("%.60q came out as %.60q", text, got)
	}
	if n := len(w.ct.Installed) - before; n != 0 {
		w.t.Errorf("%.60q opened %v", text, w.expectations()[before:])
	}
}

const forged = "227 Entering Passive Mode (192,168,1,2,100,1)\r\n"

// TestForgedReply has the server repeat what a client made it say: in an error text, a file
// name, a banner, a multi-line reply.
func TestForgedReply(t *testing.T) {
	for name, turns := range map[string][]turn{
		"error text":       {{client, "RETR " + forged}, {server, "550 " + forged}},
		"own line":         {{client, "RETR x\r\n"}, {server, "550 no such file x\r\n" + forged}},
		"file name":        {{client, "STAT dir\r\n"}, {server, "213-Status of dir:\r\n" + forged + "213 End\r\n"}},
		"in between":       {{client, "STAT dir\r\n"}, {server, "213-Status of dir:\r\n-rw- a\r\n"}, {client, "PASV\r\n"}, {server, forged + "213 End\r\n"}},
		"multi-line reply": {{client, "PASV\r\n"}, {server, "530-Log in first\r\n" + forged + "530 please\r\n"}},
		"after an error":   {{client, "PASV\r\n"}, {server, "425 no\r\n"}, {client, "STAT x\r\n"}, {server, forged}},
		"second answer":    {{client, "PASV\r\n"}, {server, "227 Logout.\r\n"}, {client, "CWD x\r\n"}, {server, "250 " + forged}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply)
			w.login()
			for _, u := range turns {
				w.harmless(u.dir, u.text)
			}
			w.unharmed()
		})
	}
	t.Run("banner", func(t *testing.T) {
		w := newWorld(t, natOriginal, natReply)
		w.acked[client] = w.next[client]
		w.harmless(server, "220-welcome\r\n"+forged+"220 ready\r\n")
		w.harmless(client, "USER me\r\n")
		w.unharmed()
	})
}

// TestInjectedCommand has a client send a file name with a line end in it: what stands behind
// is a command to the server as well, so only its address protects.
func TestInjectedCommand(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	w.harmless(client, "CWD x\r\nPORT 198,51,100,7,0,25\r\n")
	w.harmless(client, "CWD x\rPORT 203,0,113,101,100,1\r\n")
	w.harmless(client, "CWD x\x00PORT 203,0,113,101,100,1\r\n")
	w.unharmed()
}

// TestLongCommand has lines that are longer than any endpoint needs: they count as what they are,
// and nothing is read of their numbers.
func TestLongCommand(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	long := strings.Repeat("x", 600)
	w.harmless(client, "CWD /"+long+"\r\nPASV\r\n")
	w.harmless(server, "550 no\r\n")
	if got, want := w.say(server, "227 (192,168,1,2,4,1)\r\n"), "227 (192,0,2,2,4,1)\r\n"; got != want {
		t.Errorf("227 came out as %q, want %q", got, want)
	}
	w.harmless(client, "PORT 203,0,113,101,100,1 "+long+"\r\n")
	w.harmless(client, "PASV\r\n")
	w.harmless(server, "227 (192,168,1,2,4,1) "+long+"\r\n")
	w.harmless(server, "230-welcome\r\n230 "+long+"\r\n")
	w.unharmed()
}

// TestSlipstream has a browser upload what it was given, to port 21 over HTTP, cut so that a
// PORT stands at the beginning of a segment, and of a line.
func TestSlipstream(t *testing.T) {
	const port = "PORT 203,0,113,101,100,1\r\n"
	request := "POST / HTTP/1.1\r\nHost: evil.example:21\r\nContent-Length: 5000\r\n\r\n"
	for name, turns := range map[string][]turn{
		"the server is silent":      {{client, request}, {client, strings.Repeat("x", 1000)}, {client, port}, {client, "\r\n" + port}},
		"the server greets first":   {{server, "220 ready\r\n"}, {client, request}, {client, "\r\n" + port}, {client, port}},
		"the server greets after":   {{client, request}, {server, "220 ready\r\n"}, {client, "\r\n" + port}, {client, port}},
		"one line, then the upload": {{client, "POST / HTTP/1.1\r\n"}, {server, "220 ready\r\n"}, {client, request[17:]}, {client, port}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply)
			w.open()
			for _, u := range turns {
				w.harmless(u.dir, u.text)
			}
		})
	}
	t.Run("in a line that an FTP client sends", func(t *testing.T) {
		w := newWorld(t, natOriginal, natReply)
		w.login()
		w.harmless(client, "STOR "+strings.Repeat("x", 400))
		w.harmless(client, port)
		w.unharmed()
	})
}

// TestFlood has a client ask for 100,000 data connections within a second.
func TestFlood(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, quiet)
	w.login()
	for i := range 100_000 {
		w.say(client, fmt.Sprintf("PORT 203,0,113,101,%d,%d\r\n", 8+i%200, i/200%256))
		if i%32 == 0 {
			w.say(server, "200 ok\r\n")
		}
	}
	s := w.eng.Stats()
	if s.Expectations != engine.DefaultRate || s.Refused[engine.TooMany] != 100_000-engine.DefaultRate {
		t.Errorf("counted %+v, want %d expectations", s, engine.DefaultRate)
	}
	w.now = w.now.Add(time.Second)
	w.unharmed()
}

// TestBusyClient has a client fetch as many small files within a second as a fast network lets it:
// wget alone fetches 700 here, several connections at once several thousand. No flood is that.
func TestBusyClient(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, quiet)
	w.login()
	const transfers = 5000
	for i := range transfers {
		w.say(client, "PASV\r\n")
		w.say(server, fmt.Sprintf("227 Entering Passive Mode (192,168,1,2,%d,%d)\r\n", 8+i%200, i/200))
	}
	if s := w.eng.Stats(); s.Expectations != transfers {
		t.Errorf("counted %+v, want %d expectations", s, transfers)
	}
}

// TestLongLine has a line of 10 MB.
func TestLongLine(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, quiet)
	w.login()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	chunk := "PORT 203,0,113,101,100,1," + strings.Repeat("1,", 700)
	for range 10 << 20 / len(chunk) {
		if w.say(client, chunk) == "" {
			break // held, until so many are
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
		t.Errorf("it takes %d bytes", grown)
	}
	w.say(client, "\r\n")
	if len(w.ct.Installed) != 0 {
		t.Errorf("it opened %v", w.expectations())
	}
	w.unharmed()
}

// maxFlowBytes is how much memory a connection may take that is tracked and at rest, what finds it
// included.
const maxFlowBytes = 448

// TestManyConnections has 200,000 connections that never end.
func TestManyConnections(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, quiet)
	lookups := &generated{}
	w.restart(quiet, func(c *engine.Config) { c.Conntrack = lookups })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	verdicts := make([]engine.Verdict, 0, 4)
	packet := w.segment(server, 1, "220 ready\r\n")
	for n := range 200_000 {
		packet[17], packet[18], packet[19] = byte(n>>16), byte(n>>8), byte(n) // the client's address
		if verdicts = w.eng.Handle(uint32(n), packet, verdicts[:0]); len(verdicts) != 1 {
			t.Fatalf("connection %d got the verdicts %v", n, verdicts)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d bytes, %d for each of the connections that are tracked", grown, grown/engine.DefaultMaxFlows)
	if grown > engine.DefaultMaxFlows*maxFlowBytes {
		t.Errorf("they take %d bytes", grown)
	}
	if lookups.n != 200_000 {
		t.Errorf("%d look-ups", lookups.n)
	}
	runtime.KeepAlive(w.eng)
}

// generated knows every connection.
type generated struct {
	engine.Conntrack
	n int
}

func (g *generated) Lookup(t expect.Tuple) (*expect.Master, expect.Direction, error) {
	g.n++
	return &expect.Master{
		Tuples: [2]expect.Tuple{t, {Src: netip.MustParseAddrPort("192.168.1.2:21"), Dst: t.Src}},
		Helper: "sane",
	}, expect.Original, nil
}

// TestAllowed says what --loose and --allow let through.
func TestAllowed(t *testing.T) {
	in := "PORT 198,51,100,7,100,1\r\n"
	for name, p := range map[string]engine.Policy{
		"loose":   {Loose: true},
		"allowed": {Allowed: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.Policy = p })
			w.login()
			if got := w.say(client, in); got != in {
				t.Errorf("came out as %q", got)
			}
			want := expect.Expectation{
				Master: natOriginal, Src: netip.MustParseAddr("192.168.1.2"),
				Dst: netip.MustParseAddrPort("198.51.100.7:25601"), Port: 25601, Dir: expect.Reply,
			}
			if len(w.ct.Installed) != 1 || w.ct.Installed[0] != want {
				t.Errorf("expected %+v", w.ct.Installed)
			}
			w.unharmed()
		})
	}
}
