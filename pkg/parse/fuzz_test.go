package parse

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var commandSeeds = []string{
	"PORT 192,168,0,2,4,1\r", "port  192,168,000,2,4,1 ", "PORT 10,0,1,2,256,22", "PORT 1,2,3,4,5,6,7",
	"EPRT |1|192.168.0.2|1025|", "EPRT !2!fd00::2!1025!\r", "EPRT |2|192.168.0.2|1025|", "EPRT |1|192.168.0.2|65558|",
	"EPRT a2a::1a1a", "EPRT |2||1|", "EPRT .1.1.1.1.1.1.", "eprt :1:192.168.0.2:1025:", "EPRT |2|::ffff:1.2.3.4|1|",
	"EPSV ALL", "PASV", "AUTH TLS", "SITE x PORT 1,2,3,4,5,6", "\xff\xf4\xff\xf2PORT 192,168,0,2,4,1\r",
	"\xff\xfa\x18\xff\xf0PASV", "\xff\xfa", "\xff\xfb", "PORT 0000000192,168,0,2,4,18446744073709551617",
	"PORT 192, 168 ,\t0,2 , 4,1 ", "P@SW", "\x00PASV\r\x00", "XSHA256 x",
}

func FuzzParseCommand(f *testing.F) {
	for _, s := range commandSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if len(line) > MaxLine {
			return // Stream hands out none of these
		}
		cmd, err := ParseCommand(line)
		e := cmd.Endpoint
		announces := cmd.Verb.Announces()
		if e.IsValid() != (announces && err == nil) || err != nil && !announces {
			t.Fatalf("%v, %v and the endpoint %+v do not go together", cmd.Verb, err, e)
		}
		if other, otherErr := ParseCommand(swapCase(line)); other.Verb != cmd.Verb || otherErr != err ||
			other.Endpoint.Addr != e.Addr || other.Endpoint.Port != e.Port || other.Endpoint.Span != e.Span {
			t.Fatalf("in the other case it is %+v, %v, not %+v, %v", other, otherErr, cmd, err)
		}
		checkPartial(t, line, e, CommandEndpoint)
		if !e.IsValid() {
			return
		}
		checkEndpoint(t, line, e, func(line []byte) (Endpoint, error) {
			again, err := ParseCommand(line)
			if again.Verb != cmd.Verb {
				t.Fatalf("rewritten to %q the verb is %v, not %v", line, again.Verb, cmd.Verb)
			}
			return again.Endpoint, err
		})
	})
}

func FuzzParseReply(f *testing.F) {
	for _, s := range []string{
		"227 Entering Passive Mode (198,51,100,9,4,1).\r", "227 198,51,100,9,4,1", "227 Logout.", "227 v2 mode (198,51,100,9,4,1)",
		"227-x", "230-", "227 1,2,3,4,5,6,7 1,2,3,4,5,6", "227 256,1,1,1,1,1", "227\t1,2,3,4,0,0", "229 Extended (|||50006|).",
		"229 (!!!9447!)", "229 (|||1000000|)", "229 (|||0|)", "229 (|||6446)", "229 ((((1(", "227 1,2,3,4,5,6,7(1,2,3,4,5,6)", "229 a ((((1(", "227 (a) b c 1,2,3,4,5,6", "229 (|||0|) (|||1|", "234 x", "227",
		"227 v2 , 3 (192, 168 ,1,\t2,145 , 37)", "\x00227 (1,2,3,4,5,6)\r", "\xff\xfb\x01229 (|||5|)",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if len(line) > MaxLine {
			return
		}
		r, err := ParseReply(line)
		e := r.Endpoint
		announces := r.Verb.Announces() && !r.More
		if e.IsValid() != (announces && err == nil) || err != nil && !announces {
			t.Fatalf("%+v and %v do not go together", r, err)
		}
		if r.Code != 0 && (r.Code < 100 || r.Code > 599 || !bytes.Contains(line, []byte(strconv.Itoa(r.Code)))) {
			t.Fatalf("code %d", r.Code)
		}
		checkPartial(t, line, e, ReplyEndpoint)
		checkPartial(t, line, e, ReplyText)
		if e.IsValid() {
			checkSameLength(t, line, e)
			checkEndpoint(t, line, e, func(line []byte) (Endpoint, error) {
				again, err := ParseReply(line)
				return again.Endpoint, err
			})
		}
	})
}

