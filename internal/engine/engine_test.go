package engine_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect/memory"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

const (
	client = expect.Original
	server = expect.Reply

	inLineLabel     = 115
	recognisedLabel = 118
	proxiedLabel    = 123
)

// allLabels are the rules'.
var allLabels = engine.Labels{Recognised: recognisedLabel, InLine: inLineLabel, Proxied: proxiedLabel, Ignore: 122, ReplyDue: 120, Active: 116, Rewritten: 119}

func tuple(src, dst string) expect.Tuple {
	return expect.Tuple{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

// world is one control connection that passes through an engine.
type world struct {
	t     testing.TB
	ct    *memory.Conntrack
	entry *memory.Entry
	eng   *engine.Engine
	log   bytes.Buffer
	now   time.Time
	next  [2]uint32 // the next sequence number of each side
	acked [2]uint32 // what the other side has acknowledged, as that sees it
	id    uint32
	sent  map[uint32][]byte // packets that have no verdict yet
}

// The DNAT + masquerade of a gateway: the client knows the server as 192.0.2.2, the server
// the client as 192.168.1.1.
var (
	natOriginal = tuple("203.0.113.101:50774", "192.0.2.2:21")
	natReply    = tuple("192.168.1.2:21", "192.168.1.1:50774")
)

func newWorld(t testing.TB, original, reply expect.Tuple, change ...func(*engine.Config)) *world {
	w := &world{t: t, ct: &memory.Conntrack{}, now: time.Unix(1_800_000_000, 0), next: [2]uint32{1000, 500_000}, sent: map[uint32][]byte{}}
	w.entry = w.ct.Add(original, reply)
	w.restart(change...)
	return w
}

// restart begins with an engine that knows nothing.
func (w *world) restart(change ...func(*engine.Config)) {
	log := slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := engine.Config{
		Conntrack: w.ct,
		Observe: func(ev *engine.Event) {
			level := ev.Kind.Level()
			if ev.Again {
				level = slog.LevelDebug
			}
			ev.Log(log, level)
		},
		Now:  func() time.Time { return w.now },
		Mode: engine.Full(allLabels),
	}
	for _, f := range change {
		f(&c)
	}
	eng := engine.New(c)
	w.eng = eng
	w.t.Cleanup(func() {
		eng.Flush(nil)
		if s := eng.Stats(); s.Packets != s.Unknown+s.Malformed+s.Changed+s.Unchanged {
			w.t.Errorf("not every packet is counted once: %+v", s)
		}
	})
}

// segment makes a packet of direction dir.
func (w *world) segment(dir expect.Direction, seq uint32, payload string) []byte {
	w.t.Helper()
	other := w.entry.Tuples[dir.Other()]
	tu := expect.Tuple{Src: other.Dst, Dst: other.Src} // as NAT has made it
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(tu.Src.Port()), DstPort: layers.TCPPort(tu.Dst.Port()),
		Seq: seq, Ack: w.acked[dir.Other()], ACK: true, PSH: true, Window: 500,
	}
	var network gopacket.SerializableLayer
	if tu.Src.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP(tu.Src.Addr().AsSlice()), DstIP: net.IP(tu.Dst.Addr().AsSlice())}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		network = ip
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: net.IP(tu.Src.Addr().AsSlice()), DstIP: net.IP(tu.Dst.Addr().AsSlice())}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		network = ip
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		network, tcp, gopacket.Payload(payload))
	if err != nil {
		w.t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// decode returns the TCP segment of a packet.
func decode(t testing.TB, packet []byte) *layers.TCP {
	t.Helper()
	first := layers.LayerTypeIPv4
	if packet[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	p := gopacket.NewPacket(packet, first, gopacket.Default)
	if p.ErrorLayer() != nil {
		t.Fatalf("packet does not decode: %v", p.ErrorLayer().Error())
	}
	return p.Layer(layers.LayerTypeTCP).(*layers.TCP)
}

// send passes one segment through the engine and returns the packets that leave it then.
func (w *world) send(dir expect.Direction, seq uint32, payload string) [][]byte {
	w.t.Helper()
	w.id++
	packet := w.segment(dir, seq, payload)
	w.sent[w.id] = bytes.Clone(packet)
	out := w.leave(w.eng.Handle(w.id, packet, nil))
	if sent, waits := w.sent[w.id]; waits && !bytes.Equal(packet, sent) {
		w.t.Fatal("the engine changed the packet that it was given")
	}
	return out
}

// leave returns the packets to which verdicts belong, as they are then.
func (w *world) leave(verdicts []engine.Verdict) [][]byte {
	w.t.Helper()
	var out [][]byte
	for _, v := range verdicts {
		sent, ok := w.sent[v.ID]
		if !ok {
			w.t.Fatalf("packet %d has no verdict to get", v.ID)
		}
		delete(w.sent, v.ID)
		if v.Packet != nil {
			sent = bytes.Clone(v.Packet)
		}
		out = append(out, sent)
	}
	return out
}

// say sends text as the next segment of dir and returns what the other side gets of it.
func (w *world) say(dir expect.Direction, text string) string {
	w.t.Helper()
	out := w.send(dir, w.next[dir], text)
	w.next[dir] += uint32(len(text))
	w.acked[dir] = w.entry.Seq(dir, w.next[dir])
	return payloads(w.t, out)
}

// open has the server accept the connection.
func (w *world) open() {
	w.t.Helper()
	w.entry.Opening = true
	w.synAck()
	w.entry.Opening = false
}

// synAck has the server send a SYN-ACK in front of what it says next.
func (w *world) synAck() {
	w.t.Helper()
	w.acked[client] = w.next[client]
	w.id++
	packet := w.segment(server, w.next[server]-1, "")
	packet[len(packet)-7] |= 2 // the flag SYN; there are no options
	w.sent[w.id] = packet
	if out := w.leave(w.eng.Handle(w.id, packet, nil)); len(out) == 0 || !bytes.Equal(out[len(out)-1], packet) {
		w.t.Fatal("the SYN-ACK has not passed unchanged")
	}
}

// login says what comes before anything that matters.
func (w *world) login() {
	w.t.Helper()
	w.open()
	for _, l := range []struct {
		dir  expect.Direction
		text string
	}{
		{server, "220 ready\r\n"}, {client, "USER anonymous\r\n"},
		{server, "331 password?\r\n"}, {client, "PASS me@\r\n"}, {server, "230 welcome\r\n"},
	} {
		if got := w.say(l.dir, l.text); got != l.text {
			w.t.Fatalf("%q came out as %q", l.text, got)
		}
	}
}

func (w *world) expectations() []string {
	var s []string
	for _, x := range w.ct.Installed {
		s = append(s, fmt.Sprintf("%s>%s", x.Src, x.Dst))
	}
	return s
}

func total(counts []uint64) (sum uint64) {
	for _, n := range counts {
		sum += n
	}
	return sum
}

func (w *world) logged(text string) int { return strings.Count(w.log.String(), text) }

// TestRewrite says what each verb becomes on its way through each kind of NAT.
func TestRewrite(t *testing.T) {
	type line struct {
		dir       expect.Direction
		text, out string
		expected  string // "" for none
	}
	for name, c := range map[string]struct {
		original, reply expect.Tuple
		lines           []line
	}{
		"DNAT and masquerade": {natOriginal, natReply, []line{
			{client, "PASV\r\n", "PASV\r\n", ""},
			{server, "227 Entering Passive Mode (192,168,1,2,145,37).\r\n", "227 Entering Passive Mode (192,0,2,2,145,37).\r\n", "203.0.113.101>192.0.2.2:37157"},
			{client, "EPSV\r\n", "EPSV\r\n", ""},
			{server, "229 Entering Extended Passive Mode (|||37158|)\r\n", "229 Entering Extended Passive Mode (|||37158|)\r\n", "203.0.113.101>192.0.2.2:37158"},
			{client, "PORT 203,0,113,101,200,1\r\n", "PORT 192,168,1,1,200,1\r\n", "192.168.1.2>192.168.1.1:51201"},
			{client, "eprt |1|203.0.113.101|51202|\r\n", "eprt |1|192.168.1.1|51202|\r\n", "192.168.1.2>192.168.1.1:51202"},
			{client, "PASV\r\n", "PASV\r\n", ""},
			{server, "227 192,000,002,002,145,38\n", "227 192,000,002,002,145,38\n", "203.0.113.101>192.0.2.2:37158"},
		}},
		"no NAT": {tuple("192.168.0.2:40000", "198.51.100.9:21"), tuple("198.51.100.9:21", "192.168.0.2:40000"), []line{
			{client, "PORT 192,168,0,2,4,1\r\n", "PORT 192,168,0,2,4,1\r\n", "198.51.100.9>192.168.0.2:1025"},
			{client, "PORT 192,168,000,002,04,1\r\n", "PORT 192,168,000,002,04,1\r\n", "198.51.100.9>192.168.0.2:1025"},
			{client, "PASV\r\n", "PASV\r\n", ""},
			{server, "227 (198,51,100,9,4,2)\r\n", "227 (198,51,100,9,4,2)\r\n", "192.168.0.2>198.51.100.9:1026"},
		}},
		"IPv6, server behind NAT": {tuple("[2001:db8::1]:40000", "[2001:db8:1::21]:21"), tuple("[2001:db8:ffff::2]:21", "[2001:db8::1]:40000"), []line{
			{client, "EPRT |2|2001:db8::1|5000|\r\n", "EPRT |2|2001:db8::1|5000|\r\n", "2001:db8:ffff::2>2001:db8::1:5000"},
			{client, "EPSV 2\r\n", "EPSV 2\r\n", ""},
			{server, "229 ok (|||6446|)\r\n", "229 ok (|||6446|)\r\n", "2001:db8::1>2001:db8:1::21:6446"},
		}},
		"IPv6, client behind NAT": {tuple("[fd00::2]:40000", "[2001:db8:1::21]:21"), tuple("[2001:db8:1::21]:21", "[2001:db8::1]:40000"), []line{
			{client, "EPRT |2|fd00::2|5000|\r\n", "EPRT |2|2001:db8::1|5000|\r\n", "2001:db8:1::21>2001:db8::1:5000"},
			{client, "EPSV\r\n", "EPSV\r\n", ""},
			{server, "229 ok (!!!6446!)\r\n", "229 ok (!!!6446!)\r\n", "fd00::2>2001:db8:1::21:6446"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.original, c.reply)
			w.login()
			var want []string
			for _, l := range c.lines {
				if got := w.say(l.dir, l.text); got != l.out {
					t.Errorf("%q came out as %q, want %q", l.text, got, l.out)
				}
				if l.expected != "" {
					// [::]:port as netip writes it, for one form of both families.
					want = append(want, l.expected)
				}
			}
			got := w.expectations()
			for i := range got {
				got[i] = strings.NewReplacer("[", "", "]", "").Replace(got[i])
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("expected %v, want %v", got, want)
			}
		})
	}
}

// TestPass says what is let go as it is, with nothing expected, and how that is counted.
func TestPass(t *testing.T) {
	const pasv = "PASV\r\n"
	for name, c := range map[string]struct {
		before          string // said by the client
		dir             expect.Direction
		text            string
		refused, failed uint64
		log             string
	}{
		"PORT of another host":         {"", client, "PORT 203,0,113,77,200,1\r\n", 1, 0, "not that of the one who announces it"},
		"PORT of localhost":            {"", client, "PORT 127,0,0,1,200,1\r\n", 1, 0, "not that of the one"},
		"PORT of a low port":           {"", client, "PORT 203,0,113,101,0,22\r\n", 1, 0, "below the lowest"},
		"PORT with an octet of 256":    {"", client, "PORT 203,0,113,101,256,1\r\n", 0, 0, "out of range"},
		"PORT with five numbers":       {"", client, "PORT 203,0,113,101,200\r\n", 0, 0, "not in the form"},
		"PORT after SITE":              {"", client, "SITE x PORT 203,0,113,101,200,1\r\n", 0, 0, ""},
		"EPRT of another family":       {"", client, "EPRT |2|2001:db8::1|5000|\r\n", 1, 0, "not that of the one"},
		"EPRT with the wrong protocol": {"", client, "EPRT |2|203.0.113.101|5000|\r\n", 0, 0, "does not go with"},
		"unsolicited 227":              {"", server, "227 (192,168,1,2,145,37)\r\n", 1, 0, "no PASV or EPSV"},
		"227 of another host":          {pasv, server, "227 (192,168,1,77,145,37)\r\n", 1, 0, "not that of the one"},
		"227 of nowhere":               {pasv, server, "227 (0,0,0,0,82,237)\r\n", 1, 0, "not that of the one"},
		"227 without numbers":          {pasv, server, "227 Logout.\r\n", 0, 0, "not in the form"},
		"227 in a multi-line reply":    {pasv, server, "230-Welcome\r\n227 (192,168,1,2,145,37)\r\n230 end\r\n", 0, 0, ""},
		"229 of port 0":                {pasv, server, "229 (|||0|)\r\n", 0, 0, "out of range"},
		"229 without its end":          {pasv, server, "229 (|||6446)\r\n", 0, 0, "not in the form"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply)
			w.login()
			if c.before != "" {
				w.say(client, c.before)
			}
			if got := w.say(c.dir, c.text); got != c.text {
				t.Errorf("%q came out as %q", c.text, got)
			}
			if x := w.expectations(); x != nil {
				t.Errorf("expected %v", x)
			}
			if s := w.eng.Stats(); total(s.Refused[:]) != c.refused || s.Failed != c.failed || s.Changed != 0 {
				t.Errorf("counted %+v", s)
			}
			if w.logged(c.log) == 0 {
				t.Errorf("log lacks %q:\n%s", c.log, &w.log)
			}
			// The connection is unharmed.
			w.say(client, pasv)
			if got, want := w.say(server, "227 (192,168,1,2,4,1)\r\n"), "227 (192,0,2,2,4,1)\r\n"; got != want {
				t.Errorf("the next 227 came out as %q, want %q", got, want)
			}
		})
	}
}

