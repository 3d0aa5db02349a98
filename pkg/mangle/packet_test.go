package mangle

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// unhex returns the bytes of hexadecimal text with spaces in it.
func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// Packets with right checksums. All go from port 50006 to port 21.
var (
	ip4Packet = unhex("4510 002e" + // IPv4, 5 words; TOS; length 46
		"1234 4000" + // identification; don't fragment
		"4006 3d9f" + // TTL 64, TCP; checksum
		"c0a80002 c6336409" + // 192.168.0.2 -> 198.51.100.9
		"c356 0015 01020304 05060708" + // ports, sequence, acknowledgement
		"5018 01f6 3ec8 0000" + // 5 words, PSH ACK; window; checksum; urgent
		"5041 5356 0d0a") // PASV CR LF

	ip4Options = unhex("4710 0037" + // 7 words; length 55
		"1234 4000 4006 a590 c0a80002 c6336409" +
		"94040000 01010100" + // router alert; three times no operation, end
		"c356 0015 01020304 05060708 5018 01f6 c6c6 0000" +
		"5041 5356 0d0a 78") // an odd length

	ip4TCPOptions = unhex("4510 003a 1234 4000 4006 3d93 c0a80002 c6336409" +
		"c356 0015 01020304 05060708" +
		"8fd8 01f6 8d84 0000" + // 8 words, all reserved bits set; CWR ECE PSH ACK
		"0101 080a 11121314 21222324" + // timestamps
		"5041 5356 0d0a")

	ip4NoPayload = unhex("4510 0028 1234 4000 4006 3da5 c0a80002 c6336409" +
		"c356 0015 01020304 05060708 5010 01f6 ef77 0000")

	ip6Packet = unhex("6ab12345" + // IPv6, traffic class ab, flow label 12345
		"001a 06 40" + // payload length 26; TCP; hop limit 64
		"fd000000 00000000 00000000 00000002" +
		"20010db8 00000000 00000000 00000009" +
		"c356 0015 01020304 05060708 5018 01f6 feea 0000" +
		"5041 5356 0d0a")

	ip6TCPOptions = unhex("6ab12345 0027 06 40" +
		"fd000000 00000000 00000000 00000002" +
		"20010db8 00000000 00000000 00000009" +
		"c356 0015 01020304 05060708 8e58 01f6 d725 0000" +
		"0101 080a 11121314 21222324" +
		"5041 5356 0d0a 78")

	ip6Extensions = unhex("6ab12345 004a 00 40" + // hop-by-hop options follow
		"fd000000 00000000 00000000 00000002" +
		"20010db8 00000000 00000000 00000009" +
		"3c 00 0104 00000000" + // destination options follow; 8 bytes; padding
		"2b 01 010c 00000000 00000000 00000000" + // a routing header follows; 16 bytes; padding
		"06 02 00 00 00000000" + // TCP follows; 24 bytes; type 0, no segments left
		"20010db8 00000000 00000000 00000008" +
		"c356 0015 01020304 05060708 5018 01f6 feea 0000" +
		"5041 5356 0d0a")

	ip6AtomicFragment = unhex("6ab12345 0022 2c 40" + // a fragment header follows
		"fd000000 00000000 00000000 00000002" +
		"20010db8 00000000 00000000 00000009" +
		"06 00 0000 a1a2a3a4" + // TCP follows; offset 0, no more; identification
		"c356 0015 01020304 05060708 5018 01f6 feea 0000" +
		"5041 5356 0d0a")
)

// packets are those that Decode takes.
var packets = []struct {
	name    string
	bytes   []byte
	payload string
	// gopacket does not look into fragments, not even where the fragment is the whole.
	fragment bool
}{
	{name: "IPv4", bytes: ip4Packet, payload: "PASV\r\n"},
	{name: "IPv4 with options", bytes: ip4Options, payload: "PASV\r\nx"},
	{name: "IPv4 with TCP options", bytes: ip4TCPOptions, payload: "PASV\r\n"},
	{name: "IPv4 without payload", bytes: ip4NoPayload},
	{name: "IPv6", bytes: ip6Packet, payload: "PASV\r\n"},
	{name: "IPv6 with TCP options", bytes: ip6TCPOptions, payload: "PASV\r\nx"},
	{name: "IPv6 with extension headers", bytes: ip6Extensions, payload: "PASV\r\n"},
	{name: "IPv6 atomic fragment", bytes: ip6AtomicFragment, payload: "PASV\r\n", fragment: true},
}

