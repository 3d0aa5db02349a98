package explain

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

const (
	client = expect.Original
	server = expect.Reply
)

func tuple(src, dst string) expect.Tuple {
	return expect.Tuple{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

// tape is a capture in the making.
type tape struct {
	t       testing.TB
	now     time.Time
	packets []taped
}

type taped struct {
	at   time.Time
	way  way
	data []byte // from the IP header on
	cut  int
}

func newTape(t testing.TB) *tape { return &tape{t: t, now: time.Unix(1_800_000_000, 0).UTC()} }

// dialogue is a control connection on a tape, as it looks at one side or at both of a router.
type dialogue struct {
	*tape
	tuples [2]expect.Tuple
	sides  []expect.Direction // whose side is captured
	seq    [2]uint32
}

func (k *tape) dialogue(original, reply expect.Tuple, sides ...expect.Direction) *dialogue {
	return &dialogue{tape: k, tuples: [2]expect.Tuple{original, reply}, sides: sides, seq: [2]uint32{1000, 500_000}}
}

// open has the three packets that open it, and the greeting.
func (d *dialogue) open() *dialogue {
	d.segment(client, layers.TCP{SYN: true}, "")
	d.seq[client]++
	d.segment(server, layers.TCP{SYN: true, ACK: true}, "")
	d.seq[server]++
	d.segment(client, layers.TCP{ACK: true}, "")
	return d.say(server, "220 ready\r\n")
}

// say has one side send text.
func (d *dialogue) say(dir expect.Direction, text string) *dialogue {
	d.segment(dir, layers.TCP{ACK: true, PSH: true}, text)
	d.seq[dir] += uint32(len(text))
	return d
}

// rewritten has one side send a line that leaves the router as another one of the same length.
func (d *dialogue) rewritten(dir expect.Direction, came, left string) *dialogue {
	if len(came) != len(left) || len(d.sides) != 2 {
		d.t.Fatalf("%q can't leave as %q here", came, left)
	}
	near, far := len(d.packets), len(d.packets)+1
	d.say(dir, came)
	other := &tape{t: d.t}
	t := reverse(d.tuples[dir.Other()])
	other.packet(t, out, layers.TCP{ACK: true, PSH: true, Seq: d.seq[dir] - uint32(len(came)), Ack: d.seq[dir.Other()]}, left)
	if len(d.packets) != far+1 || d.packets[near].way != in {
		d.t.Fatalf("%d packets are on the tape", len(d.packets))
	}
	d.packets[far].data = other.packets[0].data
	return d
}

// skip has one side send text that is not captured.
func (d *dialogue) skip(dir expect.Direction, text string) *dialogue {
	d.seq[dir] += uint32(len(text))
	return d
}

// rewind goes back in what one side sends.
func (d *dialogue) rewind(dir expect.Direction, n int) *dialogue {
	d.seq[dir] -= uint32(n)
	return d
}

// segment puts a packet of a direction on the tape, on its way in and on its way out if both
// sides are captured.
func (d *dialogue) segment(dir expect.Direction, tcp layers.TCP, text string) {
	d.now = d.now.Add(time.Millisecond)
	tcp.Seq, tcp.Ack = d.seq[dir], d.seq[dir.Other()]
	for _, side := range []expect.Direction{dir, dir.Other()} { // it is seen at its sender's side first
		if !slices.Contains(d.sides, side) {
			continue
		}
		t, w := d.tuples[dir], in
		if side != dir {
			t, w = reverse(d.tuples[dir.Other()]), out
		}
		if len(d.sides) == 1 {
			w = anyWay
		}
		d.packet(t, w, tcp, text)
		d.now = d.now.Add(10 * time.Microsecond)
	}
}

// packet puts a packet on the tape.
func (k *tape) packet(t expect.Tuple, w way, tcp layers.TCP, text string) {
	tcp.SrcPort, tcp.DstPort, tcp.Window = layers.TCPPort(t.Src.Port()), layers.TCPPort(t.Dst.Port()), 500
	var network gopacket.SerializableLayer
	if t.Src.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP(t.Src.Addr().AsSlice()), DstIP: net.IP(t.Dst.Addr().AsSlice())}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		network = ip
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: net.IP(t.Src.Addr().AsSlice()), DstIP: net.IP(t.Dst.Addr().AsSlice())}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		network = ip
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, network, &tcp, gopacket.Payload(text)); err != nil {
		k.t.Fatal(err)
	}
	k.packets = append(k.packets, taped{at: k.now, way: w, data: bytes.Clone(buf.Bytes())})
}

