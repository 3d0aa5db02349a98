package parse

import (
	"net/netip"
	"strings"
	"testing"
)

// What every announced endpoint is replaced by in the tables: longer than most.
var (
	other4 = netip.MustParseAddrPort("203.0.113.107:50000")
	other6 = netip.MustParseAddrPort("[2001:db8::107]:50000")
)

// announcement is what a table says of the endpoint in a line; the zero value is none.
type announcement struct {
	addr    string // "" for a 229
	port    uint16
	span    string // the text that the span covers
	rewrite string // the whole line with the other endpoint of addr's family
}

// check compares e, as read from wire, with the announcement.
func (want announcement) check(t *testing.T, wire string, e Endpoint) {
	t.Helper()
	if want == (announcement{}) {
		if e != (Endpoint{}) || e.IsValid() {
			t.Errorf("endpoint %+v, want none", e)
		}
		return
	}
	if !e.IsValid() {
		t.Fatal("no endpoint")
	}
	var addr netip.Addr
	if want.addr != "" {
		addr = netip.MustParseAddr(want.addr)
	}
	if e.Addr != addr || e.Port != want.port {
		t.Errorf("endpoint %v port %d, want %v port %d", e.Addr, e.Port, addr, want.port)
	}
	if got := wire[e.Span.Start:e.Span.End]; got != want.span || e.Span.Len() != len(want.span) {
		t.Errorf("span %v covers %q, want %q", e.Span, got, want.span)
	}
	ap := other4
	if addr.Is6() {
		ap = other6
	}
	if got := rewrite(wire, e, ap); got != want.rewrite {
		t.Errorf("rewritten to %q, want %q", got, want.rewrite)
	}
}

// rewrite returns line with ap in the place of e.
func rewrite(line string, e Endpoint, ap netip.AddrPort) string {
	return string(e.AppendText([]byte(line[:e.Span.Start]), ap)) + line[e.Span.End:]
}

// lineOf returns a line as Stream hands it out.
func lineOf(wire string) []byte { return []byte(strings.TrimSuffix(wire, "\n")) }