// TestRetransmission says that what is sent again comes out the same, whatever its cut, and
// that nothing is expected or adjusted again.
func TestRetransmission(t *testing.T) {
	const (
		in  = "227 (192,168,1,2,145,37)\r\n"
		out = "227 (192,0,2,2,145,37)\r\n"
	)
	w := newWorld(t, natOriginal, natReply)
	w.login()
	w.say(client, "PASV\r\n")
	start := w.next[server]
	if got := w.say(server, in); got != out {
		t.Fatalf("came out as %q", got)
	}
	after := w.next[server]
	check := func(seq uint32, text string) {
		t.Helper()
		for _, p := range w.send(server, seq, text) {
			tcp := decode(t, p)
			at := w.entry.Seq(server, tcp.Seq) - start
			if got := string(tcp.Payload); !strings.HasPrefix((out + "150 go\r\n")[at:], got) {
				t.Errorf("%q from %d came out as %q at %d", text, seq-start, got, at)
			}
		}
	}
	for cut := range len(in) {
		check(start, in[:cut+1])
		check(start+uint32(cut), in[cut:])
	}
	check(start, in+"150 go\r\n") // coalesced with what comes next
	check(after, "150 go\r\n")
	if len(w.ct.Installed) != 1 || w.ct.Adjustments != 1 {
		t.Errorf("%d expectations and %d adjustments, want one each", len(w.ct.Installed), w.ct.Adjustments)
	}
}

