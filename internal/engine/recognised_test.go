package engine_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

const (
	ready     = "220 ready\r\n"
	port      = "PORT 203,0,113,101,200,1\r\n"
	portAfter = "PORT 192,168,1,1,200,1\r\n"
	login     = "USER me\r\nPASS x\r\n"
	http      = "POST / HTTP/1.1\r\n"
)

// helped wants a PORT to be rewritten.
func (w *world) helped() {
	w.t.Helper()
	if got := w.say(client, port); got != portAfter {
		w.t.Errorf("PORT came out as %q, want %q\n%s", got, portAfter, &w.log)
	}
	w.say(server, "200 ok\r\n")
}

// evict makes the engine forget the connection: others take its place.
func (w *world) evict() {
	w.t.Helper()
	kept, next, acked := w.entry, w.next, w.acked
	w.entry = w.ct.Add(tuple("203.0.113.102:2000", "192.0.2.2:21"), tuple("192.168.1.2:21", "192.168.1.1:2000"))
	w.say(server, ready)
	w.entry, w.next, w.acked = kept, next, acked
}

// farAck has the server acknowledge what the client is far from having sent.
func (w *world) farAck() {
	w.t.Helper()
	had := w.acked[client]
	w.acked[client] += 1 << 30
	w.say(server, "200 ok\r\n")
	w.acked[client] = had
}

// synAckFurther has the server send another SYN-ACK before the client has answered, which acknowledges n bytes more.
func (w *world) synAckFurther(n int) {
	w.t.Helper()
	w.entry.Opening = true
	next := w.next[client]
	w.next[client] += uint32(n)
	w.synAck()
	w.next[client], w.acked[client] = next, next
	w.entry.Opening = false
}

// attackEnds are what follows an attack: the text that opens a port if it is believed.
var attackEnds = []string{port, "\r\n" + port, "\r\n" + login + port, login, port}

// TestNotRecognised has clients of other protocols say what their peer wants: nothing is opened, whatever the peer
// does to make the daemon forget, or miss, how the connection began.
func TestNotRecognised(t *testing.T) {
	const tls = "\x16\x03\x01\x00\x60\x01\x00\x00\x5c\x03\x03"
	for name, attack := range map[string]func(*world){
		"a verb of FTP over HTTP":  func(w *world) { w.say(client, "STAT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n") },
		"over HTTP, line by line":  func(w *world) { w.say(client, "STAT / HTTP/1.1\r\n"); w.say(client, "Host: x\r\n") },
		"over HTTP, long":          func(w *world) { w.say(client, "STAT /"+strings.Repeat("x", 600)+" HTTP/1.1\r\n") },
		"over RTSP":                func(w *world) { w.say(client, "OPTIONS * RTSP/1.0\r\n") },
		"over SIP":                 func(w *world) { w.say(client, "REGISTER sip:x SIP/2.0\r\n") },
		"a header":                 func(w *world) { w.say(client, "HELP me\r\nX-Header: x\r\n") },
		"PROXY as a method":        func(w *world) { w.say(client, "PROXY / HTTP/1.1\r\n") },
		"IAC SB hides a line":      func(w *world) { w.say(client, "\xff\xfaPOST / HTTP/1.1\r\n") },
		"IAC SB hides bytes":       func(w *world) { w.say(client, "HELP \xff\xfa\x16\x03\x01\r\n") },
		"TLS":                      func(w *world) { w.say(client, tls+"\nUSER x\n"+port) },
		"TLS, cut at the line end": func(w *world) { w.say(client, tls); w.say(client, "\n"); w.say(client, "USER x\n"+port) },
		"TURN":                     func(w *world) { w.say(client, "\x00\x03\x00\x40\x21\x12\xa4\x42\nUSER x\n"+port) },
		"ignored, evicted":         func(w *world) { w.say(client, http); w.evict() },
		"ignored, far away":        func(w *world) { w.say(client, http); w.farAck() },
		"its head evicted":         func(w *world) { w.say(client, "HELP me\r\n"); w.evict() },
		"its head far away":        func(w *world) { w.say(client, "HELP me\r\n"); w.farAck() },
		"its head passed unread":   func(w *world) { w.miss(client, http); w.say(server, "500 what\r\n") },
		"its head lost in a gap": func(w *world) {
			w.next[client] += uint32(len(http))
			w.say(client, "text\r\n")
			w.now = w.now.Add(engine.DefaultHoldTime)
			w.leave(w.eng.Expire(nil))
		},
		"a second SYN-ACK": func(w *world) { w.synAckFurther(len(http)); w.say(client, http) },
		"a label that is left over": func(w *world) {
			// The client and the server have closed a connection of FTP, and conntrack, which has not seen that, keeps its entry.
			w.restart(one)
			w.entry.Apply(expect.Update{SetLabel: recognisedLabel})
			w.open()
			w.say(client, "HELP me\r\n")
			w.evict()
		},
		"SYN-ACK passed unread": func(w *world) { w.restart(one); w.miss(client, http); w.say(server, ready) },
		"the daemon started":    func(w *world) { w.say(client, "HELP me\r\n"); w.restart(one) },
	} {
		for _, greets := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/greeted first: %v", name, greets), func(t *testing.T) {
				w := newWorld(t, natOriginal, natReply, one)
				w.open()
				if greets {
					w.say(server, ready)
				}
				attack(w)
				w.say(server, ready)
				for _, text := range attackEnds {
					w.say(client, text)
					w.say(server, "200 ok\r\n")
				}
				if x := w.expectations(); x != nil || w.entry.Label(recognisedLabel) {
					t.Errorf("opened %v, labels %v\n%s", x, labels(w.entry), &w.log)
				}
				if n := w.logged("kind=not-ftp") + w.logged("reason=midstream"); n == 0 {
					t.Errorf("the log does not say why:\n%s", &w.log)
				}
				// The next connection between the same ports is an honest one.
				w.next[client] += 50
				w.next[server] += 50
				w.login()
				w.helped()
				w.unharmed()
			})
		}
	}
}

