package engine_test

import (
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// decisions are the log lines of a world that say what was decided, in words that do not depend on
// whether that was done.
func (w *world) decisions() []string {
	var lines []string
	for line := range strings.Lines(w.log.String()) {
		if _, line, ok := strings.Cut(line, " kind="); ok {
			line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), " monitor=true")
			lines = append(lines, strings.Replace(line, engine.WouldOpen.String(), engine.Expected.String(), 1))
		}
	}
	return lines
}

// TestMonitor has an engine that only monitors decide as one that helps does, and change nothing.
func TestMonitor(t *testing.T) {
	type step struct {
		dir  expect.Direction
		text string
	}
	dialogue := []step{
		{client, "PASV\r\n"}, {server, "227 Entering Passive Mode (192,168,1,2,145,37)\r\n"},
		{client, "EPSV\r\n"}, {server, "229 Extended Passive Mode (|||37158|)\r\n"},
		{client, "PORT 203,0,113,101,200,1\r\n"}, {server, "200 done\r\n"},
		{client, "EPRT |1|203.0.113.101|51202|\r\n"}, {server, "200 done\r\n"},
		{client, "PORT 203,0,113,101,0,20\r\n"}, {server, "500 no\r\n"},
		{client, "PORT 203,0,113,102,200,1\r\n"}, {server, "500 no\r\n"},
		{client, "PORT 203,0,113,101,200\r\n"}, {server, "500 no\r\n"},
		{client, "PASV\r\n"}, {server, "227 Entering Passive Mode (192,168,"}, {server, "1,2,145,39)\r\n"},
		{server, "227 Entering Passive Mode (192,168,1,2,145,40)\r\n"},
		{client, "AUTH TLS\r\n"}, {server, "234 go ahead\r\n"},
		{client, "PORT 203,0,113,101,200,1\r\n"},
	}
	monitor := func(c *engine.Config) { c.Mode = engine.Monitor() }
	helps := newWorld(t, natOriginal, natReply)
	monitors := newWorld(t, natOriginal, natReply, monitor)
	monitors.entry.Helper = "" // it needs none
	for _, w := range []*world{helps, monitors} {
		w.login()
		for _, s := range dialogue {
			if got := w.say(s.dir, s.text); w == monitors && got != s.text {
				t.Errorf("%q came out as %q", s.text, got)
			}
		}
	}
	want, got := helps.decisions(), monitors.decisions()
	if strings.Join(want, "\n") != strings.Join(got, "\n") || len(helps.ct.Installed) != 5 {
		t.Errorf("decided:\n%s\nwithout --monitor:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if monitors.ct.Installed != nil || monitors.ct.Adjustments != 0 || len(labels(monitors.entry)) != 0 {
		t.Errorf("conntrack has %v, %d adjustments, labels %v", monitors.ct.Installed, monitors.ct.Adjustments, labels(monitors.entry))
	}
	if n := monitors.logged("monitor=true"); n != len(got) || monitors.logged("would open") != 5 || monitors.logged("would refuse") != 3 {
		t.Errorf("the log does not say that nothing was done:\n%s", &monitors.log)
	}
	s := monitors.eng.Stats()
	if s.WouldOpen != 5 || s.Expectations != 0 || s.Changed != 0 || s.Edits != 0 {
		t.Errorf("it has counted %+v", s)
	}
	flows, _ := monitors.eng.AppendFlows(nil, 0, 1<<20)
	if len(flows) != 1 || flows[0].State != engine.StateEncrypted || flows[0].Expected != 5 {
		t.Errorf("flows %+v", flows)
	}
}

// TestMonitorGap has packets come out of order: each passes at once, and what they say is still read.
func TestMonitorGap(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.Mode = engine.Monitor() })
	w.login()
	w.say(client, "PASV\r\n")
	const text = "227 Entering Passive Mode (192,168,1,2,145,37)\r\n"
	const cut = 20
	if got := payloads(t, w.send(server, w.next[server]+cut, text[cut:])); got != text[cut:] {
		t.Errorf("the second part came out as %q", got)
	}
	if got := payloads(t, w.send(server, w.next[server], text[:cut])); got != text[:cut] {
		t.Errorf("the first part came out as %q", got)
	}
	if w.logged("kind=would-open") != 1 {
		t.Errorf("log:\n%s", &w.log)
	}
	flows, _ := w.eng.AppendFlows(nil, 0, 1<<20)
	if len(flows) != 1 || flows[0].State != engine.StateMonitored {
		t.Errorf("flows %+v", flows)
	}
}

// TestMonitorBesideAnother has another helper make the lines longer: acknowledgements then count bytes
// that the engine has not seen, and segments that are missing are not taken for read.
func TestMonitorBesideAnother(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.Mode = engine.Monitor() })
	w.login()
	for range 20 {
		w.say(client, "PASV\r\n")
		w.say(server, "227 Entering Passive Mode (192,168,1,2,145,37)\r\n")
	}
	w.say(client, "PASV\r\n")
	const text, cut = "227 Entering Passive Mode (192,168,1,2,145,37)\r\n", 20
	w.send(server, w.next[server]+cut, text[cut:])
	w.acked[server] = w.next[server] + 20*40
	w.send(client, w.next[client], "NOOP\r\n")
	w.send(server, w.next[server], text[:cut])
	if n := w.logged("kind=would-open"); n != 21 {
		t.Errorf("it would have opened %d of 21:\n%s", n, &w.log)
	}
}