// TestLateRetransmission has the server send a 227 again that the client has acknowledged, but
// behind the engine the acknowledgement was lost: alone, and together with what comes next.
// The client must not take any of it for new.
func TestLateRetransmission(t *testing.T) {
	for _, nat := range natPairs {
		for _, next := range []string{"", "150 go\r\n"} {
			p := newPath(t, rand.New(rand.NewPCG(1, 1)), nat, [2]uint32{1000, 500_000})
			p.receives[server].passes = true
			in := fmt.Sprintf("227 (%s,100,1)\r\n", strings.ReplaceAll(nat[server].Src.Addr().String(), ".", ","))
			out := fmt.Sprintf("227 (%s,100,1)\r\n", strings.ReplaceAll(nat[client].Dst.Addr().String(), ".", ","))
			var at uint32
			for _, u := range []turn{{server, "220 ready\r\n"}, {client, "PASV\r\n"}, {server, in}, {client, "LIST\r\n"}} {
				at = p.next[server]
				if u.dir == client && u.text == "LIST\r\n" {
					at -= uint32(len(in))
				}
				if err := p.transmit(u.dir, p.next[u.dir], u.text); err != nil {
					t.Fatal(err)
				}
				p.next[u.dir] += uint32(len(u.text))
			}
			if err := p.transmit(server, at, in+next); err != nil {
				t.Error(err)
			}
			if got, want := string(p.receives[server].bytes), "220 ready\r\n"+out+next; got != want {
				t.Errorf("the client received %q, want %q", got, want)
			}
		}
	}
}

