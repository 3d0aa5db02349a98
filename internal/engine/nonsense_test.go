package engine_test

import (
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// TestNonsense has one side talk what cannot be FTP, before the login and after it: the connection is given up, once.
func TestNonsense(t *testing.T) {
	for name, c := range map[string]struct {
		dir      expect.Direction
		text     string
		segments int
	}{
		"blank lines":            {client, strings.Repeat("\n", 1448), 1},
		"letters":                {client, strings.Repeat("x\n", 724), 1},
		"one after the other":    {client, "\x16\x03\x03\n", 64},
		"PORT, without endpoint": {client, "PORT\r\n", 64},
		"blank replies":          {server, strings.Repeat("\n", 1448), 1},
		"227, without endpoint":  {server, strings.Repeat("227\n", 362), 1},
	} {
		for kind, start := range map[string]func(*world){"nonsense": (*world).login, "not-ftp": (*world).open} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				w := newWorld(t, natOriginal, natReply)
				start(w)
				for range c.segments {
					w.harmless(c.dir, c.text)
				}
				w.harmless(client, login+port)
				w.harmless(c.dir, c.text)
				if w.logged("kind="+kind) != 1 || w.logged("kind=unreadable") > 64 {
					t.Errorf("log:\n%s", &w.log)
				}
			})
		}
	}
}

// TestOddDialogue has lines that are odd, and honest: the connection is helped.
func TestOddDialogue(t *testing.T) {
	for name, turns := range map[string][]turn{
		"pipelined":                   {{client, strings.Repeat("NOOP\r\n", 241)}, {server, strings.Repeat("200 OK\r\n", 181)}},
		"unknown verbs":               {{client, strings.Repeat("XSHA256 file\r\n", 100)}, {client, strings.Repeat("XSHA256 file\r\n", 100)}},
		"short names in a listing":    {{client, "STAT .\r\n"}, {server, "213-status\r\n" + strings.Repeat(" a\r\n", 350)}, {server, " b\r\n213 end\r\n"}},
		"blank lines in a reply":      {{client, "HELP\r\n"}, {server, "214-help\n" + strings.Repeat("\n", 1400) + "214 end\n"}},
		"text without a code":         {{client, "HELP\r\n"}, {server, strings.Repeat("some help\r\n", 140)}, {server, "214 end\r\n"}},
		"control characters in names": {{client, strings.Repeat("DELE \x01\x02\r\n", 100)}},
		"some junk":                   {{client, strings.Repeat("\x01\r\n", 63)}, {client, "NOOP\r\n"}, {client, strings.Repeat("\x01\r\n", 63)}},
		"keep-alive":                  {{client, strings.Repeat("\r\n", 40)}, {client, strings.Repeat("\r\n", 40)}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply)
			w.login()
			for _, u := range turns {
				w.harmless(u.dir, u.text)
			}
			w.helped()
			w.unharmed()
		})
	}
}

// TestForgedInShortLines has a listing of short names, one of which looks like a reply.
func TestForgedInShortLines(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	w.say(client, "STAT .\r\nPASV\r\n")
	w.harmless(server, "213-status\r\n"+strings.Repeat(" a\r\n", 300))
	w.harmless(server, strings.Repeat(" a\r\n", 300)+forged+"213-"+forged)
	w.harmless(server, forged+"213 end\r\n")
	if got, want := w.say(server, "227 (192,168,1,2,4,1)\r\n"), "227 (192,0,2,2,4,1)\r\n"; got != want {
		t.Errorf("227 came out as %q, want %q", got, want)
	}
}
