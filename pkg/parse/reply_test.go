package parse

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseReply(t *testing.T) {
	for _, tt := range []struct {
		name string
		wire string
		code int
		more bool
		want announcement
		err  error
	}{
		{name: "227, the dot stays", wire: "227 Entering Passive Mode (198,51,100,9,4,1).\r\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227 Entering Passive Mode (203,0,113,107,195,80).\r\n"}},
		{name: "227 ended by LF alone", wire: "227 Entering Passive Mode (198,51,100,9,4,1)\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227 Entering Passive Mode (203,0,113,107,195,80)\n"}},
		{name: "227 and nothing but the numbers", wire: "227 198,51,100,9,4,1\r\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227 203,0,113,107,195,80\r\n"}},
		{name: "227 without parentheses", wire: "227 Entering Passive Mode 198,51,100,9,4,1.\r\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227 Entering Passive Mode 203,0,113,107,195,80.\r\n"}},
		{name: "227 with an equals sign", wire: "227 =198,51,100,9,4,1\r\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227 =203,0,113,107,195,80\r\n"}},
		{name: "227 with a number in its text", wire: "227 v2 mode (198,51,100,9,4,1)\r\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227 v2 mode (203,0,113,107,195,80)\r\n"}},
		{name: "227 with numbers in its text", wire: "227 On 1,2 and 3,4,5 (198,51,100,9,4,1)\r\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227 On 1,2 and 3,4,5 (203,0,113,107,195,80)\r\n"}},
		{name: "227, the first of two lists", wire: "227 (198,51,100,9,4,1) (1,2,3,4,5,6)\r\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227 (203,0,113,107,195,80) (1,2,3,4,5,6)\r\n"}},
		{name: "227, a list that is too long is not read from its middle", wire: "227 1,2,3,4,5,6,7 (198,51,100,9,4,1)\r\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227 1,2,3,4,5,6,7 (203,0,113,107,195,80)\r\n"}},
		{name: "227 with a tab", wire: "227\t198,51,100,9,4,1\r\n", code: 227, want: announcement{"198.51.100.9", 1025, "198,51,100,9,4,1", "227\t203,0,113,107,195,80\r\n"}},
		{name: "227 with blanks between the numbers", wire: "227 Entering Passive Mode (192, 168, 1, 2, 145, 37).\r\n", code: 227, want: announcement{"192.168.1.2", 37157, "192, 168, 1, 2, 145, 37", "227 Entering Passive Mode (203,0,113,107,195,80).\r\n"}},
		{name: "227 with a list in its text", wire: "227 v2 , 3 , (192 ,168,1, 2,145,37)\r\n", code: 227, want: announcement{"192.168.1.2", 37157, "192 ,168,1, 2,145,37", "227 v2 , 3 , (203,0,113,107,195,80)\r\n"}},
		{name: "227 after a NUL and a telnet command", wire: "\x00\xff\xfb\x01227 (192,168,1,2,145,37)\r\n", code: 227, want: announcement{"192.168.1.2", 37157, "192,168,1,2,145,37", "\x00\xff\xfb\x01227 (203,0,113,107,195,80)\r\n"}},
		// Nobody can be asked for a connection to this address, which is for policy to see.
		{name: "227 with no address", wire: "227 Entering Passive Mode (0,0,0,0,82,237)\r\n", code: 227, want: announcement{"0.0.0.0", 21229, "0,0,0,0,82,237", "227 Entering Passive Mode (203,0,113,107,195,80)\r\n"}},
		{name: "227 to something else", wire: "227 Logout.\r\n", code: 227, err: ErrSyntax},
		{name: "227 alone", wire: "227\r\n", code: 227, err: ErrSyntax},
		{name: "227 alone, LF", wire: "227\n", code: 227, err: ErrSyntax},
		{name: "227, five numbers", wire: "227 (198,51,100,9,4)\r\n", code: 227, err: ErrSyntax},
		{name: "227, seven numbers", wire: "227 (198,51,100,9,4,1,1)\r\n", code: 227, err: ErrSyntax},
		{name: "227, octet 256", wire: "227 (198,51,100,256,4,1)\r\n", code: 227, err: ErrRange},
		{name: "227, port 0", wire: "227 (198,51,100,9,0,0)\r\n", code: 227, err: ErrRange},
		{name: "227, a number that would end right", wire: "227 (1198,51,100,9,4,1)\r\n", code: 227, err: ErrRange},
		{name: "227, the code is none of the numbers", wire: "227,1,2,3,4,5\r\n"},
		{name: "227 that begins a block", wire: "227-Entering Passive Mode (198,51,100,9,4,1)\r\n", code: 227, more: true},

		{name: "229", wire: "229 Entering Extended Passive Mode (|||50006|).\r\n", code: 229, want: announcement{"", 50006, "50006", "229 Entering Extended Passive Mode (|||50000|).\r\n"}},
		{name: "229, another delimiter", wire: "229 Extended (!!!9447!)\r\n", code: 229, want: announcement{"", 9447, "9447", "229 Extended (!!!50000!)\r\n"}},
		{name: "229, shortest and highest", wire: "229 (|||65535|\n", code: 229, want: announcement{"", 65535, "65535", "229 (|||50000|\n"}},
		{name: "229, one digit", wire: "229 (|||1|)", code: 229, want: announcement{"", 1, "1", "229 (|||50000|)"}},
		{name: "229, leading zeros", wire: "229 (|||000001025|)\r\n", code: 229, want: announcement{"", 1025, "000001025", "229 (|||50000|)\r\n"}},
		{name: "229, other parentheses before it", wire: "229 EPSV (RFC 2428) ok (|||50006|)\r\n", code: 229, want: announcement{"", 50006, "50006", "229 EPSV (RFC 2428) ok (|||50000|)\r\n"}},
		{name: "229, a number that cannot be used before it", wire: "229 (|||0|) (|||50006|)\r\n", code: 229, want: announcement{"", 50006, "50006", "229 (|||0|) (|||50000|)\r\n"}},
		{name: "229, nothing behind one digit and its delimiter", wire: "229 (|||1|", code: 229, want: announcement{"", 1, "1", "229 (|||50000|"}},
		{name: "229, the first delimiter differs", wire: "229 (x||6446|)\r\n", code: 229, err: ErrSyntax},
		{name: "229 to something else", wire: "229 Extended.\r\n", code: 229, err: ErrSyntax},
		{name: "229 alone", wire: "229\r\n", code: 229, err: ErrSyntax},
		{name: "229, no number", wire: "229 (||||)\r\n", code: 229, err: ErrSyntax},
		{name: "229, no last delimiter", wire: "229 (|||6446)\r\n", code: 229, err: ErrSyntax},
		{name: "229, nothing behind the number", wire: "229 (|||6446", code: 229, err: ErrSyntax},
		{name: "229, delimiters that differ", wire: "229 (|!|6446|)\r\n", code: 229, err: ErrSyntax},
		{name: "229, last delimiter differs", wire: "229 (|||6446!)\r\n", code: 229, err: ErrSyntax},
		{name: "229, with protocol and address", wire: "229 (|1|198.51.100.9|6446|)\r\n", code: 229, err: ErrSyntax},
		{name: "229, two delimiters", wire: "229 (||6446|)\r\n", code: 229, err: ErrSyntax},
		{name: "229, spaces as delimiters", wire: "229 (   6446 )\r\n", code: 229, err: ErrSyntax},
		{name: "229, digits as delimiters", wire: "229 (11164461)\r\n", code: 229, err: ErrSyntax},
		{name: "229, no parenthesis", wire: "229 |||6446|\r\n", code: 229, err: ErrSyntax},
		{name: "229, port 0", wire: "229 (|||0|)\r\n", code: 229, err: ErrRange},
		{name: "229, port 65536", wire: "229 (|||65536|)\r\n", code: 229, err: ErrRange},
		{name: "229, port 1000000", wire: "229 (|||1000000|)\r\n", code: 229, err: ErrRange},
		{name: "229, port 2^64+22", wire: "229 (|||18446744073709551638|)\r\n", code: 229, err: ErrRange},
		{name: "229 that begins a block", wire: "229-Extended (|||50006|)\r\n", code: 229, more: true},

		{name: "greeting", wire: "220 ready (198,51,100,9,4,1)\r\n", code: 220},
		{name: "greeting of several lines", wire: "220-ready\r\n", code: 220, more: true},
		{name: "AUTH accepted", wire: "234 AUTH TLS OK.\r\n", code: 234},
		{name: "lowest code", wire: "100 x\r\n", code: 100},
		{name: "highest code", wire: "599 x\r\n", code: 599},
		{name: "an error that quotes a 227", wire: "550 227 (198,51,100,9,4,1): no such file\r\n", code: 550},
		{name: "code 0xx", wire: "027 x\r\n"},
		{name: "code 6xx", wire: "631 x\r\n"},
		{name: "a letter in the code", wire: "2x7 (198,51,100,9,4,1)\r\n"},
		{name: "a letter at the end of the code", wire: "22x (198,51,100,9,4,1)\r\n"},
		{name: "two digits", wire: "22 x\r\n"},
		{name: "four digits", wire: "2270 (198,51,100,9,4,1)\r\n"},
		{name: "a letter behind the code", wire: "227x(198,51,100,9,4,1)\r\n"},
		{name: "a space before the code", wire: " 227 (198,51,100,9,4,1)\r\n"},
		{name: "text", wire: "Entering Passive Mode (198,51,100,9,4,1)\r\n"},
		{name: "empty line", wire: "\r\n"},
		{name: "nothing", wire: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ParseReply(lineOf(tt.wire))
			if r.Code != tt.code || r.More != tt.more || err != tt.err {
				t.Errorf("ParseReply(%q): %d, more %v, %v; want %d, %v, %v", tt.wire, r.Code, r.More, err, tt.code, tt.more, tt.err)
			}
			tt.want.check(t, tt.wire, r.Endpoint)
		})
	}
}

