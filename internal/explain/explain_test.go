package explain

import (
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant, from %s,\n%s", got, path, want)
	}
}

// captures are those in testdata.
func captures(t testing.TB) map[string][]byte {
	paths, err := filepath.Glob("testdata/*.pcap")
	if err != nil || len(paths) == 0 {
		t.Fatalf("there are no captures in testdata: %v", err)
	}
	files := make(map[string][]byte)
	for _, p := range paths {
		if files[strings.TrimSuffix(filepath.Base(p), ".pcap")], err = os.ReadFile(p); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// TestCaptures explains what real programs said to each other through a real router.
func TestCaptures(t *testing.T) {
	for name, file := range captures(t) {
		r, err := Explain(bytes.NewReader(file), port21())
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".text.golden", explainText(t, file, port21()))
		for i := range r.Connections {
			svg, err := r.Ladder(i + 1)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, fmt.Sprintf("%s.%d.svg", name, i+1), string(svg))
		}
	}
}

// The router of the tests: the client knows the server as 192.0.2.2, and the server the client as
// 192.168.1.1.
var (
	natOriginal = tuple("203.0.113.101:50774", "192.0.2.2:21")
	natReply    = tuple("192.168.1.2:21", "192.168.1.1:50774")
	plain       = tuple("203.0.113.101:50774", "198.51.100.2:21")
)

// transfers is a tape with a passive and an active transfer.
func transfers(t testing.TB, sides ...expect.Direction) *tape {
	k := newTape(t)
	d := k.dialogue(natOriginal, natReply, sides...).open()
	d.say(client, "USER anna\r\n").say(server, "331 password?\r\n").say(client, "PASS geheim\r\n").say(server, "230 welcome\r\n")
	d.say(client, "PASV\r\n").say(server, "227 Entering Passive Mode (192,168,1,2,156,64)\r\n")
	see := func(isn uint32, looks [2]expect.Tuple, by expect.Direction) {
		if len(sides) == 2 {
			k.data(isn, true, looks[0], looks[1])
		} else if sides[0] == by {
			k.data(isn, true, looks[0])
		} else {
			k.data(isn, true, looks[1])
		}
	}
	see(42, [2]expect.Tuple{tuple("203.0.113.101:40001", "192.0.2.2:40000"), tuple("192.168.1.1:40001", "192.168.1.2:40000")}, client)
	d.say(client, "RETR a\r\n").say(server, "150 here\r\n").say(server, "226 done\r\n")
	d.say(client, "PORT 203,0,113,101,195,80\r\n")
	d.say(server, "200 fine\r\n").say(client, "LIST\r\n")
	see(43, [2]expect.Tuple{tuple("192.168.1.2:20", "192.168.1.1:50000"), tuple("192.0.2.2:20", "203.0.113.101:50000")}, server)
	d.say(server, "150 here\r\n").say(server, "226 done\r\n")
	return k
}

// wantBoth says that both transfers of the tape were expected.
var wantBoth = []string{
	"NAT: the server is 192.168.1.2:21, and the client knows it as 192.0.2.2:21",
	"NAT: the client is 203.0.113.101:50774, and the server knows it as 192.168.1.1:50774",
	"would expect a connection from 203.0.113.101 to 192.0.2.2:40000, translated to one from 192.168.1.1 to 192.168.1.2:40000",
	"would rewrite: 227 Entering Passive Mode (192,0,2,2,156,64)",
	"would expect a connection from 192.168.1.2 to 192.168.1.1:50000, translated to one from 192.0.2.2 to 203.0.113.101:50000",
	"would rewrite: PORT 192,168,1,1,195,80",
	"2 endpoints announced: 2 would be expected, 0 refused, 0 could not be helped. 2 lines to rewrite",
	"2 data connections: 2 would be expected, 0 not.",
}

func wantText(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("there is no %q in\n%s", w, text)
		}
	}
}

// TestFormats reads the same packets from files of every kind.
func TestFormats(t *testing.T) {
	k := transfers(t, client, server)
	want := explainText(t, k.pcap(sll2), port21())
	wantText(t, want, wantBoth...)
	wantText(t, want, "(the capture has both sides of the router)")
	for _, l := range links {
		if got := explainText(t, k.pcap(l), port21()); got != want && l.name != "SLL" {
			// Without places, it can't be seen that a packet has not left the router.
			wantText(t, got, wantBoth...)
		} else if got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", l.name, got, want)
		}
		if got := explainText(t, k.pcapng(l), port21()); got != want {
			t.Errorf("%s, pcapng: got\n%s\nwant\n%s", l.name, got, want)
		}
	}
}