// data puts the beginning of a data connection on the tape: its SYN as it looks at each place, and
// the answer to it, if there is one.
func (k *tape) data(isn uint32, answered bool, looks ...expect.Tuple) {
	k.now = k.now.Add(time.Millisecond)
	ways := []way{in, out}
	if len(looks) == 1 {
		ways = []way{in}
	}
	for i, t := range looks {
		k.packet(t, ways[i], layers.TCP{SYN: true, Seq: isn}, "")
	}
	for i, t := range slices.Backward(looks) {
		if answered {
			k.packet(reverse(t), ways[len(looks)-1-i], layers.TCP{SYN: true, ACK: true, Seq: 7777, Ack: isn + 1}, "")
		}
	}
}

// cutLast has the capture lack the end of the last packet.
func (k *tape) cutLast(n int) { k.packets[len(k.packets)-1].cut = n }

// link writes the link layer in front of an IP packet.
type link struct {
	name string
	kind uint16
	head func(p taped) []byte
}

func etherType(p taped) uint16 {
	if p.data[0]>>4 == 6 {
		return 0x86dd
	}
	return 0x0800
}

func sllType(w way) uint16 {
	if w == out {
		return 4
	}
	return 0
}

func be16(v ...uint16) (b []byte) {
	for _, n := range v {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return b
}

var sll2 = link{"SLL2", linkSLL2, func(p taped) []byte {
	b := be16(etherType(p), 0, 0, 2+uint16(p.way), 1)
	return append(b, byte(sllType(p.way)), 6, 0, 0, 0, 0, 0, 0, 0, 0)
}}

var links = []link{
	sll2,
	{"SLL", linkSLL, func(p taped) []byte {
		return append(append(be16(sllType(p.way), 1, 6), make([]byte, 8)...), be16(etherType(p))...)
	}},
	{"Ethernet", linkEthernet, func(p taped) []byte { return append(make([]byte, 12), be16(etherType(p))...) }},
	{"VLAN", linkEthernet, func(p taped) []byte { return append(make([]byte, 12), be16(0x88a8, 5, 0x8100, 7, etherType(p))...) }},
	{"PPPoE", linkEthernet, func(p taped) []byte {
		protocol := map[uint16]uint16{0x0800: 0x0021, 0x86dd: 0x0057}[etherType(p)]
		return append(make([]byte, 12), be16(0x8864, 0x1100, 1, uint16(len(p.data)+2), protocol)...)
	}},
	{"raw", linkRaw, func(taped) []byte { return nil }},
	{"raw-12", linkRaw12, func(taped) []byte { return nil }},
	{"null", linkNull, func(p taped) []byte { return []byte{2, 0, 0, 0} }},
	{"loop", linkLoop, func(p taped) []byte { return []byte{0, 0, 0, 2} }},
}

// pcap is the tape as a file.
func (k *tape) pcap(l link) []byte {
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	if err := w.WriteFileHeader(65535, 0); err != nil {
		k.t.Fatal(err)
	}
	for _, p := range k.packets {
		data := append(l.head(p), p.data...)
		ci := gopacket.CaptureInfo{Timestamp: p.at, CaptureLength: len(data) - p.cut, Length: len(data)}
		if err := w.WritePacket(ci, data[:len(data)-p.cut]); err != nil {
			k.t.Fatal(err)
		}
	}
	file := b.Bytes()
	binary.LittleEndian.PutUint16(file[20:], l.kind) // the writer knows none above 255
	return file
}

// pcapng is the tape as a file, with an interface for each way.
func (k *tape) pcapng(l link) []byte {
	var b bytes.Buffer
	intf := pcapgo.NgInterface{Name: "eth0", LinkType: 0, SnapLength: 65535, TimestampResolution: 9}
	w, err := pcapgo.NewNgWriterInterface(&b, intf, pcapgo.DefaultNgWriterOptions)
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := w.AddInterface(intf); err != nil {
		k.t.Fatal(err)
	}
	for _, p := range k.packets {
		data := append(l.head(p), p.data...)
		ci := gopacket.CaptureInfo{Timestamp: p.at, CaptureLength: len(data) - p.cut, Length: len(data)}
		if p.way == out {
			ci.InterfaceIndex = 1
		}
		if err := w.WritePacket(ci, data[:len(data)-p.cut]); err != nil {
			k.t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		k.t.Fatal(err)
	}
	file := b.Bytes()
	for at := 0; at < len(file); at += int(binary.LittleEndian.Uint32(file[at+4:])) {
		if binary.LittleEndian.Uint32(file[at:]) == interfaceDescription {
			binary.LittleEndian.PutUint16(file[at+8:], l.kind)
		}
	}
	return file
}

// port21 has the control port and nothing else.
func port21(change ...func(*Config)) Config {
	c := Config{Ports: []rules.PortRange{{First: 21, Last: 21}}}
	for _, f := range change {
		f(&c)
	}
	return c
}

// explain returns the text of a capture.
func explainText(t testing.TB, file []byte, c Config) string {
	t.Helper()
	r, err := Explain(bytes.NewReader(file), c)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