// TestNoHelp says what happens where the kernel does not do its part: the packet is let go as
// it is, nothing stays behind, and it is said once.
func TestNoHelp(t *testing.T) {
	for name, c := range map[string]struct {
		breakIt func(*memory.Entry)
		log     string
	}{
		"no helper":            {func(e *memory.Entry) { e.Helper = "" }, expect.ErrNoHelper.Error()},
		"the entry is deleted": {func(e *memory.Entry) { e.Deleted = true }, expect.ErrNoEntry.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, natOriginal, natReply)
			w.login()
			for range 3 {
				w.entry.Deleted = false
				w.say(client, "PASV\r\n")
				c.breakIt(w.entry)
				in := "227 (192,168,1,2,145,37)\r\n"
				if got := w.say(server, in); got != in {
					t.Errorf("came out as %q", got)
				}
			}
			if len(w.ct.Active) != 0 {
				t.Errorf("%v is still expected", w.ct.Active)
			}
			if n := w.logged(c.log); n != 3 || w.logged("level=WARN") != 1 {
				t.Errorf("logged %d times, %d as warnings, want 3 and 1:\n%s", n, w.logged("level=WARN"), &w.log)
			}
		})
	}
}

// TestAsLong says that a rewrite that keeps the length asks nothing of the kernel.
func TestAsLong(t *testing.T) {
	w := newWorld(t, tuple("203.0.113.101:50774", "192.0.2.222:21"), tuple("192.168.1.2:21", "203.0.113.101:50774"))
	w.entry.NoSeqAdj = true
	w.login()
	w.say(client, "PASV\r\n")
	if got := w.say(server, "227 (192,168,1,2,145,37)\r\n"); got != "227 (192,0,2,222,145,37)\r\n" {
		t.Errorf("came out as %q", got)
	}
	if w.ct.Adjustments != 0 {
		t.Error("the kernel was asked to adjust")
	}
}

