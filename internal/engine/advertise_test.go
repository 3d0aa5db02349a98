package engine_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// TestFixedLength says what becomes of lines where the kernel does not adjust sequence numbers:
// replies keep their length, commands pass as they are.
func TestFixedLength(t *testing.T) {
	for _, c := range []struct {
		original, reply expect.Tuple
		in, out         string
	}{
		{natOriginal, natReply, // shorter
			"227 Entering Passive Mode (192,168,1,2,145,37).\r\n", "227   Entering Passive Mode (192,0,2,2,145,37).\r\n"},
		{natOriginal, natReply, "227 =192,168,1,2,145,37\n", "227   =192,0,2,2,145,37\n"},
		{natOriginal, natReply, "227 192,168,1,2,145,37\n", "227   192,0,2,2,145,37\n"},
		{natPairs[1][client], natPairs[1][server], // longer
			"227 Entering Passive Mode (10,0,0,3,145,37).\r\n", "227   Passive Mode (192,168,100,101,145,37).\r\n"},
		{natPairs[1][client], natPairs[1][server], "227 ok now (10,0,0,3,145,37)\r\n", "227 (192,168,100,101,145,37)\r\n"},
		{natPairs[1][client], natPairs[1][server], "227 ok (10,0,0,3,145,37)\r\n", ""}, // no room
	} {
		w := newWorld(t, c.original, c.reply)
		w.entry.NoSeqAdj = true
		w.login()
		for range 2 {
			w.say(client, "PASV\r\n")
			want := c.out
			if want == "" {
				want = c.in
			}
			if got := w.say(server, c.in); got != want {
				t.Errorf("%q came out as %q, want %q", c.in, got, want)
			}
		}
		if n := len(w.ct.Active); n != min(1, len(c.out)) || w.ct.Adjustments != 0 {
			t.Errorf("%q: %d expectations, %d adjustments", c.in, n, w.ct.Adjustments)
		}
		if c.out == "" && w.logged("too little text") == 0 {
			t.Errorf("%q: the log does not say that there is no room:\n%s", c.in, &w.log)
		}
		command := "PORT " + strings.ReplaceAll(c.original.Src.Addr().String(), ".", ",") + ",100,1\r\n"
		if got := w.say(client, command); got != command {
			t.Errorf("%q came out as %q", command, got)
		}
	}
}

// TestAdvertise has a server without NAT on this host, whose clients reach it under another
// address.
func TestAdvertise(t *testing.T) {
	public := engine.Advertise{
		Addr4: netip.MustParseAddr("203.0.113.55"), Addr6: netip.MustParseAddr("2001:db8::55"),
		Except: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}
	for _, c := range []struct{ name, client, in, out string }{
		{"outside", "198.51.100.1", "227 Entering Passive Mode (10,0,0,3,145,37).\r\n", "227      Passive Mode (203,0,113,55,145,37).\r\n"},
		{"outside, as it should be already", "198.51.100.1", "227 ok (203,0,113,55,145,37).\r\n", "227 ok (203,0,113,55,145,37).\r\n"},
		{"outside, extended", "198.51.100.1", "229 ok (|||37157|)\r\n", "229 ok (|||37157|)\r\n"},
		{"inside", "10.0.0.9", "227 ok (10,0,0,3,145,37).\r\n", "227 ok (10,0,0,3,145,37).\r\n"},
		{"inside, from a server that announces the outer address", "10.0.0.9", "227 ok (203,0,113,55,145,37).\r\n", "227     ok (10,0,0,3,145,37).\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			original := tuple(c.client+":40000", "10.0.0.3:21")
			for cut := range len(c.in) {
				w := newWorld(t, original, expect.Tuple{Src: original.Dst, Dst: original.Src}, func(c *engine.Config) { c.Advertise = public })
				w.login()
				w.say(client, "EPSV\r\n")
				var got string
				for _, part := range []string{c.in[:cut], c.in[cut:]} {
					if part != "" {
						got += w.say(server, part)
					}
				}
				if got != c.out {
					t.Errorf("cut at %d it came out as %q, want %q", cut, got, c.out)
				}
				if x, want := fmt.Sprint(w.expectations()), fmt.Sprintf("[%s>10.0.0.3:37157]", c.client); x != want {
					t.Errorf("expected %s, want %s", x, want)
				}
			}
		})
	}
	t.Run("where another host's is allowed", func(t *testing.T) {
		original := tuple("198.51.100.1:40000", "10.0.0.3:21")
		w := newWorld(t, original, expect.Tuple{Src: original.Dst, Dst: original.Src}, func(c *engine.Config) {
			c.Advertise, c.Policy.Allowed = public, []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}
		})
		w.login()
		w.say(client, "PASV\r\n")
		in := "227 ok (192,0,2,7,145,37).\r\n"
		if got := w.say(server, in); got != in {
			t.Errorf("%q came out as %q", in, got)
		}
		if x := fmt.Sprint(w.expectations()); x != "[198.51.100.1>192.0.2.7:37157]" {
			t.Errorf("expected %s", x)
		}
	})
	t.Run("nobody else's", func(t *testing.T) {
		original := tuple("198.51.100.1:40000", "10.0.0.3:21")
		w := newWorld(t, original, expect.Tuple{Src: original.Dst, Dst: original.Src}, func(c *engine.Config) { c.Advertise = public })
		w.login()
		w.harmless(client, "PORT 203,0,113,55,145,37\r\n")
		w.say(client, "PASV\r\n")
		w.harmless(server, "227 ok (203,0,113,56,145,37).\r\n")
	})
}

// TestLongestPacket has a reply become longer in a packet that has no room for that.
func TestLongestPacket(t *testing.T) {
	const line = "227 Entering Passive Mode (10,0,0,3,145,37).\r\n"
	filler := "150 " + strings.Repeat("x", 94) + "\r\n"
	for _, room := range []int{0, 6, 7} { // the line becomes longer by 7
		w := newWorld(t, natPairs[1][client], natPairs[1][server])
		w.login()
		w.say(client, "PASV\r\n")
		text := strings.Repeat(filler, 1000)[:engine.MaxPacket-room-len(w.segment(server, 0, ""))-len(line)-2] + "\r\n" + line
		out := w.send(server, w.next[server], text)
		got, grown := string(decode(t, out[0]).Payload), len(out[0])-len(w.segment(server, 0, text))
		want := 0
		if room == 7 {
			want = 7
		}
		if !strings.HasSuffix(got, "(192,168,100,101,145,37).\r\n") || grown != want || len(out[0]) > engine.MaxPacket {
			t.Errorf("with room for %d bytes the packet became longer by %d, and ends with %q", room, grown, got[len(got)-50:])
		}
	}
}
