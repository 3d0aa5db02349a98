package ftp

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

const login = `
S 220 ready
C USER me
  recognised
S 331 password
C PASS x
S 230 in
`

// run passes a dialogue through c: lines of the client (C) and the server (S), one that the server sends while a part of
// it has arrived before the client's next line (s), and lost bytes (C?, S?). Indented lines say what comes out.
func run(t *testing.T, c *Control, dialogue string) {
	t.Helper()
	var got, want []string
	for text := range strings.Lines(dialogue) {
		text = strings.TrimSuffix(text, "\n")
		if text == "" {
			continue
		}
		who, line, _ := strings.Cut(text, " ")
		line, err := strconv.Unquote(`"` + line + `"`)
		if err != nil {
			t.Fatal(text, err)
		}
		switch who {
		case "C", "c":
			got = append(got, text)
			got = append(got, describe(c.Command([]byte(line+"\r"), false, who == "c"))...)
		case "S":
			got = append(got, text)
			got = append(got, describe(c.Reply([]byte(line+"\r"), false))...)
		case "C?":
			got = append(got, text)
			c.CommandLost()
			c.CommandTail([]byte(line + "\r"))
		case "S?":
			got = append(got, text)
			c.ReplyLost()
		}
		want = append(want, text)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// describe returns what a line means, indented.
func describe(m Meaning) (lines []string) {
	add := func(format string, args ...any) { lines = append(lines, "  "+fmt.Sprintf(format, args...)) }
	switch {
	case m.Verb != parse.Unknown && !m.Solicited:
		add("%s unsolicited", m.Verb)
	case m.Err != nil:
		add("%s unreadable", m.Verb)
	case m.Verb != parse.Unknown:
		add("%s %d", m.Verb, m.Endpoint.Port)
	}
	if m.Recognised {
		add("recognised")
	}
	switch m.State {
	case Encrypted:
		add("encrypted")
	case NotFTP:
		add("not FTP")
	}
	if m.Odd != nil {
		add("odd: %.30s", m.Odd)
	}
	return lines
}

func TestDialogues(t *testing.T) {
	for name, dialogue := range map[string]string{
		"four verbs": login + `
C PASV
S 227 Entering Passive Mode (192,168,1,2,145,37).
  227 37157
C epsv
S 229 Extended (|||1025|)
  229 1025
C PORT 192, 168, 0, 2, 4, 1
  PORT 1025
S 200 ok
C EPRT |2|fd00::2|1026|
  EPRT 1026
S 200 ok
C P@SW
S 227 (192,168,1,2,4,1)
  227 1025
`,
		"the last line of a 227 of several lines announces": login + `
C PASV
S 227-listen socket created
S 227 (192,168,1,2,145,37)
  227 37157
C EPSV
S 229-one (|||9|)
S
S 200 foreign
S 229
S 229 (|||1025|)
  229 1025
`,
		"a reply that is ended by another code": login + `
C STAT
S 211-status
S  quiet
S 200 End
C PASV
S 227 (192,168,1,2,4,1)
  227 1025
  odd: the server did not end a multi
C PASV
S 227 (192,168,1,2,4,2)
  227 1026
`,
		"a reply that is never ended": login + `
C LIST
S 553-
S 553- Directory excluded
S 150 Opening
S 226 done
C PASV
S 227 (192,168,1,2,4,1)
  227 1025
  odd: the server did not end a multi
C LIST
S 553-
S 150 Opening
C PASV
S 227-
S 227 (192,168,1,2,4,2)
  227 1026
`,
		"a reply that is never ended, and ends in an empty line": login + `
C FEAT
S 211-Features
S 211-EPSV
S
C EPSV
S 229 (|||1025|)
  229 1025
  odd: the server did not end a multi
`,
		"a greeting that is never ended": `
S 220-welcome
C USER me
  recognised
S 331 password
  odd: the server did not end a multi
C PASS x
S 230-in
S enjoy
C PASV
S 227 (192,168,1,2,4,1)
S 200 what
C PASV
S 227 (192,168,1,2,4,2)
  227 1026
`,
		"each reply has a hyphen": login + `
C CWD x
S 250-ok
C CWD y
S 250-ok
C PASV
S 227 (192,168,1,2,4,1)
  227 1025
  odd: the server did not end a multi
`,
		"a command while a reply arrives": login + `
C FEAT
S 211-Features
C NOOP
S 211-EPSV
S 211 End
S 200 ok
`,
		"a code without a space does not end a reply": login + `
C CWD x
S 550-no
S 550
C PASV
S  PASV
S 227 (192,168,1,2,4,1)
S 550 really
S 227 (192,168,1,2,4,2)
  227 1026
`,
		"a 227 inside a reply is text": login + `
C STAT x
C PASV
S 213-status
S 227 (192,168,1,2,9,9)
S 213 end
S 227 (192,168,1,2,4,1)
  227 1025
C STAT x
S 213-status
S 226 half
S -rw- x
C PASV
S 227 (192,168,1,2,9,9)
S 213 end
S 227 (192,168,1,2,4,2)
  227 1026
C PASV
S 530-log in
S 227 (192,168,1,2,9,9)
S 530 please
C NOOP
S 227 (192,168,1,2,9,9)
  227 unsolicited
`,
		"a line of the reply had begun when the command passed": login + `
C STAT x
S 213-status
c PASV
S 227 (192,168,1,2,9,9)
S 213 end
S 227 (192,168,1,2,4,1)
  227 1025
`,
		"an answer that was not asked for": login + `
S 227 (192,168,1,2,9,9)
  227 unsolicited
S 227 Logout.
C PASV
S 227 (192,168,1,2,4,1)
  227 1025
S 227 (192,168,1,2,9,9)
  227 unsolicited
`,
		"an answer without an endpoint": login + `
C PASV
S 227 none
  227 unreadable
S 227 (192,168,1,2,4,1)
  227 1025
C PASV
S 227 none
  227 unreadable
C STAT
S 227 (192,168,1,2,9,9)
  227 unsolicited
C EPRT |1|192.168.0.2|0|
  EPRT unreadable
`,
		"an error is the answer once the client goes on": login + `
C PASV
S 502 no
C EPSV
S 500 no
C STAT
S 227 (192,168,1,2,9,9)
  227 unsolicited
`,
		"replies that cross a PASV": login + `
C RETR x
S 150 go
C ABOR
C PASV
S 426 aborted
S 226 done
S 226 again
S 426 aborted
S 227 (192,168,1,2,4,1)
  227 1025
`,
		"an error for the first of two": login + `
C EPSV
C PASV
S 500 no
S 227 (192,168,1,2,4,1)
  227 1025
S 227 (192,168,1,2,9,9)
  227 unsolicited
`,
		"EPSV ALL": login + `
C EPSV ALL
S 200 ok
C PASV
  odd: the client sent EPSV ALL, and 
S 502 no
C EPRT |1|192.168.0.2|1025|
  EPRT 1025
`,
		"AUTH": `
S 220 ready
C AUTH TLS
  recognised
S 534 no
C AUTH TLS
S 234 go
  encrypted
`,
		"a 234 inside a reply": login + `
C AUTH TLS
S 530-
S 234 go
S 530 no
`,
		"unknown commands first": `
S 220 ready
C \xff\xfd\x03
C HOST x
C OPEN x
C PROXY TCP4 192.0.2.1 192.0.2.2 1 21

C USER me
  recognised
`,
		"another protocol": `
S 220 ready
C STAT / HTTP/1.1
  not FTP
`,
		"a header": `
C STAT /
C Host: x
  not FTP
`,
		"the beginning was lost": `
C? 
C Host: x
C USER me
S 331 password
C PASS x
S 230 in
C PASV
S 227 (192,168,1,2,4,1)
  227 1025
`,
		"a PASV that may be the end of a line": login + `
C? PASV
S 227 (192,168,1,2,4,1)
  227 1025
C? PORT 192,168,0,2,4,1
C? xPASV
S 227 (192,168,1,2,4,1)
  227 unsolicited
`,
		"NUL and telnet": login + `
C \x00PORT 192,168,0,2,4,1\x00
  PORT 1025
C \x00
S \x00200 ok
C \xff\xfe\x01PASV
S \x00227 (192,168,1,2,4,1)
  227 1025
`,
		"a lost reply may have been the end": login + `
C STAT
S 211-x
S? 
C PASV
S 227 (192,168,1,2,4,1)
  227 1025
`,
	} {
		t.Run(name, func(t *testing.T) {
			c := Open()
			run(t, &c, dialogue)
		})
	}
}

// TestManyUnanswered has more commands than are remembered in front of and after a PASV.
func TestManyUnanswered(t *testing.T) {
	for _, n := range [][2]int{{70, 0}, {0, 70}, {70, 70}} {
		for _, answered := range []bool{true, false} {
			c := Open()
			noops := strings.Repeat("C NOOP\n", n[0])
			replies := ""
			if answered {
				replies = strings.Repeat("S 200 ok\n", n[0])
			}
			run(t, &c, login+"C RETR x\nS 150 go\n"+noops+"C PASV\n"+strings.Repeat("C NOOP\n", n[1])+"S 226 done\n"+replies+"S 227 (192,168,1,2,4,1)\n  227 1025\n")
		}
	}
}

// TestSkip has Skip pass over the same lines as Reply does.
func TestSkip(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "",
		" a":                              "",
		" a\r\n b\r\n c":                  " a\r\n b\r\n",
		" a\n227 (1,2,3,4,5,6)\n230 x":    " a\n227 (1,2,3,4,5,6)\n",
		"230 x\n a\n":                     "",
		" a\n230-x\n230\n b\n230 e\n":     " a\n230-x\n230\n b\n",
		"\n\n\n230":                       "\n\n\n",
		"150 x\n" + " a\n" + "226 done\n": "150 x\n a\n226 done\n",
		"\r\n":                            "\r\n",
		"226 x\n\r\n\n":                   "226 x\n\r\n\n",
		"x\n\n":                           "x\n\n",
	} {
		c, d := Resume(), Resume()
		c.Reply([]byte("230-hello"), false)
		d.Reply([]byte("230-hello"), false)
		n := c.Skip([]byte(text))
		if text[:n] != want {
			t.Errorf("of %q, %q is skipped, want %q", text, text[:n], want)
		}
		for line := range strings.Lines(text[:n]) {
			d.Reply([]byte(line[:len(line)-1]), false)
		}
		if c != d {
			t.Errorf("%q: %+v, line by line %+v", text, c, d)
		}
	}
	c := Resume()
	if n := c.Skip([]byte("x\n")); n != 0 {
		t.Errorf("%d bytes skipped outside of a reply", n)
	}
	c.Reply([]byte("230-hello"), false)
	c.Command([]byte("PASV"), false, false)
	if n := c.Skip([]byte("x\n")); n != 0 {
		t.Errorf("%d bytes skipped that may be the answer", n)
	}
}

// FuzzSkip wants Skip to pass over nothing that Reply would not pass over.
func FuzzSkip(f *testing.F) {
	f.Add("230-hello\n a\n227 (1,2,3,4,5,6)\n230-x\n230 end\n227 (1,2,3,4,5,6)\n")
	f.Add("230-a\n\n\x00230 b\n230-c\n230\n\xff\xf1230 d\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c, d Control
		for len(text) > 0 {
			n := c.Skip([]byte(text))
			for line := range strings.Lines(text[:n]) {
				if m := d.Reply([]byte(line[:len(line)-1]), false); m != (Meaning{}) {
					t.Fatalf("%q was passed over, and means %+v", line, m)
				}
			}
			if c != d {
				t.Fatalf("%+v, line by line %+v", c, d)
			}
			line, rest, ok := strings.Cut(text[n:], "\n")
			if !ok {
				return
			}
			c.Reply([]byte(line), false)
			d.Reply([]byte(line), false)
			text = rest
		}
	})
}