// checkEndpoint checks e, which read finds in line: that it is what the text says, and that
// what is written in its place is read again.
func checkEndpoint(t *testing.T, line []byte, e Endpoint, read func([]byte) (Endpoint, error)) {
	t.Helper()
	if e.Span.Start < 0 || e.Span.Start >= e.Span.End || e.Span.End > len(line) {
		t.Fatalf("span %v of a line of %d bytes", e.Span, len(line))
	}
	addr, port := slowEndpoint(t, string(line[e.Span.Start:e.Span.End]), e)
	if e.Addr != addr || e.Port != port || port == 0 {
		t.Fatalf("%v port %d, the text says %v port %d", e.Addr, e.Port, addr, port)
	}
	for _, ap := range []netip.AddrPort{
		netip.AddrPortFrom(e.Addr, e.Port), netip.AddrPortFrom(e.Addr, 65535), netip.AddrPortFrom(e.Addr, 1),
		other4, other6, netip.MustParseAddrPort("255.255.255.255:65535"), netip.MustParseAddrPort("[::]:256"),
	} {
		if !e.CanAnnounce(ap.Addr()) {
			continue
		}
		text := e.AppendText(nil, ap)
		if e.form == formExtended && bytes.IndexByte(text, e.delim) < len(text)-1-len(strconv.Itoa(int(ap.Port()))) {
			continue // a delimiter that is a digit of the new address: nothing can be done
		}
		rewritten := []byte(rewrite(string(line), e, ap))
		again, err := read(rewritten)
		if err != nil {
			t.Fatalf("rewritten to %q: %v", rewritten, err)
		}
		if want := ap.Addr(); again.Addr != want && e.form != formPort || again.Port != ap.Port() {
			t.Fatalf("rewritten to %q it is %v port %d, not %v", rewritten, again.Addr, again.Port, ap)
		}
		if got := rewritten[again.Span.Start:again.Span.End]; !bytes.Equal(got, text) || again.Span.Start != e.Span.Start {
			t.Fatalf("rewritten to %q the span covers %q, not %q", rewritten, got, text)
		}
	}
}

// checkSameLength checks that what is written in the same length is read as what it announces.
func checkSameLength(t *testing.T, line []byte, e Endpoint) {
	t.Helper()
	for _, s := range []string{"203.0.113.107:50000", "1.1.1.1:256", "255.255.255.255:65535", "[2001:db8::1]:1"} {
		ap := netip.MustParseAddrPort(s)
		start, out, ok := e.AppendSameLength([]byte("x"), line, ap)
		if !ok {
			if string(out) != "x" {
				t.Fatalf("not possible, but %q appended", out[1:])
			}
			continue
		}
		rewritten := slices.Concat(line[:start], out[1:], line[e.Span.End:])
		if len(rewritten) != len(line) {
			t.Fatalf("%q, %d bytes, became %q, %d bytes", line, len(line), rewritten, len(rewritten))
		}
		again, err := ParseReply(rewritten)
		if err != nil || again.Endpoint.Port != ap.Port() || e.form != formPort && again.Endpoint.Addr != ap.Addr() {
			t.Fatalf("%q became %q, which is %+v, %v; want %v", line, rewritten, again.Endpoint, err, ap)
		}
	}
}

// slowEndpoint reads the text of a span with the standard library.
func slowEndpoint(t *testing.T, text string, e Endpoint) (netip.Addr, uint16) {
	t.Helper()
	num := func(s string, max int) int {
		if strings.Trim(s, "0123456789") != "" {
			t.Fatalf("%q is not decimal", s)
		}
		n, err := strconv.Atoi(s)
		if err != nil || n > max {
			t.Fatalf("%q was taken for a number up to %d", s, max)
		}
		return n
	}
	switch e.form {
	case formHostPort:
		f := strings.Split(text, ",")
		if len(f) != 6 {
			t.Fatalf("%d numbers in %q", len(f), text)
		}
		var b [6]byte
		for i := range b {
			b[i] = byte(num(strings.Trim(f[i], " \t"), 255))
		}
		return netip.AddrFrom4([4]byte(b[:4])), uint16(b[4])<<8 | uint16(b[5])
	case formExtended:
		a, p, _ := strings.Cut(text, string(rune(e.delim)))
		port := uint16(num(p, 65535))
		if strings.Contains(a, ":") {
			return netip.MustParseAddr(a), port
		}
		f := strings.Split(a, ".")
		if len(f) != 4 {
			t.Fatalf("%d octets in %q", len(f), a)
		}
		var b [4]byte
		for i := range b {
			b[i] = byte(num(f[i], 255))
		}
		return netip.AddrFrom4(b), port
	}
	return netip.Addr{}, uint16(num(text, 65535))
}

func swapCase(b []byte) []byte {
	b = bytes.Clone(b)
	for i, c := range b {
		if isLetter(c) {
			b[i] = c ^ 0x20
		}
	}
	return b
}