// TestTold has captures of one side, and somebody who says what the router translates.
func TestTold(t *testing.T) {
	for _, side := range []expect.Direction{client, server} {
		file := transfers(t, side).pcap(links[2])
		text := explainText(t, file, port21(func(c *Config) {
			for _, s := range []string{"192.168.1.2=192.0.2.2", "203.0.113.101=192.168.1.1", "10.0.0.1=192.0.2.9"} {
				n, err := ParseTranslation(s)
				if err != nil {
					t.Fatal(err)
				}
				c.NAT = append(c.NAT, n)
			}
		}))
		wantText(t, text, wantBoth...)
		wantText(t, text, fmt.Sprintf("(as told; the capture has the %s side of the router)", map[expect.Direction]string{client: "client's", server: "server's"}[side]),
			"--nat 10.0.0.1=192.0.2.9 goes with no connection of which")
		if strings.Contains(text, "geheim") {
			t.Errorf("a password is shown:\n%s", text)
		}
	}
	// Nobody says it: what the server announces is somebody else's address.
	text := explainText(t, transfers(t, client).pcap(links[2]), port21())
	wantText(t, text, "one side only was captured, so that no NAT shows",
		"would refuse 192.168.1.2:40000: the address is not that of the one who announces it", "--nat 192.168.1.2=192.0.2.2",
		"NOT EXPECTED: the 227 at 0.009 announced it, and was refused")
}

// TestPairing recognises the two sides of a connection of which the capture has not the beginning.
func TestPairing(t *testing.T) {
	k := transfers(t, client, server)
	var rest []taped
	for _, p := range k.packets {
		if flags := p.data[33]; flags&2 == 0 || binary.BigEndian.Uint16(p.data[20:]) != 21 && binary.BigEndian.Uint16(p.data[22:]) != 21 {
			rest = append(rest, p)
		}
	}
	if len(rest) != len(k.packets)-4 {
		t.Fatalf("%d of %d packets are left, want four less", len(rest), len(k.packets))
	}
	k.packets = rest
	text := explainText(t, k.pcap(sll2), port21())
	wantText(t, text, wantBoth...)
	wantText(t, text, "the connection is older than the capture", "Summary: 1 control connection.")
}

// recorded is a dialogue, without NAT unless it says so.
type recorded struct {
	name   string
	config func(*Config)
	nat    bool
	tape   func(d *dialogue)
	want   []string
	not    []string
}

// record returns the dialogue as a capture, and what it is explained with.
func (c recorded) record(t testing.TB) ([]byte, Config) {
	k := newTape(t)
	d := k.dialogue(plain, reverse(plain), client)
	if c.nat {
		d = k.dialogue(natOriginal, natReply, client, server)
	}
	c.tape(d)
	config := port21()
	if c.config != nil {
		c.config(&config)
	}
	return k.pcap(sll2), config
}

func login(d *dialogue) *dialogue {
	return d.open().say(client, "USER a\r\n").say(server, "230 ok\r\n")
}