// TestRestart says that a connection goes on with a daemon that has not seen its beginning.
func TestRestart(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	transfer := func(port int) {
		t.Helper()
		w.say(client, "PASV\r\n")
		want := fmt.Sprintf("227 (192,0,2,2,100,%d)\r\n", port)
		if got := w.say(server, fmt.Sprintf("227 (192,168,1,2,100,%d)\r\n", port)); got != want {
			t.Errorf("227 came out as %q, want %q", got, want)
		}
	}
	transfer(1)
	w.restart()
	transfer(2)
	transfer(3)
	if a := w.entry.SeqAdj[server]; a.Before != -4 || a.After != -6 {
		t.Errorf("after three transfers the kernel adjusts by %+v, want -4 and -6", a)
	}
	w.restart()
	if got, want := w.say(client, "PORT 203,0,113,101,200,1\r\n"), "PORT 192,168,1,1,200,1\r\n"; got != want {
		t.Errorf("PORT came out as %q, want %q", got, want)
	}
}

// TestRestartAgain has a daemon that comes anew see a rewritten reply again, together with one from
// before its time.
func TestRestartAgain(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	before := w.next[server]
	w.say(server, "200 ok\r\n")
	w.restart()
	w.say(client, "PASV\r\n")
	in, want := "227 (192,168,1,2,100,1)\r\n", "227 (192,0,2,2,100,1)\r\n"
	if got := w.say(server, in); got != want {
		t.Fatalf("227 came out as %q, want %q", got, want)
	}
	out := w.send(server, before, "200 ok\r\n"+in)
	if got := decode(t, out[0]); string(got.Payload) != "200 ok\r\n"+want || got.Seq != before {
		t.Errorf("both again came out as %q at %d, want %q at %d", got.Payload, got.Seq, "200 ok\r\n"+want, before)
	}
}