func decode(t testing.TB, b []byte) *Packet {
	t.Helper()
	var p Packet
	if err := p.Decode(b); err != nil {
		t.Fatalf("Decode(%x): %v", b, err)
	}
	return &p
}

func TestDecode(t *testing.T) {
	for _, tt := range packets {
		for _, after := range []string{"", "\x00", "after the packet's end"} {
			t.Run(tt.name+after, func(t *testing.T) {
				src, dst := "192.168.0.2", "198.51.100.9"
				if tt.bytes[0]>>4 == 6 {
					src, dst = "fd00::2", "2001:db8::9"
				}
				p := decode(t, append(bytes.Clone(tt.bytes), after...))
				if want := netip.AddrPortFrom(netip.MustParseAddr(src), 50006); p.Src() != want {
					t.Errorf("Src %v, want %v", p.Src(), want)
				}
				if want := netip.AddrPortFrom(netip.MustParseAddr(dst), 21); p.Dst() != want {
					t.Errorf("Dst %v, want %v", p.Dst(), want)
				}
				if ack, ok := p.Ack(); p.Seq() != 0x01020304 || ack != 0x05060708 || !ok {
					t.Errorf("Seq %x, Ack %x, %v", p.Seq(), ack, ok)
				}
				if string(p.Payload()) != tt.payload {
					t.Errorf("Payload %q, want %q", p.Payload(), tt.payload)
				}
				if !bytes.Equal(p.Bytes(), tt.bytes) || cap(p.Bytes()) != len(tt.bytes) {
					t.Errorf("Bytes %x, capacity %d; want %x", p.Bytes(), cap(p.Bytes()), tt.bytes)
				}
			})
		}
	}
}

// Every packet that ends before its headers say it does is refused, wherever that is.
func TestDecodeTruncated(t *testing.T) {
	for _, tt := range packets {
		p := decode(t, ip4Packet)
		for n := range tt.bytes {
			if err := p.Decode(tt.bytes[:n:n]); err != ErrTruncated {
				t.Errorf("%s, %d of %d bytes: %v, want %v", tt.name, n, len(tt.bytes), err, ErrTruncated)
			}
			if p.Bytes() != nil {
				t.Errorf("%s, %d of %d bytes: the packet is not empty", tt.name, n, len(tt.bytes))
			}
		}
	}
}

// The same where the IP header is right for the bytes that are there, so that it is a later
// header that promises too much.
func TestDecodeShortPayload(t *testing.T) {
	for _, tt := range packets {
		p := decode(t, tt.bytes)
		for n := range p.data {
			b := bytes.Clone(tt.bytes[:n])
			switch {
			case b == nil || n < ip4Header:
				continue
			case p.Is4():
				b[2], b[3] = 0, byte(n)
			case n < ip6Header:
				continue
			default:
				b[4], b[5] = 0, byte(n-ip6Header)
			}
			var q Packet
			if err := q.Decode(b); err != ErrTruncated {
				t.Errorf("%s, %d bytes: %v, want %v", tt.name, n, err, ErrTruncated)
			}
		}
	}
}

// patch returns b with other bytes from at on.
func patch(b []byte, at int, text string) []byte {
	b = bytes.Clone(b)
	copy(b[at:], unhex(text))
	return b
}

func TestDecodeRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bytes []byte
		err   error
	}{
		{"nothing", nil, ErrTruncated},
		{"version 0", patch(ip4Packet, 0, "05"), ErrNotTCP},
		{"version 5", patch(ip4Packet, 0, "55"), ErrNotTCP},
		{"version 15", patch(ip4Packet, 0, "f5"), ErrNotTCP},
		{"IPv4 header of 4 words", patch(ip4Packet, 0, "44"), ErrTruncated},
		{"IPv4 header of 4 words, then what looks like TCP", patch(patch(ip4Packet, 0, "44"), 28, "50"), ErrTruncated},
		{"IPv4 header longer than the packet", patch(ip4Packet, 0, "4f"), ErrTruncated},
		{"IPv4 length 0", patch(ip4Packet, 2, "0000"), ErrTruncated},
		{"IPv4 length less than the header's", patch(ip4Packet, 2, "0013"), ErrTruncated},
		{"IPv4 length without TCP", patch(ip4Packet, 2, "0014"), ErrTruncated},
		{"IPv4 length one too large", patch(ip4Packet, 2, "002f"), ErrTruncated},
		{"IPv4 length 65535", patch(ip4Packet, 2, "ffff"), ErrTruncated},
		{"IPv4 first fragment", patch(ip4Packet, 6, "2000"), ErrFragment},
		{"IPv4 later fragment", patch(ip4Packet, 6, "2001"), ErrFragment},
		{"IPv4 last fragment", patch(ip4Packet, 6, "0001"), ErrFragment},
		{"IPv4 farthest fragment", patch(ip4Packet, 6, "1000"), ErrFragment},
		{"IPv4 fragment of UDP", patch(patch(ip4Packet, 6, "2000"), 9, "11"), ErrFragment},
		{"IPv4 UDP", patch(ip4Packet, 9, "11"), ErrNotTCP},
		{"IPv4 in IPv4", patch(ip4Packet, 9, "04"), ErrNotTCP},
		{"TCP header of 0 words", patch(ip4Packet, 32, "08"), ErrTruncated},
		{"TCP header of 4 words", patch(ip4Packet, 32, "48"), ErrTruncated},
		{"TCP header longer than the packet", patch(ip4Packet, 32, "78"), ErrTruncated},
		{"TCP over IPv6, header of 4 words", patch(ip6Packet, 52, "48"), ErrTruncated},
		{"TCP over IPv6, header longer than the packet", patch(ip6Packet, 52, "78"), ErrTruncated},
		{"IPv6 length one too large", patch(ip6Packet, 4, "001b"), ErrTruncated},
		{"IPv6 length 0", patch(ip6Packet, 4, "0000"), ErrTruncated},
		{"IPv6 jumbogram", patch(patch(ip6Extensions, 4, "0000"), 42, "c204 00010000"), ErrTruncated},
		{"IPv6 UDP", patch(ip6Packet, 6, "11"), ErrNotTCP},
		{"IPv6 ICMP", patch(ip6Packet, 6, "3a"), ErrNotTCP},
		{"IPv6 no next header", patch(ip6Packet, 6, "3b"), ErrNotTCP},
		{"IPv6 ESP", patch(ip6Packet, 6, "32"), ErrNotTCP},
		{"IPv6 AH", patch(ip6Packet, 6, "33"), ErrNotTCP},
		{"IPv6 UDP after hop-by-hop options", patch(ip6Extensions, 40, "11"), ErrNotTCP},
		{"IPv6 first fragment", patch(ip6AtomicFragment, 42, "0001"), ErrFragment},
		{"IPv6 later fragment", patch(ip6AtomicFragment, 42, "0009"), ErrFragment},
		{"IPv6 last fragment", patch(ip6AtomicFragment, 42, "0008"), ErrFragment},
		{"IPv6 farthest fragment", patch(ip6AtomicFragment, 42, "8000"), ErrFragment},
		{"IPv6 routing header, one segment left", patch(ip6Extensions, 67, "01"), ErrSourceRoute},
		{"IPv6 routing header, 255 segments left", patch(ip6Extensions, 67, "ff"), ErrSourceRoute},
		{"IPv6 options longer than the packet", patch(ip6Extensions, 41, "ff"), ErrTruncated},
		{"IPv6 routing header longer than the packet", patch(ip6Extensions, 65, "20"), ErrTruncated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := decode(t, ip6Packet)
			if err := p.Decode(tt.bytes); err != tt.err {
				t.Errorf("%v, want %v", err, tt.err)
			}
			if p.Bytes() != nil || len(p.Payload()) != 0 {
				t.Error("the packet is not empty")
			}
		})
	}
}

// What must not make a packet one that is refused.
func TestDecodeTakes(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bytes []byte
	}{
		{"IPv4 may be fragmented", patch(ip4Packet, 6, "0000")},
		{"IPv4 reserved flag", patch(ip4Packet, 6, "8000")},
		{"IPv6 reserved bits of the fragment header", patch(ip6AtomicFragment, 41, "ff 0006")},
		{"wrong checksums", patch(patch(ip4Packet, 10, "ffff"), 36, "ffff")},
	} {
		if p := decode(t, tt.bytes); string(p.Payload()) != "PASV\r\n" {
			t.Errorf("%s: payload %q", tt.name, p.Payload())
		}
	}
}