// dialogues are of all sorts.
var dialogues = []recorded{
	{name: "secrets and controls", tape: func(d *dialogue) {
		d.open().say(client, "USER x\r\n").say(client, "CWD \x1b[31m\u009bx\r\n").say(client, "pass eins").say(client, " two\r\n").rewind(client, 6).say(client, " two\r\n")
		d.say(client, "\xff\xf4\xffPASS three\r\n").say(client, "ACCT four\r\n").say(server, "530 \xc3\xa4\xff\x00no\r\n")
	}, want: []string{`CWD \x1b[31m\xc2\x9bx`, "-> pass ***…", "-> pass ***\n", "(6 bytes that have been sent before)", "PASS ***", "ACCT ***", `530 ä\xff\x00no`},
		not: []string{"eins", "two", "three", "four", "\x1b", "\u009b"}},
	{name: "held", nat: true, tape: func(d *dialogue) {
		login(d).say(client, "PORT 203,0,113,").say(client, "101,195,80\r\n").say(server, "200 ok\r\n")
	}, want: []string{"PORT 203,0,113,…\n                 would wait 1 ms for the rest of its line", "-> PORT 203,0,113,101,195,80\n", "would rewrite: PORT 192,168,1,1,195,80"}},
	{name: "held in vain", nat: true, tape: func(d *dialogue) {
		login(d).say(client, "PORT 203,0,113,")
		d.now = d.now.Add(time.Second)
		d.say(client, "101,195,80\r\n")
	}, want: []string{"would wait 500 ms for the rest of its line, in vain", "cannot help 203.0.113.101:50000: the line began in a segment that has been released already"}},
	{name: "out of order", nat: true, tape: func(d *dialogue) {
		login(d).skip(client, "PORT 203,0,113,").say(client, "101,195,80\r\n").rewind(client, 27).say(client, "PORT 203,0,113,").skip(client, "101,195,80\r\n")
	}, want: []string{"15 bytes before it had not come: lost, or overtaken", "would wait 1 ms for what is missing", "would rewrite: PORT 192,168,1,1,195,80"}},
	{name: "sent again", nat: true, tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").say(server, "227 ok (192,168,1,2,156,64)\r\n").rewind(server, 29).say(server, "227 ok (192,168,1,2,156,64)\r\n")
	}, want: []string{"<- 227 ok (192,168,1,2,156,64)  (sent again)", "1 endpoint announced: 1 would be expected"}},
	{name: "several lines", tape: func(d *dialogue) {
		login(d).say(client, "SYST\r\nFEAT\r\nEPSV\r\n").say(server, "211-a\r\n"+strings.Repeat(" b\r\n", 20)+"211 e\r\n")
	}, want: []string{"-> SYST\n               FEAT\n               EPSV\n", "(14 more lines)"}},
	{name: "low port", tape: func(d *dialogue) { login(d).say(client, "PORT 203,0,113,101,0,22\r\n") },
		want: []string{"would refuse 203.0.113.101:22: the port is below the lowest one allowed", "=> --min-port 22 lets it", "1 refused"}},
	{name: "lower port", config: func(c *Config) { c.Engine.Policy.MinPort = 20 }, tape: func(d *dialogue) { login(d).say(client, "PORT 203,0,113,101,0,22\r\n") },
		want: []string{"would expect a connection from 198.51.100.2 to 203.0.113.101:22"}},
	{name: "bounce", tape: func(d *dialogue) {
		login(d).say(client, "PORT 192,0,2,77,195,80\r\n")
	}, want: []string{"would refuse 192.0.2.77:50000: the address is not that", "=> --allow 192.0.2.77 lets it"}},
	{name: "unasked", tape: func(d *dialogue) {
		login(d).say(client, "STAT\r\n").say(server, "227 x (198,51,100,2,156,64)\r\n")
		d.data(1, true, tuple("203.0.113.101:40001", "198.51.100.2:40000"))
	}, want: []string{"would refuse 198.51.100.2:40000: no PASV or EPSV asked for it", "NOT EXPECTED: the 227 at 0.007 announced it, and was refused"}},
	{name: "unreadable", tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").say(server, "227 x (198,51,100,2,999,64)\r\n")
		d.data(1, false, tuple("203.0.113.101:40001", "198.51.100.2:40000"))
	}, want: []string{"passes: number out of range", "NOT EXPECTED: the 227 at 0.007 should have announced it, and cannot be read", "not answered"}},
	{name: "not announced", tape: func(d *dialogue) {
		login(d).data(1, true, tuple("203.0.113.101:40001", "198.51.100.2:40000"))
		d.data(2, true, tuple("203.0.113.101:40002", "198.51.100.2:443")) // that is something else
		d.data(3, true, tuple("203.0.113.9:40002", "198.51.100.2:40000"))
	}, want: []string{"NOT EXPECTED: no line of the control connection announces port 40000", "1 data connection: 0 would be expected, 1 not."}},
	{name: "twice", tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").say(server, "227 x (198,51,100,2,156,64)\r\n")
		d.data(1, true, tuple("203.0.113.101:40001", "198.51.100.2:40000"))
		d.data(2, true, tuple("203.0.113.101:40002", "198.51.100.2:40000"))
	}, want: []string{"another data connection had come for that already"}},
	{name: "too soon", tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").say(server, "227 x (198,51,100,2,156,64)\r\n").say(client, "PASV\r\n").say(server, "227 x (198,51,100,2,156,65)\r\n")
		d.data(1, true, tuple("203.0.113.101:40001", "198.51.100.2:40000"))
	}, want: []string{"a later line took its place before it came", "none came for the 227 at 0.009 (198.51.100.2:40001)"}},
	{name: "too late", tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").say(server, "227 x (198,51,100,2,156,64)\r\n")
		d.now = d.now.Add(301 * time.Second)
		d.data(1, true, tuple("203.0.113.101:40001", "198.51.100.2:40000"))
	}, want: []string{"is longer than an expectation lasts"}},
	{name: "from somebody else", tape: func(d *dialogue) {
		login(d).say(client, "PORT 203,0,113,101,195,80\r\n")
		d.packet(tuple("203.0.113.101:1", "198.51.100.2:50000"), in, layers.TCP{SYN: true, Seq: 5}, "")
	}, want: []string{"it goes to 198.51.100.2, and the PORT at 0.006 leads to 203.0.113.101"}},
	{name: "refused by the host", tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").say(server, "227 x (198,51,100,2,156,64)\r\n")
		t := tuple("203.0.113.101:40001", "198.51.100.2:40000")
		d.packet(t, in, layers.TCP{SYN: true, Seq: 5}, "")
		d.packet(reverse(t), in, layers.TCP{RST: true, ACK: true, Ack: 6}, "")
	}, want: []string{"would be expected: the 227 at 0.007 announced it\n            refused with RST"}},
	{name: "encrypted", tape: func(d *dialogue) {
		d.open().say(client, "AUTH TLS\r\n").say(server, "234 go\r\n").say(client, "\x16\x03\x01\x00\x05PASV\n").say(server, "\x16\x03\x03\x00\x02ab")
		d.data(1, true, tuple("203.0.113.101:40001", "198.51.100.2:40000"))
	}, want: []string{"encrypted from here on", "(2 packets behind that, unread)", "NOT EXPECTED: the control connection is encrypted from 0.005 on", "a fixed range of passive ports", "1 control connection, 1 of them encrypted"}},
	{name: "TLS from the middle", tape: func(d *dialogue) {
		d.say(client, "\x17\x03\x03\x00\x05abc\n\x00").say(server, "\x17\x03\x03\x00\x02ab")
	}, want: []string{"-> (10 bytes of TLS)", "<- (7 bytes of TLS)", "older than the capture"}},
	{name: "not FTP", tape: func(d *dialogue) {
		d.open().say(client, "POST / HTTP/1.1\r\nHost: x\r\n\r\nPORT 203,0,113,101,195,80\r\n").say(client, "PORT 203,0,113,101,195,80\r\n")
	}, want: []string{"this does not begin as FTP", "0 endpoints announced."}},
	{name: "the end of a line", tape: func(d *dialogue) { d.say(client, "geheim\r\n").say(server, "230 ok\r\n") },
		want: []string{"-> (the end of a line)"}, not: []string{"geheim"}},
	{name: "cut", tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").say(server, "227 x (198,51,100,2,156,64)\r\n")
		d.cutLast(6)
		d.say(client, "PORT 203,0,113,101,195,80\r\n")
		d.data(1, true, tuple("203.0.113.101:40001", "198.51.100.2:40000"))
	}, want: []string{"<- 227 x (198,51,100,2,156…\n", "the capture lacks its last 6 bytes", "passes: ", "have it keep whole packets (tcpdump -s 0)",
		"would expect a connection from 198.51.100.2 to 203.0.113.101:50000"}, not: []string{"99"}},
	{name: "cut behind whole lines", tape: func(d *dialogue) {
		login(d).say(server, "220-one line\r\n220 two\r\n220 three lines\r\n")
		d.cutLast(8)
	}, want: []string{"<- 220-one line\n               220 two\n               220 three…\n"}},
	{name: "cut by little", tape: func(d *dialogue) {
		login(d).say(server, "220-one line\r\n220 two\r\n")
		d.cutLast(3)
	}, want: []string{"<- 220-one line\n               220 tw…\n"}},
	{name: "cut short", tape: func(d *dialogue) {
		login(d).say(client, "PORT 203,0,113,101,195,80\r\n")
		d.cutLast(40)
	}, want: []string{"Of 1 packet the capture lacks even the headers"}},
	{name: "advertised", config: func(c *Config) { c.Engine.Advertise.Addr4 = netip.MustParseAddr("192.0.2.55") }, tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").say(server, "227 Entering Passive Mode (198,51,100,2,156,64)\r\n")
	}, want: []string{"would rewrite: 227   Entering Passive Mode (192,0,2,55,156,64)"}},
	{name: "no room in the line", config: func(c *Config) { c.Engine.Advertise.Addr4 = netip.MustParseAddr("203.0.113.155") }, tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").say(server, "227 198,51,100,2,156,64\r\n")
	}, want: []string{"has to keep its length", "have the server announce the right address itself", "1 could not be helped"}},
	{name: "port taken", nat: true, tape: func(d *dialogue) {
		other := d.dialogue(tuple("203.0.113.101:50775", "192.0.2.2:21"), tuple("192.168.1.3:21", "192.168.1.1:50775"), client, server)
		other.seq = [2]uint32{9000, 90_000}
		login(other).say(client, "PASV\r\n").rewritten(server, "227 x (192,168,1,3,156,64)\r\n", "227 x (192,0,002,2,156,64)\r\n")
		other.now = other.now.Add(time.Millisecond)
		login(d).say(client, "PASV\r\n").rewritten(server, "227 x (192,168,1,2,156,64)\r\n", "227 x (192,0,002,2,200,11)\r\n")
		d.data(42, true, tuple("203.0.113.101:40001", "192.0.2.2:51211"), tuple("192.168.1.1:40001", "192.168.1.2:51211"))
	}, want: []string{"port 40000 is taken: the 227 at 0.007 of connection 1 announced it, too",
		"the router sent otherwise: 227 x (192,0,002,2,200,11)\n                 port 40000 is taken, so that each helper chooses a free one: 51211 there, ",
		"            expected: the 227 at ", "2 endpoints announced: 2 expected", "1 data connection: 1 expected, 0 not."}},
	{name: "port taken by what is not captured", nat: true, tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").rewritten(server, "227 x (192,168,1,2,156,64)\r\n", "227 x (192,0,002,2,200,11)\r\n")
		d.data(42, true, tuple("203.0.113.101:40001", "192.0.2.2:51211"), tuple("192.168.1.1:40001", "192.168.1.2:51211"))
	}, want: []string{"port 51211 in place of 40000: that was taken on the router", "            expected: the 227 at 0.007 announced it", "1 data connection: 1 expected"}},
	{name: "other address", nat: true, tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").rewritten(server, "227 x (192,168,1,2,156,64)\r\n", "227 x (192,0,2,055,156,64)\r\n")
	}, want: []string{"address 192.0.2.55 in place of 192.0.2.2: its helper has another --advertise"}},
	{name: "port alone", nat: true, tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").rewritten(server, "227 x (192,168,1,2,156,64)\r\n", "227 x (192,168,1,2,200,11)\r\n")
	}, want: []string{"port 51211 in place of 40000, but the address as it came"}},
	{name: "garbled", nat: true, tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").rewritten(server, "227 x (192,168,1,2,156,64)\r\n", "227 x (192,0,2,2,999,6400)\r\n")
	}, want: []string{"the router sent otherwise: 227 x (192,0,2,2,999,6400)\n                 that announces no address and port that can be read", "does not show whether a helper was at work"}},
	{name: "not refused there", nat: true, tape: func(d *dialogue) {
		login(d).rewritten(client, "PORT 203,0,113,101,0,23\r\n", "PORT 192,168,1,001,0,23\r\n")
	}, want: []string{"refuses 203.0.113.101:23: the port is below", "its helper does not refuse this"}},
	{name: "changed without need", nat: true, tape: func(d *dialogue) {
		login(d).say(client, "PASV\r\n").rewritten(server, "227 x (192,168,1,2,999,64)\r\n", "227 x (192,0,002,2,999,64)\r\n")
	}, want: []string{"the router sent otherwise: 227 x (192,0,002,2,999,64)"}},
	{name: "stopped", nat: true, tape: func(d *dialogue) {
		login(d).say(client, "PORT 203,0,113,101,195,80\r\n").say(server, "200 ok\r\n")
		d.packet(tuple("192.168.1.2:20", "203.0.113.101:50000"), in, layers.TCP{SYN: true, Seq: 5}, "")
	}, want: []string{"no helper was at work on the router: below is what nfq-ftphelper would do", "the router did not let it through"}},
	{name: "after EPSV ALL, too many", config: func(c *Config) { c.Engine.Policy.Rate = 1 }, tape: func(d *dialogue) {
		login(d).say(client, "PORT 203,0,113,101,195,80\r\n").say(client, "PORT 203,0,113,101,195,81\r\n")
		d.say(client, "EPSV ALL\r\n").say(server, "200 ok\r\n").say(client, "PORT 203,0,113,101,195,82\r\n")
	}, want: []string{"=> --rate lets more", "odd: the client sent EPSV ALL"}},
	{name: "before the greeting", tape: func(d *dialogue) {
		d.segment(client, layers.TCP{SYN: true}, "")
		d.seq[client]++
		d.segment(server, layers.TCP{SYN: true, ACK: true}, "")
		d.seq[server]++
		d.say(client, "PORT 203,0,113,101,195,80\r\n")
	}, want: []string{"would refuse 203.0.113.101:50000"}},
	{name: "in the middle", tape: func(d *dialogue) {
		d.say(server, "230 ok\r\n").say(client, "PORT 203,0,113,101,195,80\r\n")
	}, want: []string{"would expect a connection from 198.51.100.2 to 203.0.113.101:50000", "the helper is taken to have read its beginning"}},
	{name: "its beginning is missing", tape: func(d *dialogue) {
		d.open().skip(client, "USER a\r\n").say(server, "230 ok\r\n").say(client, "PORT 203,0,113,101,195,80\r\n").say(client, "PORT 203,0,113,101,195,80\r\n")
	}, want: []string{"would refuse 203.0.113.101:50000", "=> the capture lacks what the client sent before its login"}},
	{name: "no login", tape: func(d *dialogue) {
		d.open().say(client, "PORT 203,0,113,101,195,80\r\n")
	}, want: []string{"would refuse 203.0.113.101:50000: the client has not logged in", "=> the client has to log in"}},
	{name: "nonsense", tape: func(d *dialogue) {
		login(d).say(client, strings.Repeat("x\n", 500)).say(client, "PORT 203,0,113,101,195,80\r\n")
	}, want: []string{"this cannot be FTP", "0 endpoints announced."}},
}

