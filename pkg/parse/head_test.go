package parse

import (
	"strings"
	"testing"
)

func TestIsClientLine(t *testing.T) {
	for _, line := range []string{
		"", "\r", " \t\r", "\r\x00", "USER", "USER me\r", "user me", "USER J\u00fcrgen", "USER J\xfcrgen\xff", "USER a:b@example.org", "PASS a\tb",
		"OPEN ftp.example.org", "SITE help", "HOST ftp.example.org", "XCRC", "XSHA256", "P@SW\r", "\x00USER me", "PROXY TCP4 192.0.2.1 192.0.2.2 1 21\r",
		"\xff\xf4\xff\xf2ABOR\r", "\xff\xfd\x03USER me\r", "USER \xff\xfd\x03me", "USER me\r\x00", "USER a\r\x00b", "CLNT x HTTP", "CLNT a/1.0",
	} {
		if !IsClientLine([]byte(line)) {
			t.Errorf("%q is no line of an FTP client", line)
		}
	}
	for _, line := range []string{
		"STAT / HTTP/1.1\r", "USER x HTTP/1.1", "OPTIONS * RTSP/1.0\r", "REGISTER sip:x SIP/2.0", "OPTIONS icap://x ICAP/1.0", "Host: x", "User-Agent: x", "USER: me",
		" USER me", "\x16\x03\x01\x02\x00USER me", "USER \x16\x03", "USER a\rb", "USER a\x00b", "USER \x1b[2J", "USER \x7f", "{}", "x=1", "1 USER me", "@USER me", "USER\x00",
		"\xff\xfaPOST / HTTP/1.1", "\xff\xfa\xff\xf0USER me", "HELP \xff\xfa\x16\x03",
	} {
		if IsClientLine([]byte(line)) {
			t.Errorf("%q is a line of an FTP client", line)
		}
	}
}

func TestProxyHeader(t *testing.T) {
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"
	for stream, want := range map[string]int{
		"":                             0,
		"USER me\r\n":                  0,
		"PROXY UNKNOWN\r\nUSER me\r\n": 0,
		v2:                             28,
		v2 + strings.Repeat("\n", 12) + "USER me\r\n": 28,
		v2[:15]:                                0,
		strings.Replace(v2, "\x21", "\x11", 1): 0,
	} {
		if got := ProxyHeader([]byte(stream)); got != want {
			t.Errorf("%q begins with a header of %d bytes, want %d", stream, got, want)
		}
	}
}