// A packet that is written as it was comes out as it was: the checksums in the tables are
// those of another program.
func TestAppendSegmentSame(t *testing.T) {
	for _, tt := range packets {
		p := decode(t, tt.bytes)
		got, err := p.AppendSegment([]byte("before"), p.Seq(), p.Payload())
		if want := "before" + string(tt.bytes); err != nil || string(got) != want {
			t.Errorf("%s: %v\ngot  %x\nwant %x", tt.name, err, got, want)
		}
	}
}

func TestAppendSegment(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 1500)
	for i := range text {
		text[i] = byte(rnd.Uint32())
	}
	for _, tt := range packets {
		t.Run(tt.name, func(t *testing.T) {
			p := decode(t, tt.bytes)
			var buf []byte
			for n := range len(text) + 1 {
				seq := Seq(rnd.Uint32())
				var err error
				buf, err = p.AppendSegment(buf[:0], seq, text[:n])
				must.Do(t, err)
				checkRendered(t, p, buf, seq, text[:n])
				if !tt.fragment {
					checkWithGopacket(t, buf, seq, text[:n])
				}
				if t.Failed() {
					t.Fatalf("with %d bytes: %x", n, buf)
				}
			}
			if !bytes.Equal(p.Bytes(), tt.bytes) {
				t.Error("the packet itself has changed")
			}
		})
	}
}

// checkRendered checks b, which was made of p, byte by byte.
func checkRendered(t *testing.T, p *Packet, b []byte, seq Seq, payload []byte) {
	t.Helper()
	got := decode(t, b)
	if len(got.Bytes()) != len(b) {
		t.Errorf("%d bytes after the packet", len(b)-len(got.Bytes()))
	}
	if got.Seq() != seq || !bytes.Equal(got.Payload(), payload) {
		t.Errorf("sequence number %d, payload %q; want %d, %q", got.Seq(), got.Payload(), seq, payload)
	}
	// All that is in the headers but lengths, checksums and sequence number stays.
	was, is := bytes.Clone(p.Bytes()[:p.data]), bytes.Clone(b[:got.data])
	for _, h := range [][]byte{was, is} {
		if p.Is4() {
			clear(h[2:4])
			clear(h[10:12])
			if len(b) > len(p.Bytes()) {
				h[6] &^= 0x40 // TestDontFragment
			}
		} else {
			clear(h[4:6])
		}
		clear(h[p.tcp+4 : p.tcp+8])
		clear(h[p.tcp+16 : p.tcp+18])
	}
	if !bytes.Equal(was, is) {
		t.Errorf("headers differ:\nwas %x\nis  %x", was, is)
	}
	// A sum over all, the checksum in it, is all ones (RFC 1071 section 1).
	addresses := b[8:40]
	if p.Is4() {
		addresses = b[12:20]
		if s := slowSum(b[:got.tcp]); s != 0xffff {
			t.Errorf("IPv4 header sums up to %04x", s)
		}
	}
	n := len(b) - got.tcp
	covered := slices.Concat(addresses, []byte{0, protoTCP, byte(n >> 8), byte(n)}, b[got.tcp:])
	if s := slowSum(covered); s != 0xffff {
		t.Errorf("TCP segment sums up to %04x", s)
	}
}

// checkWithGopacket reads b with a decoder that shares nothing with ours.
func checkWithGopacket(t *testing.T, b []byte, seq Seq, payload []byte) {
	t.Helper()
	first := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	pkt := gopacket.NewPacket(b, first, gopacket.DecodeOptions{NoCopy: true})
	if e := pkt.ErrorLayer(); e != nil {
		t.Fatalf("gopacket: %v", e.Error())
	}
	switch ip := pkt.NetworkLayer().(type) {
	case *layers.IPv4:
		if int(ip.Length) != len(b) {
			t.Errorf("gopacket: IPv4 length %d, of %d bytes", ip.Length, len(b))
		}
		again := gopacket.NewSerializeBuffer()
		sum := ip.Checksum
		must.Do(t, ip.SerializeTo(again, gopacket.SerializeOptions{ComputeChecksums: true}))
		if ip.Checksum != sum {
			t.Errorf("gopacket: IPv4 checksum %04x, want %04x", sum, ip.Checksum)
		}
	case *layers.IPv6:
		if int(ip.Length) != len(b)-ip6Header {
			t.Errorf("gopacket: IPv6 length %d, of %d bytes", ip.Length, len(b))
		}
	}
	tcp, ok := pkt.TransportLayer().(*layers.TCP)
	if !ok {
		t.Fatalf("gopacket: no TCP in %v", pkt)
	}
	if Seq(tcp.Seq) != seq || !bytes.Equal(tcp.Payload, payload) {
		t.Errorf("gopacket: sequence number %d, payload %q; want %d, %q", tcp.Seq, tcp.Payload, seq, payload)
	}
	must.Do(t, tcp.SetNetworkLayerForChecksum(pkt.NetworkLayer()))
	// With the checksum in it.
	if sum, err := tcp.ComputeChecksum(); sum != 0 || err != nil {
		t.Errorf("gopacket: TCP checksum is off by %04x, %v", sum, err)
	}
}