// TestText explains the dialogues.
func TestText(t *testing.T) {
	for _, c := range dialogues {
		t.Run(c.name, func(t *testing.T) {
			file, config := c.record(t)
			text := explainText(t, file, config)
			wantText(t, text, c.want...)
			for _, n := range c.not {
				if strings.Contains(strings.SplitN(text, "\n", 2)[1], n) {
					t.Errorf("there is %q in\n%s", n, text)
				}
			}
			r, err := Explain(bytes.NewReader(file), config)
			if err != nil {
				t.Fatal(err)
			}
			drawn, err := r.Ladder(0)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range c.not {
				if n != "99" && bytes.Contains(drawn, []byte(n)) {
					t.Errorf("there is %q in the drawing", n)
				}
			}
			wantXML(t, drawn)
		})
	}
}

// wantXML wants a document that is well formed.
func wantXML(t testing.TB, doc []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(doc))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
	}
}

// TestMuchMissing has more behind a gap than is kept.
func TestMuchMissing(t *testing.T) {
	k := newTape(t)
	d := k.dialogue(plain, reverse(plain), client).open()
	const n = 20_000
	d.say(client, "USER a\r\n")
	d.skip(client, "NOOP\r\n")
	for range n {
		d.say(client, "NOOP\r\n")
		d.now = d.now.Add(-time.Millisecond) // all at once
	}
	r, err := Explain(bytes.NewReader(k.pcap(sll2)), port21())
	if err != nil {
		t.Fatal(err)
	}
	if lines := r.Connections[0].lines[client]; len(lines) != n { // the first one behind the gap may be the end of another
		t.Errorf("%d lines, want %d", len(lines), n)
	}
	var a assembler
	a.start(0)
	for i := range n { // the last one first
		a.push(piece{seq: mangle.Seq(10 * (n - i)), data: []byte("NOOP\r\n"), step: new(Step)})
		if len(a.waiting) > maxWaiting {
			t.Fatalf("%d segments wait", len(a.waiting))
		}
	}
}