func TestAppendSameLength(t *testing.T) {
	long, short := "203.0.113.101:65535", "1.2.3.4:256"
	for _, tt := range []struct {
		name, line, to string
		want           string // "" where it cannot be done
	}{
		{"the text gives up a word", "227 Entering Passive Mode (192,168,1,2,4,1).\r", long, "227    Passive Mode (203,0,113,101,255,255).\r"},
		{"the text gets spaces", "227 Entering Passive Mode (192,168,1,2,4,1).\r", short, "227     Entering Passive Mode (1,2,3,4,1,0).\r"},
		{"the same length", "227 Entering Passive Mode (192,168,1,2,4,1).\r", "192.168.1.3:1025", "227 Entering Passive Mode (192,168,1,3,4,1).\r"},
		{"a word cut in the middle", "227 abcd Mode (192,168,1,2,4,1)", "10.168.10.229:1025", "227    Mode (10,168,10,229,4,1)"},
		{"just one word", "227 ab Mode (192,168,1,2,4,1)", "10.168.10.229:1025", "227  Mode (10,168,10,229,4,1)"},
		{"no text to give one byte", "227 (192,168,1,2,4,1)", "192.168.1.2:2561", ""},
		{"all of the text", "227 abcd (192,168,1,2,4,1)", "192.168.100.2:41234", "227 (192,168,100,2,161,18)"},
		{"all of the text, and one byte is missing", "227 abcd(192,168,1,2,4,1)", "192.168.100.2:41234", ""},
		{"no text to give", "227 (192,168,1,2,4,1)", long, ""},
		{"what is left of the only word", "227 abcdefg(192,168,1,2,4,1)", long, "227  (203,0,113,101,255,255)"},
		{"nothing but numbers, shorter", "227 192,168,1,2,4,1", short, "227     1,2,3,4,1,0"},
		{"an equals sign can go", "227 =192,168,1,2,4,1", "192.168.1.2:2561", "227 192,168,1,2,10,1"},
		{"what stands behind stays", "227 Passive 192,168,1,2,4,1 (1,2,3)", "192.168.1.2:2561", "227        192,168,1,2,10,1 (1,2,3)"},
		{"229, longer port", "229 Extended (|||1025|)", "192.0.2.1:50000", "229         (|||50000|)"},
		{"229, shorter port", "229 Extended (|||50000|)", "192.0.2.1:1025", "229  Extended (|||1025|)"},
		{"229, no text to give", "229 (|||1025|)", "192.0.2.1:50000", ""},
		{"229, a parenthesis as delimiter", "229 ab ((((1025()", "192.0.2.1:50000", "229   ((((50000()"},
		{"an IPv6 address", "227 Entering Passive Mode (192,168,1,2,4,1).", "[2001:db8::1]:1025", ""},
		// The tail of a word may be a list of its own.
		{"numbers in the text", "227 1,2,3,4,5,6,7(192,168,1,2,4,1)", "192.168.10.20:1025", "227            (192,168,10,20,4,1)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := endpointOf(t, tt.line)
			start, out, ok := e.AppendSameLength([]byte("before"), []byte(tt.line), netip.MustParseAddrPort(tt.to))
			if ok != (tt.want != "") || !strings.HasPrefix(string(out), "before") {
				t.Fatalf("%v, %q", ok, out)
			}
			if !ok {
				if string(out) != "before" {
					t.Errorf("%q appended", out)
				}
				return
			}
			if got := tt.line[:start] + string(out[6:]) + tt.line[e.Span.End:]; got != tt.want || len(got) != len(tt.line) {
				t.Errorf("%q, %d bytes; want %q, %d bytes", got, len(got), tt.want, len(tt.line))
			}
		})
	}
}