// TestPipelined has a client that does not wait for the greeting.
func TestPipelined(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.say(client, "USER me\r\nPASS x\r\nPASV\r\n")
	in, want := "220 hi\r\n331 who\r\n230 in\r\n227 (192,168,1,2,4,1)\r\n", "220 hi\r\n331 who\r\n230 in\r\n227 (192,0,2,2,4,1)\r\n"
	if got := w.say(server, in); got != want {
		t.Errorf("came out as %q, want %q", got, want)
	}
}

// TestResume has a daemon that comes anew see a segment again that was sent before the kernel's
// last adjustment: the kernel alone places it rightly.
func TestResume(t *testing.T) {
	for _, after := range []int32{-7, 5} {
		w := newWorld(t, natOriginal, natReply)
		w.entry.SeqAdj[server] = expect.SeqAdj{Position: 500_020, Before: 0, After: after}
		w.next[server] = 500_010
		for _, l := range []string{"150 go\r\n", "226 done\r\n", "200 ok\r\n"} {
			seq := w.next[server]
			out := w.send(server, seq, l)
			if got, want := w.entry.Seq(server, decode(t, out[0]).Seq), w.entry.Seq(server, seq); got != want {
				t.Errorf("after %d: %q arrives at %d, want %d", after, l, got, want)
			}
			w.next[server] += uint32(len(l))
		}
	}
}

// TestLabelLate says that a connection is queued as long as something may have to be rendered.
func TestLabelLate(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	w.say(client, "PASV\r\nAUTH TLS\r\n")
	acked := w.acked[server]
	w.say(server, "227 (192,168,1,2,4,1)\r\n234 go\r\n")
	w.acked[server] = acked // the client has not got it yet
	w.say(client, "\x16\x03\x01")
	if len(labels(w.entry)) != 0 {
		t.Error("the connection is not queued any more, and the 227 may come again")
	}
	w.acked[server] = w.entry.Seq(server, w.next[server])
	w.say(client, "\x16\x03\x01")
	if len(labels(w.entry)) != 1 {
		t.Errorf("labels %v, want one", labels(w.entry))
	}
}