// TestMuchCut has a small capture claim packets of much memory.
func TestMuchCut(t *testing.T) {
	k := newTape(t)
	d := k.dialogue(plain, reverse(plain), client).open()
	long := strings.Repeat("x", 60_000)
	for range 2000 {
		d.say(client, long)
		d.cutLast(len(long))
	}
	if _, err := Explain(bytes.NewReader(k.pcap(sll2)), port21()); err == nil || !strings.Contains(err.Error(), "(-s 0)") {
		t.Errorf("%v", err)
	}
}

// TestNewConnection has two connections between the same ports.
func TestNewConnection(t *testing.T) {
	k := newTape(t)
	for range 2 {
		d := k.dialogue(natOriginal, natReply, client, server)
		d.seq[client] += uint32(len(k.packets)) << 24
		d.seq[server] += uint32(len(k.packets)) << 24
		d.open().say(client, "USER a\r\n").say(server, "230 ok\r\n").say(client, "PASV\r\n").say(server, "227 x (192,168,1,2,156,64)\r\n")
	}
	wantText(t, explainText(t, k.pcap(sll2), port21()), "Connection 2, from 0.008 s on", "2 endpoints announced: 2 would be expected")
}

// TestClients has several clients, and explains those of some.
func TestClients(t *testing.T) {
	k := newTape(t)
	for i, c := range []string{"203.0.113.101:50774", "203.0.113.7:4000", "[2001:db8::7]:4000"} {
		to := []string{"192.0.2.2:21", "192.0.2.2:21", "[2001:db8:2::2]:21"}[i]
		d := k.dialogue(tuple(c, to), tuple(to, c), client)
		d.seq[client], d.seq[server] = uint32(i)<<24, uint32(i)<<16
		login(d)
	}
	explained := func(clients ...string) (numbers []int, err error) {
		config := port21()
		for _, c := range clients {
			config.Clients = append(config.Clients, netip.MustParsePrefix(c))
		}
		r, err := Explain(bytes.NewReader(k.pcap(sll2)), config)
		if err != nil {
			return nil, err
		}
		for _, c := range r.Connections {
			numbers = append(numbers, c.number)
			if svg, err := r.Ladder(c.number); err != nil || !bytes.Contains(svg, []byte(fmt.Sprintf("FTP control connection %d:", c.number))) {
				t.Errorf("connection %d is not drawn: %v", c.number, err)
			}
		}
		return numbers, nil
	}
	for want, clients := range map[string][]string{
		"[1 2 3]": nil, "[2]": {"203.0.113.7/32"}, "[1 2]": {"203.0.113.0/24"}, "[2 3]": {"203.0.113.7/32", "2001:db8::/64"},
	} {
		if got, err := explained(clients...); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%v: %v, %v, want %s", clients, got, err, want)
		}
	}
	_, err := explained("198.51.100.0/24")
	if err == nil || !strings.HasSuffix(err.Error(), "the clients are 203.0.113.101, 203.0.113.7, 2001:db8::7") {
		t.Errorf("of a client that is not there: %v", err)
	}
}