func TestAppendSegmentTooLong(t *testing.T) {
	text := make([]byte, 1<<16+100)
	for i := range text {
		text[i] = 0xff
	}
	for _, tt := range packets {
		t.Run(tt.name, func(t *testing.T) {
			p := decode(t, tt.bytes)
			longest := 65535 - p.data
			if !p.Is4() {
				longest += ip6Header
			}
			b, err := p.AppendSegment(nil, 1, text[:longest])
			must.Do(t, err)
			checkRendered(t, p, b, 1, text[:longest])
			for _, n := range []int{longest + 1, len(text)} {
				b, err := p.AppendSegment([]byte("before"), 1, text[:n])
				if !errors.Is(err, ErrTooLong) || string(b) != "before" {
					t.Errorf("%d bytes, longest %d: %v, %d bytes", n, longest, err, len(b))
				}
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, tt := range packets {
		f.Add(tt.bytes, []byte("227 (1,2,3,4,5,6)\r\n"))
		f.Add(append(bytes.Clone(tt.bytes), 0), []byte{})
	}
	f.Fuzz(func(t *testing.T, b, payload []byte) {
		was := bytes.Clone(b)
		var p Packet
		if err := p.Decode(b); err != nil {
			if p.Bytes() != nil {
				t.Fatal("the packet is not empty")
			}
			return
		}
		if !bytes.HasPrefix(b, p.Bytes()) || !bytes.HasSuffix(p.Bytes(), p.Payload()) {
			t.Fatalf("%x with the payload %x", p.Bytes(), p.Payload())
		}
		src, dst := p.Src(), p.Dst()
		ack, acks := p.Ack()
		for _, text := range [][]byte{p.Payload(), payload} {
			seq := p.Seq().Add(-len(text))
			out, err := p.AppendSegment(nil, seq, text)
			if err != nil {
				if len(p.Bytes())+len(text) < 1<<16 {
					t.Fatal(err)
				}
				continue
			}
			checkRendered(t, &p, out, seq, text)
			q := decode(t, out)
			if a, ok := q.Ack(); q.Src() != src || q.Dst() != dst || a != ack || ok != acks {
				t.Fatalf("%v %v %d %v became %v %v %d %v", src, dst, ack, acks, q.Src(), q.Dst(), a, ok)
			}
		}
		if !bytes.Equal(b, was) {
			t.Fatal("the bytes themselves have changed")
		}
	})
}

// A segment without ACK has a number in that field, but acknowledges nothing.
func TestAck(t *testing.T) {
	for flags := range 0x100 {
		b := bytes.Clone(ip4Packet)
		b[20+13] = byte(flags)
		tcp := gopacket.NewPacket(b, layers.LayerTypeIPv4, gopacket.Default).TransportLayer().(*layers.TCP)
		if _, ok := decode(t, b).Ack(); ok != tcp.ACK {
			t.Errorf("flags %08b: acknowledges %v, want %v", flags, ok, tcp.ACK)
		}
	}
}

// A packet that grows may be fragmented, one that does not keeps the flag that forbids it.
func TestDontFragment(t *testing.T) {
	const dontFragment = 0x40
	b := bytes.Clone(ip4Packet)
	b[6] |= dontFragment
	p := decode(t, b)
	for _, tt := range []struct {
		payload string
		want    byte
	}{{string(p.Payload()) + "x", 0}, {string(p.Payload()), dontFragment}, {"x", dontFragment}} {
		out, err := p.AppendSegment(nil, p.Seq(), []byte(tt.payload))
		if err != nil || out[6]&dontFragment != tt.want {
			t.Errorf("payload %q: flags %#x, %v, want %#x", tt.payload, out[6], err, tt.want)
		}
	}
}