// TestGrown says what becomes of lines that would make a packet too long for its path.
func TestGrown(t *testing.T) {
	fill := strings.Repeat("150 go\r\n", 175) // nearly all that fits on an Ethernet
	w := newWorld(t, tuple("[fd00::2]:40000", "[2001:db8:1::21]:21"), tuple("[2001:db8:1::21]:21", "[2001:db8:9999:8888:7777:6666:5555:4444]:40000"))
	w.login()
	in := strings.Repeat("NOOP\r\n", 230) + "EPRT |2|fd00::2|5000|\r\n"
	if got := w.say(client, in); got != in || len(w.ct.Active) != 0 || w.logged("too long for the path") != 1 {
		t.Errorf("came out as %q, expected %v, log:\n%s", got, w.ct.Active, &w.log)
	}
	if got := w.say(client, "EPRT |2|fd00::2|5000|\r\n"); !strings.Contains(got, "4444|5000") {
		t.Errorf("came out as %q", got)
	}

	w = newWorld(t, natPairs[1][client], natPairs[1][server])
	w.login()
	w.say(client, "PASV\r\n")
	out := w.send(server, w.next[server], fill+"227 (10,0,0,3,4,1)\r\n")
	if got := payloads(t, out); got != fill+"227 (192,168,100,101,4,1)\r\n" || out[0][6]&0x40 != 0 {
		t.Errorf("came out as %q, and may not be fragmented", got[len(fill):])
	}
}

// TestEncrypted says that nothing is read after AUTH has been accepted.
func TestEncrypted(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.acked[client] = w.next[client]
	w.say(server, "220 ready\r\n")
	w.say(client, "AUTH TLS\r\n")
	w.say(server, "234 go ahead\r\n")
	for dir, text := range []string{"PORT 203,0,113,101,200,1\r\n", "227 (192,168,1,2,145,37)\r\n"} {
		if got := w.say(expect.Direction(dir), text); got != text {
			t.Errorf("%q came out as %q", text, got)
		}
	}
	if w.ct.Installed != nil || w.logged("kind=encrypted") != 1 || len(labels(w.entry)) != 1 {
		t.Errorf("expected %v, log:\n%s", w.ct.Installed, &w.log)
	}
}

// TestUnknown says that what is no control connection is let go.
func TestUnknown(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	valid := w.segment(client, 1, "PORT 203,0,113,101,200,1\r\n")
	for n := range valid {
		if v := w.eng.Handle(7, valid[:n], nil); len(v) != 1 || v[0].ID != 7 || v[0].Packet != nil {
			t.Fatalf("%d bytes of a packet got the verdicts %v", n, v)
		}
	}
	w.entry.Deleted = true
	for range 5 {
		if v := w.eng.Handle(8, valid, nil); len(v) != 1 || v[0].Packet != nil {
			t.Fatalf("got the verdicts %v", v)
		}
	}
	if w.ct.Lookups != 1 {
		t.Errorf("looked up %d times, want once", w.ct.Lookups)
	}
	w.now = w.now.Add(time.Second)
	w.eng.Handle(9, valid, nil)
	if w.ct.Lookups != 2 {
		t.Errorf("looked up %d times after a second, want twice", w.ct.Lookups)
	}
}

// TestEviction says that the connection that has been silent for the longest is forgotten, and
// goes on when it speaks again.
func TestEviction(t *testing.T) {
	w := newWorld(t, natOriginal, natReply, func(c *engine.Config) { c.MaxFlows = 3 })
	w.login()
	first := w.entry
	for i := range 3 {
		src := fmt.Sprintf("203.0.113.101:%d", 2000+i)
		w.entry = w.ct.Add(tuple(src, "192.0.2.2:21"), tuple("192.168.1.2:21", fmt.Sprintf("192.168.1.1:%d", 2000+i)))
		w.say(server, "220 ready\r\n")
	}
	w.entry = first
	before := w.ct.Lookups
	w.say(client, "PASV\r\n")
	if got, want := w.say(server, "227 (192,168,1,2,4,1)\r\n"), "227 (192,0,2,2,4,1)\r\n"; got != want || w.ct.Lookups != before+1 {
		t.Errorf("227 came out as %q, want %q, after %d look-ups", got, want, w.ct.Lookups-before)
	}
}