// TestAllDrawn draws all connections, but not more than a drawing has room for: then those without data
// connections are left out first.
func TestAllDrawn(t *testing.T) {
	for _, n := range []int{1, 3, maxDrawn + 7} {
		k := newTape(t)
		for i := range n {
			from := fmt.Sprintf("203.0.113.101:%d", 40_000+i)
			d := k.dialogue(tuple(from, "192.0.2.2:21"), tuple("192.0.2.2:21", from), client)
			d.seq[client], d.seq[server] = uint32(i)<<24, uint32(i)<<16
			login(d)
			if i >= 7 {
				d.say(client, "PORT 203,0,113,101,195,80\r\n")
			}
		}
		r, err := Explain(bytes.NewReader(k.pcap(sll2)), port21())
		if err != nil {
			t.Fatal(err)
		}
		svg, err := r.Ladder(0)
		if err != nil {
			t.Fatal(err)
		}
		wantXML(t, svg)
		drawn, left := bytes.Count(svg, []byte(">FTP control connection ")), bytes.Count(svg, []byte(">7 connections left out"))
		if drawn != min(n, maxDrawn) || left != max(0, n-maxDrawn)/7 || n > maxDrawn && bytes.Contains(svg, []byte("control connection 7:")) {
			t.Errorf("of %d connections %d are drawn, and a note is there %d times", n, drawn, left)
		}
		if one, err := r.Ladder(1); err != nil || n == 1 && !bytes.Equal(one, svg) {
			t.Errorf("one connection alone is drawn in another way: %v", err)
		}
	}
}