func one(c *engine.Config) { c.MaxFlows = 1 }

// TestRecognised has honest clients, some of them odd: each is helped.
func TestRecognised(t *testing.T) {
	proxy2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + "\xc0\x00\x02\x01\n\n\x00\x16\x03\x01\x00\x15"
	for name, head := range map[string][]string{
		"USER":                     {"USER me\r\n"},
		"in pieces":                {"US", "ER me\r", "\n"},
		"together":                 {login},
		"lower case, LF":           {"user me\npass x\n"},
		"OPEN":                     {"OPEN ftp.example.org\r\n", login},
		"SITE":                     {"SITE help\r\n", login},
		"HOST":                     {"HOST ftp.example.org\r\n", login},
		"XCRC":                     {"XCRC x\r\n", login},
		"FEAT and a refused AUTH":  {"FEAT\r\n", "AUTH TLS\r\n", "AUTH SSL\r\n", login},
		"blank lines":              {"\r\n", "\n", "\r\n" + login},
		"Telnet":                   {"\xff\xfb\x01\xff\xf4\xff\xf2" + login},
		"PROXY 1":                  {"PROXY TCP4 192.0.2.1 192.0.2.2 2000 21\r\n" + login},
		"PROXY 1 alone":            {"PROXY UNKNOWN\r\n", login},
		"PROXY 2":                  {proxy2 + login},
		"PROXY 2 alone":            {proxy2, login},
		"PROXY 2 in pieces":        {proxy2[:20], proxy2[20:], login},
		"NUL after CR":             {"USER me\r\x00\n"},
		"a name in UTF-8, a colon": {"USER J\u00fcrgen:x@example.org\r\n"},
	} {
		for _, greets := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/greeted first: %v", name, greets), func(t *testing.T) {
				w := newWorld(t, natOriginal, natReply, one)
				w.open()
				if greets {
					w.say(server, ready)
				}
				for _, text := range head {
					w.harmless(client, text)
				}
				if !greets {
					w.say(server, ready)
				}
				w.say(server, "230 in\r\n")
				w.helped()
				w.unharmed()
				if !w.entry.Label(recognisedLabel) {
					t.Error("it has no label")
				}
				w.evict()
				w.helped()
				w.farAck()
				w.helped()
				w.restart(one)
				w.helped()
				w.unharmed()
			})
		}
	}
}

// TestLineAfterEviction has a connection forgotten in the middle of a line, whose rest looks like a PORT.
func TestLineAfterEviction(t *testing.T) {
	for name, forget := range map[string]func(*world){
		"evicted": (*world).evict,
		"evicted, after a gap": func(w *world) {
			w.say(client, "x\r\n")
			w.next[client] += uint32(len("RETR a "))
			w.say(client, "file called ")
			w.evict()
		},
		"far away":       (*world).farAck,
		"daemon stopped": func(w *world) { w.leave(w.eng.Flush(nil)); w.restart(one) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply, one)
			w.login()
			w.say(client, "RETR a file called ")
			forget(w)
			w.harmless(client, port)
			w.say(server, "550 no\r\n")
			w.helped()
			w.unharmed()
			if w.entry.Label(inLineLabel) {
				t.Error("the label of an unfinished line is left")
			}
		})
	}
}

// TestUnlabelled has a conntrack that takes no labels: the connection is helped, and the log says what is lost.
func TestUnlabelled(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.restart(func(c *engine.Config) { c.Conntrack = noLabels{w.ct} })
	w.login()
	w.helped()
	if w.logged("kind=unlabelled") != 1 {
		t.Errorf("log:\n%s", &w.log)
	}
}

type noLabels struct{ engine.Conntrack }

func (noLabels) Update(*expect.Master, expect.Update) error {
	return fmt.Errorf("no space left on device")
}

// TestNoLogin has a PORT before USER on a connection that is FTP otherwise.
func TestNoLogin(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.open()
	w.say(server, ready)
	w.harmless(client, port)
	if w.logged("reason=no_login") != 1 {
		t.Errorf("log:\n%s", &w.log)
	}
	w.say(server, "530 log in\r\n")
	w.say(client, login)
	w.say(server, "230 in\r\n")
	w.helped()
}