// TestReused says that a new connection between the same ports is not taken for the old one.
func TestReused(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	w.say(client, "PASV\r\n")
	w.say(server, "227 (192,168,1,2,4,1)\r\n")
	w.next = [2]uint32{3_000_000_000, 4_000_000_000}
	w.entry.SeqAdj = [2]expect.SeqAdj{}
	before := w.ct.Lookups
	w.login()
	if w.ct.Lookups != before+1 {
		t.Errorf("looked up %d times, want once", w.ct.Lookups-before)
	}
	w.say(client, "PASV\r\n")
	if got, want := w.say(server, "227 (192,168,1,2,4,1)\r\n"), "227 (192,0,2,2,4,1)\r\n"; got != want {
		t.Errorf("227 came out as %q, want %q", got, want)
	}
	if a := w.entry.SeqAdj[server]; a.Before != 0 {
		t.Errorf("the new connection begins with the offset %d", a.Before)
	}
}

// TestFlows says what is listed of control connections, at rest or not, and that listing in pieces
// misses none.
func TestFlows(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	if got, next := w.eng.AppendFlows(nil, 0, 1<<20); len(got) != 1 || next != 0 || got[0].Tuples != w.entry.Tuples || got[0].Last.Announced != 0 {
		t.Fatalf("%+v, %d", got, next)
	}
	w.say(client, "PASV\r\n")
	w.say(server, "227 Entering Passive Mode (192,168,1,2,145,37).\r\n")
	w.say(server, "227 Entering Passive Mode (192,168,1,2,145,38).\r\n") // unsolicited
	var got []engine.Flow
	for next, n := uint32(0), 0; n == 0 || next != 0; n++ {
		if got, next = w.eng.AppendFlows(got, next, 100); n > 1000 {
			t.Fatal("there is no end")
		}
	}
	want := engine.Flow{Tuples: w.entry.Tuples, State: engine.StateRead, Sequence: engine.Kernel, Expected: 1, Refused: 1,
		Last: engine.Last{Verb: parse.Reply227, Announced: 145*256 + 38, Reason: engine.Unasked}}
	if len(got) != 1 || got[0] != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	for _, tuple := range w.entry.Tuples {
		if f, ok := w.eng.Find(tuple); !ok || f != want {
			t.Errorf("found by %v: %v, %+v", tuple, ok, f)
		}
	}
	other := w.entry.Tuples[0]
	other.Src = other.Dst
	if f, ok := w.eng.Find(other); ok {
		t.Errorf("found by %v: %+v", other, f)
	}
}

// TestConfigure says that what can change while the engine works, does.
func TestConfigure(t *testing.T) {
	w := newWorld(t, natOriginal, natReply)
	w.login()
	announce := func(port string) uint64 {
		before := w.eng.Stats().Expectations
		w.say(client, "PORT 203,0,113,101,"+port+"\r\n")
		return w.eng.Stats().Expectations - before
	}
	if n := announce("4,0"); n != 1 {
		t.Fatalf("%d expectations for port 1024", n)
	}
	w.eng.Configure(engine.Config{Policy: engine.Policy{MinPort: 2000}})
	if n := announce("4,1"); n != 0 {
		t.Errorf("%d expectations for port 1025, below the new lowest one", n)
	}
	if n := announce("8,0"); n != 1 {
		t.Errorf("%d expectations for port 2048", n)
	}
	if s := w.eng.Stats(); s.Endpoints[parse.PORT] != 3 || s.Refused[engine.LowPort] != 1 || s.Edits != 2 {
		t.Errorf("%+v", s)
	}
}

// labels are the bits of a connection's label that are set, but for that of a recognised connection.
func labels(e *memory.Entry) (bits []int) {
	for bit := range 128 {
		if bit != recognisedLabel && e.Label(bit) {
			bits = append(bits, bit)
		}
	}
	return bits
}