// TestErrors says in one sentence what is wrong with a file.
func TestErrors(t *testing.T) {
	k := newTape(t)
	k.dialogue(plain, reverse(plain), client).open()
	good, ng := k.pcap(sll2), k.pcapng(sll2)
	patched := func(file []byte, at int, b ...byte) []byte {
		file = bytes.Clone(file)
		copy(file[at:], b)
		return file
	}
	section := int(binary.LittleEndian.Uint32(ng[4:]))
	for _, c := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "it is empty"},
		{"short", []byte("ab"), "it is no capture"},
		{"text", []byte("220 this is what somebody has typed, and more than a header"), "it is no capture"},
		{"head only", good[:24], "it has no packets"},
		{"within the head", good[:20], "it is no capture"},
		{"within the first packet", good[:50], "it ends before its first packet does"},
		{"too long", patched(good, 24+8, 0xff, 0xff, 0xff, 0x7f), "it is damaged: packet 1 would have 2147483647 bytes"},
		{"other link", patched(good, 20, 127, 0), "its packets are of link type 127, which is not read"},
		{"pcapng, no order", patched(ng, 8, 0), "it is damaged: block 1 has no byte order"},
		{"pcapng, no interface", append(bytes.Clone(ng[:section]), ng[section+2*int(binary.LittleEndian.Uint32(ng[section+4:])):]...), "which there is not"},
		{"pcapng, block too short", patched(ng, section+4, 4, 0, 0, 0), "it is damaged: block 2 would have 4 bytes"},
		{"other port", good, "none of its 4 packets is of a control connection: name the control ports with --ports"},
	} {
		config := port21()
		if c.name == "other port" {
			config.Ports[0].First, config.Ports[0].Last = 2121, 2121
		}
		if _, err := Explain(bytes.NewReader(c.file), config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	wantText(t, explainText(t, good[:len(good)-3], port21()), "The file ends within a packet")
	wantText(t, explainText(t, ng[:len(ng)-3], port21()), "The file ends within a packet")
	r, err := Explain(bytes.NewReader(good), port21())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Ladder(2); err == nil || !strings.Contains(err.Error(), "connection 2 cannot be drawn: the capture has 1 control connection") {
		t.Errorf("a connection that there is not is drawn: %v", err)
	}
}

func TestParseTranslation(t *testing.T) {
	for _, s := range []string{"", "192.0.2.1", "192.0.2.1=", "=192.0.2.1", "a=b", "192.0.2.1=2001:db8::1", "fe80::1%eth0=2001:db8::1"} {
		if n, err := ParseTranslation(s); err == nil {
			t.Errorf("%q is %v, want an error", s, n)
		}
	}
}

// TestResolution reads the clocks of pcapng.
func TestResolution(t *testing.T) {
	for _, c := range []struct {
		r     resolution
		ticks uint64
		want  time.Time
	}{
		{6, 1_500_000, time.Unix(1, 500_000_000)},
		{9, 1_500_000_000, time.Unix(1, 500_000_000)},
		{0, 7, time.Unix(7, 0)},
		{12, 1_500_000_000_000, time.Unix(1, 500_000_000)},
		{0x80 | 1, 3, time.Unix(1, 500_000_000)},
		{0x80 | 32, 3 << 31, time.Unix(1, 500_000_000)},
		{0x80 | 63, 3 << 62, time.Unix(1, 500_000_000)},
		{0x80, 3, time.Unix(3, 0)},
		{77, 3, time.Unix(0, 0)},
		{0xff, 3, time.Unix(0, 0)},
	} {
		if got := c.r.time(c.ticks, 0); !got.Equal(c.want) {
			t.Errorf("%d ticks of resolution %#x: %v, want %v", c.ticks, uint8(c.r), got, c.want)
		}
	}
}

// FuzzExplain reads files of any content, which must do no harm.
func FuzzExplain(f *testing.F) {
	for _, file := range captures(f) {
		f.Add(file)
	}
	k := transfers(f, client, server)
	for _, l := range links {
		f.Add(k.pcap(l))
		f.Add(k.pcapng(l))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		r, err := Explain(bytes.NewReader(file), port21())
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than a sentence", err)
			}
			return
		}
		if err := errors.Join(r.WriteText(io.Discard), r.WriteJSON(io.Discard)); err != nil {
			t.Error(err)
		}
		all, err := r.Ladder(0)
		if err != nil {
			t.Error(err)
		}
		wantXML(t, all)
		for i := range r.Connections {
			drawn, err := r.Ladder(i + 1)
			if err != nil {
				t.Error(err)
			}
			wantXML(t, drawn)
		}
	})
}