func TestHold(t *testing.T) {
	c := Open()
	run(t, &c, login)
	const part, text = "227 Mode (1", 10
	check := func(want int) {
		t.Helper()
		if got := c.HoldReply([]byte(part), false); got != want {
			t.Errorf("held from %d, want %d", got, want)
		}
	}
	check(len(part))
	run(t, &c, "C PASV")
	check(text)
	if got := c.HoldReply([]byte(part), true); got != 4 {
		t.Errorf("held from %d, want 4", got)
	}
	run(t, &c, "S 227-x")
	check(text)
	run(t, &c, "S 227 none\n  227 unreadable\nC STAT\nC PASV\nS 213-x")
	check(len(part))
	run(t, &c, "C NOOP")
	check(text)
	if got := c.HoldCommand([]byte("PORT 1")); got != 5 {
		t.Errorf("held from %d, want 5", got)
	}
	c = Open()
	if got := c.HoldCommand([]byte("PORT 1")); got != 6 {
		t.Errorf("held from %d before the greeting", got)
	}
}

// A connection at rest keeps its dialogue.
func TestSize(t *testing.T) {
	if n := unsafe.Sizeof(Control{}); n > 32 {
		t.Errorf("%d bytes", n)
	}
}

func TestAllocations(t *testing.T) {
	c := Open()
	pasv, reply, block, end := []byte("PASV\r"), []byte("227 (192,168,1,2,4,1)\r"), []byte("230-x"), []byte("230 x")
	if n := testing.AllocsPerRun(100, func() {
		c.Command(pasv, false, false)
		c.Reply(block, false)
		c.Reply(end, false)
		c.Reply(reply, false)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