func TestParseCommand(t *testing.T) {
	for _, tt := range []struct {
		name string
		wire string
		verb Verb
		want announcement
		err  error
	}{
		{name: "PORT", wire: "PORT 192,168,0,2,4,1\r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "PORT 203,0,113,107,195,80\r\n"}},
		{name: "PORT in lower case", wire: "port 192,168,0,2,4,1\r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "port 203,0,113,107,195,80\r\n"}},
		{name: "PORT in mixed case", wire: "pOrT 192,168,0,2,4,1\r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "pOrT 203,0,113,107,195,80\r\n"}},
		{name: "PORT ended by LF alone", wire: "PORT 192,168,0,2,4,1\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "PORT 203,0,113,107,195,80\n"}},
		{name: "PORT ended by two CR", wire: "PORT 192,168,0,2,4,1\r\r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "PORT 203,0,113,107,195,80\r\r\n"}},
		{name: "PORT and two spaces", wire: "PORT  192,168,0,2,4,1\r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "PORT  203,0,113,107,195,80\r\n"}},
		{name: "PORT and a tab", wire: "PORT\t192,168,0,2,4,1\r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "PORT\t203,0,113,107,195,80\r\n"}},
		{name: "PORT and a space before CR", wire: "PORT 192,168,0,2,4,1 \r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "PORT 203,0,113,107,195,80 \r\n"}},
		{name: "PORT with leading zeros, which are decimal", wire: "PORT 192,168,000,002,010,0000000000000000000010\r\n", verb: PORT, want: announcement{"192.168.0.2", 2570, "192,168,000,002,010,0000000000000000000010", "PORT 203,0,113,107,195,80\r\n"}},
		{name: "PORT, all numbers at their highest", wire: "PORT 255,255,255,255,255,255\r\n", verb: PORT, want: announcement{"255.255.255.255", 65535, "255,255,255,255,255,255", "PORT 203,0,113,107,195,80\r\n"}},
		// What these announce is a matter of policy, not of form.
		{name: "PORT with a port below 1024", wire: "PORT 192,168,0,2,0,22\r\n", verb: PORT, want: announcement{"192.168.0.2", 22, "192,168,0,2,0,22", "PORT 203,0,113,107,195,80\r\n"}},
		{name: "PORT with the loopback address", wire: "PORT 127,0,0,1,4,1\r\n", verb: PORT, want: announcement{"127.0.0.1", 1025, "127,0,0,1,4,1", "PORT 203,0,113,107,195,80\r\n"}},
		{name: "PORT alone", wire: "PORT\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT and a space", wire: "PORT \r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, nothing behind it", wire: "PORT", verb: PORT, err: ErrSyntax},
		{name: "PORT, five numbers", wire: "PORT 192,168,0,2,4\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, five numbers and a comma", wire: "PORT 192,168,0,2,4,\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, seven numbers", wire: "PORT 192,168,0,2,4,1,1\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, six numbers and a comma", wire: "PORT 192,168,0,2,4,1,\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, an empty number", wire: "PORT 192,168,,2,4,1\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, dots", wire: "PORT 192.168.0.2.4.1\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT with blanks between the numbers", wire: "PORT 192, 168,\t0 ,2 , 4, 1\r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192, 168,\t0 ,2 , 4, 1", "PORT 203,0,113,107,195,80\r\n"}},
		{name: "PORT, blanks for commas", wire: "PORT 192 168 0 2 4 1\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, seven numbers with blanks", wire: "PORT 192, 168, 0, 2, 4, 1 , 1\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT after the NUL of a line end, NUL after CR", wire: "\x00PORT 192,168,0,2,4,1\r\x00\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "\x00PORT 203,0,113,107,195,80\r\x00\n"}},
		{name: "PORT, a sign", wire: "PORT 192,168,0,2,4,-1\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, hexadecimal", wire: "PORT 192,168,0,2,4,0x1\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, text behind it", wire: "PORT 192,168,0,2,4,1 x\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, text directly behind it", wire: "PORT 192,168,0,2,4,1x\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, in parentheses", wire: "PORT (192,168,0,2,4,1)\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, CR in the middle", wire: "PORT 192,168,0,2,4,1\rNOOP\r\n", verb: PORT, err: ErrSyntax},
		{name: "PORT, port byte 256", wire: "PORT 10,0,1,2,256,22\r\n", verb: PORT, err: ErrRange},
		{name: "PORT, last byte 256", wire: "PORT 10,0,1,2,4,256\r\n", verb: PORT, err: ErrRange},
		{name: "PORT, octet 258", wire: "PORT 192,168,0,258,4,1\r\n", verb: PORT, err: ErrRange},
		{name: "PORT, first octet 448 is not 192", wire: "PORT 448,168,0,2,4,1\r\n", verb: PORT, err: ErrRange},
		{name: "PORT, 2^16 is not 0", wire: "PORT 192,168,65536,2,4,1\r\n", verb: PORT, err: ErrRange},
		{name: "PORT, 2^32 is not 0", wire: "PORT 192,168,4294967296,2,4,1\r\n", verb: PORT, err: ErrRange},
		{name: "PORT, 2^64+1 is not 1", wire: "PORT 192,168,0,2,4,18446744073709551617\r\n", verb: PORT, err: ErrRange},
		{name: "PORT, port 0", wire: "PORT 192,168,0,2,0,0\r\n", verb: PORT, err: ErrRange},

		{name: "EPRT, IPv4", wire: "EPRT |1|192.168.0.2|1025|\r\n", verb: EPRT, want: announcement{"192.168.0.2", 1025, "192.168.0.2|1025", "EPRT |1|203.0.113.107|50000|\r\n"}},
		{name: "EPRT, IPv6", wire: "EPRT |2|fd00::2|1025|\r\n", verb: EPRT, want: announcement{"fd00::2", 1025, "fd00::2|1025", "EPRT |2|2001:db8::107|50000|\r\n"}},
		{name: "EPRT, IPv6 in full and upper case", wire: "eprt |2|FD00:0:0:0:0:0:0:00A2|1025|\r\n", verb: EPRT, want: announcement{"fd00::a2", 1025, "FD00:0:0:0:0:0:0:00A2|1025", "eprt |2|2001:db8::107|50000|\r\n"}},
		{name: "EPRT, IPv6 that ends in dots", wire: "EPRT |2|::ffff:192.168.0.2|1025|\r\n", verb: EPRT, want: announcement{"::ffff:192.168.0.2", 1025, "::ffff:192.168.0.2|1025", "EPRT |2|2001:db8::107|50000|\r\n"}},
		{name: "EPRT, another delimiter", wire: "EPRT !1!192.168.0.2!1025!\r\n", verb: EPRT, want: announcement{"192.168.0.2", 1025, "192.168.0.2!1025", "EPRT !1!203.0.113.107!50000!\r\n"}},
		{name: "EPRT, a letter as delimiter", wire: "EPRT x2xfd00::2x1025x\r\n", verb: EPRT, want: announcement{"fd00::2", 1025, "fd00::2x1025", "EPRT x2x2001:db8::107x50000x\r\n"}},
		{name: "EPRT, the last of the delimiters there are", wire: "EPRT ~1~192.168.0.2~1025~\r\n", verb: EPRT, want: announcement{"192.168.0.2", 1025, "192.168.0.2~1025", "EPRT ~1~203.0.113.107~50000~\r\n"}},
		{name: "EPRT, spaces around", wire: "EPRT   |1|192.168.0.2|1025| \r\n", verb: EPRT, want: announcement{"192.168.0.2", 1025, "192.168.0.2|1025", "EPRT   |1|203.0.113.107|50000| \r\n"}},
		{name: "EPRT, leading zeros", wire: "EPRT |01|192.168.000.010|0001025|\n", verb: EPRT, want: announcement{"192.168.0.10", 1025, "192.168.000.010|0001025", "EPRT |01|203.0.113.107|50000|\n"}},
		{name: "EPRT, highest port", wire: "EPRT |1|192.168.0.2|65535|\r\n", verb: EPRT, want: announcement{"192.168.0.2", 65535, "192.168.0.2|65535", "EPRT |1|203.0.113.107|50000|\r\n"}},
		{name: "EPRT alone", wire: "EPRT\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, delimiter alone", wire: "EPRT |\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, protocol alone", wire: "EPRT |1\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, no last delimiter", wire: "EPRT |1|192.168.0.2|1025\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, no port", wire: "EPRT |1|192.168.0.2||\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, no port nor delimiter", wire: "EPRT |1|192.168.0.2\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, no address", wire: "EPRT |1||1025|\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, no IPv6 address", wire: "EPRT |2||1025|\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, no protocol", wire: "EPRT ||192.168.0.2|1025|\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, text behind it", wire: "EPRT |1|192.168.0.2|1025|x\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, delimiters that differ", wire: "EPRT |1|192.168.0.2!1025|\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, a digit as delimiter", wire: "EPRT 112192.168.0.2210252\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, DEL as delimiter", wire: "EPRT \x7f1\x7f192.168.0.2\x7f1025\x7f\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, delimiter beyond ASCII", wire: "EPRT \xa61\xa6192.168.0.2\xa61025\xa6\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, three octets", wire: "EPRT |1|192.168.2|1025|\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, five octets", wire: "EPRT |1|192.168.0.2.1|1025|\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, not an address", wire: "EPRT |2|fd00::2::1|1025|\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, IPv6 with a zone", wire: "EPRT |2|fe80::2%1|1025|\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, IPv6 cut by its own delimiter", wire: "EPRT :2:fd00::2:1025:\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, a host name", wire: "EPRT |1|localhost|1025|\r\n", verb: EPRT, err: ErrSyntax},
		{name: "EPRT, octet 256", wire: "EPRT |1|192.168.0.256|1025|\r\n", verb: EPRT, err: ErrRange},
		{name: "EPRT, port 0", wire: "EPRT |1|192.168.0.2|0|\r\n", verb: EPRT, err: ErrRange},
		{name: "EPRT, port 65558 is not 22", wire: "EPRT |1|192.168.0.2|65558|\r\n", verb: EPRT, err: ErrRange},
		{name: "EPRT, port 2^32+22 is not 22", wire: "EPRT |2|fd00::2|4294967318|\r\n", verb: EPRT, err: ErrRange},
		{name: "EPRT, IPv4 address as IPv6", wire: "EPRT |2|192.168.0.2|1025|\r\n", verb: EPRT, err: ErrFamily},
		{name: "EPRT, IPv6 address as IPv4", wire: "EPRT |1|fd00::2|1025|\r\n", verb: EPRT, err: ErrFamily},
		{name: "EPRT, IPv6 address that begins with digits as IPv4", wire: "EPRT |1|2001:db8::2|1025|\r\n", verb: EPRT, err: ErrFamily},
		{name: "EPRT, protocol 0", wire: "EPRT |0|192.168.0.2|1025|\r\n", verb: EPRT, err: ErrFamily},
		{name: "EPRT, protocol 3", wire: "EPRT |3|192.168.0.2|1025|\r\n", verb: EPRT, err: ErrFamily},
		{name: "EPRT, protocol 2^32+1 is not 1", wire: "EPRT |4294967297|192.168.0.2|1025|\r\n", verb: EPRT, err: ErrFamily},

		{name: "PASV", wire: "PASV\r\n", verb: PASV},
		{name: "PASV in lower case, LF alone", wire: "pasv\n", verb: PASV},
		{name: "PASV and a space", wire: "PASV \r\n", verb: PASV},
		{name: "EPSV", wire: "EPSV\r\n", verb: EPSV},
		{name: "EPSV 1", wire: "EPSV 1\r\n", verb: EPSV},
		{name: "EPSV 2", wire: "epsv 2\r\n", verb: EPSV},
		{name: "EPSV ALL", wire: "EPSV ALL\r\n", verb: EPSVALL},
		{name: "EPSV ALL in lower case, more spaces", wire: "epsv  all \n", verb: EPSVALL},
		{name: "EPSV and a longer word", wire: "EPSV ALLO\r\n", verb: EPSV},
		{name: "EPSV and two words", wire: "EPSV ALL 1\r\n", verb: EPSV},
		{name: "AUTH", wire: "AUTH TLS\r\n", verb: AUTH},
		{name: "AUTH in lower case", wire: "auth ssl\r\n", verb: AUTH},
		{name: "CCC", wire: "CCC\r\n", verb: Other},

		{name: "telnet IP and DM, as before ABOR", wire: "\xff\xf4\xff\xf2PORT 192,168,0,2,4,1\r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "\xff\xf4\xff\xf2PORT 203,0,113,107,195,80\r\n"}},
		{name: "telnet DO and WILL with their options", wire: "\xff\xfd\x01\xff\xfb\x50PORT 192,168,0,2,4,1\r\n", verb: PORT, want: announcement{"192.168.0.2", 1025, "192,168,0,2,4,1", "\xff\xfd\x01\xff\xfb\x50PORT 203,0,113,107,195,80\r\n"}},
		{name: "telnet subnegotiation", wire: "\xff\xfa\x18\x00PASV\xff\xf0EPRT |1|192.168.0.2|1025|\r\n", verb: EPRT, want: announcement{"192.168.0.2", 1025, "192.168.0.2|1025", "\xff\xfa\x18\x00PASV\xff\xf0EPRT |1|203.0.113.107|50000|\r\n"}},
		{name: "telnet NOP", wire: "\xff\xf1PASV\r\n", verb: PASV},
		{name: "telnet SE without SB", wire: "\xff\xf0PASV\r\n", verb: PASV},
		{name: "telnet GA, highest of two bytes", wire: "\xff\xf9PASV\r\n", verb: PASV},
		{name: "telnet DONT, highest of three bytes", wire: "\xff\xfePPASV\r\n", verb: PASV},
		{name: "telnet subnegotiation without end", wire: "\xff\xfa\x18PASV\r\n", verb: Unknown},
		{name: "telnet negotiation without option", wire: "\xff\xfb", verb: Unknown},
		{name: "telnet IAC alone", wire: "\xff", verb: Unknown},
		{name: "telnet IAC before a letter", wire: "\xffPASV\r\n", verb: Unknown},
		{name: "telnet byte that is no command", wire: "\xff\xefPASV\r\n", verb: Unknown},
		{name: "telnet IAC IAC is the data byte 255", wire: "\xff\xffPASV\r\n", verb: Unknown},
		{name: "telnet IAC IAC has no option", wire: "\xff\xffxPASV\r\n", verb: Unknown},
		{name: "telnet subnegotiation with commands in it", wire: "\xff\xfa\x18\xff\xf1x\xf0x\xff\xf0PASV\r\n", verb: PASV},
		{name: "telnet behind the verb", wire: "PASV\xff\xf1\r\n", verb: Unknown},

		{name: "PORT as an argument", wire: "SITE x PORT 1,2,3,4,5,6\r\n", verb: Other},
		{name: "PORT as a file name", wire: "RETR PORT 192,168,0,2,4,1\r\n", verb: Other},
		{name: "a longer word", wire: "PORTAL x\r\n", verb: Other},
		{name: "a longer word, numbers", wire: "PORTAL 192,168,0,2,4,1\r\n", verb: Other},
		{name: "a longer word that ends in PORT", wire: "XPORT 192,168,0,2,4,1\r\n", verb: Other},
		{name: "a shorter word", wire: "POR 192,168,0,2,4,1\r\n", verb: Other},
		{name: "a space before the verb", wire: " PORT 192,168,0,2,4,1\r\n", verb: Unknown},
		{name: "no space behind the verb", wire: "PORT192,168,0,2,4,1\r\n", verb: Unknown},
		{name: "CR behind the verb", wire: "NOOP\rPORT 192,168,0,2,4,1\r\n", verb: Unknown},
		{name: "NUL behind the verb", wire: "PASV\x00\r\n", verb: PASV},
		{name: "bytes that differ from letters in case bits only", wire: "\x10\x0f\x12\x14 192,168,0,2,4,1\r\n", verb: Unknown},
		{name: "NOOP", wire: "NOOP\r\n", verb: Other},
		{name: "three letters", wire: "pwd\r\n", verb: Other},
		{name: "XPWD", wire: "XPWD\r\n", verb: Other},
		{name: "HTTP POST", wire: "POST / HTTP/1.1\r\n", verb: Other},
		{name: "HTTP GET", wire: "GET / HTTP/1.1\r\n", verb: Other},
		{name: "HTTP header", wire: "Host: ftp.example:21\r\n", verb: Unknown},
		{name: "empty line", wire: "\r\n", verb: Unknown},
		{name: "nothing", wire: "", verb: Unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd, err := ParseCommand(lineOf(tt.wire))
			if cmd.Verb != tt.verb || err != tt.err {
				t.Errorf("ParseCommand(%q): %v, %v; want %v, %v", tt.wire, cmd.Verb, err, tt.verb, tt.err)
			}
			tt.want.check(t, tt.wire, cmd.Endpoint)
		})
	}
}

// TestCommandForm has lines that have the form of a command, whatever its word, and lines that have not.
func TestCommandForm(t *testing.T) {
	for line, want := range map[string]Verb{
		"USER me": USER, "user\r": USER, "NOOP": Other, "XCRC file": Other, "XSHA256 file": Other, "OPEN host": Other, "PROXY TCP4 192.0.2.1 192.0.2.2 1 21\r": Other,
		"GET / HTTP/1.1\r": Other, "Host: ftp.example": Unknown, "1PASV": Unknown, "PASV?": Unknown, "\x16\x03\x01": Unknown, "": Unknown, " PASV": Unknown,
		"P@SW": PASV, "p@sw\r": PASV, "P`SW": Unknown, "P@SV": Other, "@PSW": Unknown, "\x00PASV\r\x00": PASV, "\xff\xfb\x01\x00\xff\xf1EPSV": EPSV,
	} {
		if cmd, err := ParseCommand([]byte(line)); cmd.Verb != want || err != nil {
			t.Errorf("ParseCommand(%q): %v, %v; want %v", line, cmd.Verb, err, want)
		}
	}
}

func TestCanAnnounce(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		line   string
		v4, v6 bool
	}{
		{"PORT 192,168,0,2,4,1", true, false},
		// The protocol number lies outside the span and stays what it is.
		{"EPRT |1|192.168.0.2|1025|", true, false},
		{"EPRT |2|fd00::2|1025|", false, true},
		{"227 Entering Passive Mode (198,51,100,9,4,1).", true, false},
		// It says nothing of the address.
		{"229 Entering Extended Passive Mode (|||50006|)", true, true},
	} {
		e := endpointOf(t, tt.line)
		if got4, got6 := e.CanAnnounce(v4), e.CanAnnounce(v6); got4 != tt.v4 || got6 != tt.v6 {
			t.Errorf("%q can announce IPv4: %v, IPv6: %v; want %v, %v", tt.line, got4, got6, tt.v4, tt.v6)
		}
		for _, a := range []netip.Addr{v4, v6} {
			text := string(e.AppendText([]byte("x"), netip.AddrPortFrom(a, 1)))
			if e.CanAnnounce(a) == (text == "x") {
				t.Errorf("%q with %v: text %q does not go with CanAnnounce %v", tt.line, a, text, e.CanAnnounce(a))
			}
		}
	}
	if got := (Endpoint{}).AppendText([]byte("x"), other4); string(got) != "x" {
		t.Errorf("the zero Endpoint appends %q", got)
	}
}

// endpointOf returns the endpoint in a line of either side.
func endpointOf(t testing.TB, line string) Endpoint {
	t.Helper()
	var e Endpoint
	if isDigit(line[0]) {
		r, err := ParseReply([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		e = r.Endpoint
	} else {
		c, err := ParseCommand([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		e = c.Endpoint
	}
	if !e.IsValid() {
		t.Fatalf("no endpoint in %q", line)
	}
	return e
}
