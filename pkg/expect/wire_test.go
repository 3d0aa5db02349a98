package expect

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// Answers of Linux 6.18 on a little-endian machine: to IPCTNL_MSG_CT_GET, to
// IPCTNL_MSG_CT_GET of what is not there, and to IPCTNL_MSG_CT_NEW.
const (
	answerEntry4 = "30010000000102000500000037979cd802000000" +
		"340001801400018008000100c000020108000200c00002021c0002800500010006000000060002008823000006000300001500003400" +
		"028014000180080001007f00000108000200c00002011c000280050001000600000006000200001500000600030088230000" +
		"08000300000021ee080008000000000008000c003aef9b8008000b0000000002080007000006978030000480" +
		"2c0001800500010003000000050002000a000000050003000a00000006000400230000000600050023000000" +
		"100005800900010073616e6500000000" + "1400160020000000000000000000000000000002" +
		"1c000f800800010000000000080002000000000008000300000000001c00108008000100000003e808000200fffffffe0800030000000009"
	answerEntry6 = "040100000001020006000000e4f294b20a000000" +
		"4c0001802c0001801400030020010db80000000000000000000000011400040020010db8000000000000000000000002" +
		"1c0002800500010006000000060002009bd90000060003000015000" +
		"04c0002802c00018014000300000000000000000000000000000000011400040020010db8000000000000000000000001" +
		"1c00028005000100060000000600020000150000060003009bd90000" +
		"08000300000001ae080008000000000008000c00517bcd5108000b00000000020800070000069780300004802c000180" +
		"0500010003000000050002000a000000050003000a00000006000400230000000600050023000000"
	answerNone = "24000000020000010600000037979cd8feffffff48000000010101000600000000000000"
	answerDone = "24000000020000010700000037979cd80000000070000000000105000700000000000000"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	must.Do(t, err)
	return b
}

func TestDecode(t *testing.T) {
	full := Master{
		Tuples:      [2]Tuple{tupleOf("192.0.2.1:34851", "192.0.2.2:21"), tupleOf("127.0.0.1:21", "192.0.2.1:34851")},
		Helper:      "sane",
		SeqAdj:      [2]SeqAdj{Reply: {Position: 1000, Before: -2, After: 9}},
		SeqAdjWorks: true,
	}
	full.Labels[0], full.Labels[15] = 1<<5, 1<<1
	plain := Master{Tuples: [2]Tuple{tupleOf("[2001:db8::1]:39897", "[2001:db8::2]:21"), tupleOf("[::1]:21", "[2001:db8::1]:39897")}}
	for _, tt := range []struct {
		answer string
		seq    uint32
		want   Master
	}{{answerEntry4, 5, full}, {answerEntry6, 6, plain}} {
		var r result
		if answered, err := r.take(unhex(t, tt.answer), tt.seq, 1); !answered || err != nil || r.errno[0] != 0 {
			t.Fatalf("%v, %v, %v", answered, err, r.errno)
		}
		for _, before := range []Master{{}, full, plain} {
			if got := before; got.decode(r.body) != nil || got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		}
	}
}

func TestTake(t *testing.T) {
	none, done, entry := unhex(t, answerNone), unhex(t, answerDone), unhex(t, answerEntry4) // 6, 7, 5
	for _, tt := range []struct {
		name     string
		bytes    []byte
		first    uint32
		count    int
		answered bool
		errno    [maxRequests]unix.Errno
		err      error
	}{
		{"error", none, 6, 1, true, [maxRequests]unix.Errno{unix.ENOENT}, nil},
		{"acknowledgement", done, 7, 1, true, [maxRequests]unix.Errno{}, nil},
		{"the first of two", none, 6, 2, false, [maxRequests]unix.Errno{unix.ENOENT}, nil},
		{"the second of two", done, 6, 2, true, [maxRequests]unix.Errno{}, nil},
		{"both at once", append(bytes.Clone(none), done...), 6, 2, true, [maxRequests]unix.Errno{unix.ENOENT}, nil},
		{"nothing", nil, 6, 1, false, [maxRequests]unix.Errno{}, nil},
		{"an earlier one", none, 7, 1, false, [maxRequests]unix.Errno{}, errStray},
		{"a later one", done, 6, 1, false, [maxRequests]unix.Errno{}, errStray},
		{"an entry before the last", entry, 5, 2, false, [maxRequests]unix.Errno{}, errStray},
		{"more after the last", append(bytes.Clone(done), done...), 7, 1, false, [maxRequests]unix.Errno{}, errStray},
	} {
		var r result
		answered, err := r.take(tt.bytes, tt.first, tt.count)
		if answered != tt.answered || !errors.Is(err, tt.err) || err == nil && r.errno != tt.errno {
			t.Errorf("%s: %v, %v, %v", tt.name, answered, err, r.errno)
		}
	}
}

// TestTruncated cuts answers off everywhere, the message's own length with it or not.
func TestTruncated(t *testing.T) {
	for _, s := range []string{answerEntry4, answerEntry6, answerNone, answerDone} {
		whole := unhex(t, s)
		seq := binary.NativeEndian.Uint32(whole[8:])
		for n := 1; n < len(whole); n++ {
			cut := bytes.Clone(whole[:n])
			var r result
			if answered, err := r.take(cut, seq, 1); answered || !errors.Is(err, nfnetlink.ErrMalformed) {
				t.Errorf("%d of %d bytes: %v, %v", n, len(whole), answered, err)
			}
			if _, err := decodeEvent(cut); !errors.Is(err, nfnetlink.ErrMalformed) {
				t.Errorf("%d of %d bytes as an event: %v", n, len(whole), err)
			}
			if n < unix.SizeofNlMsghdr+4 {
				continue
			}
			binary.NativeEndian.PutUint32(cut, uint32(n))
			if _, err := decodeEvent(cut); err != nil && !errors.Is(err, nfnetlink.ErrMalformed) {
				t.Errorf("an event of %d bytes: %v", n, err)
			}
			if answered, err := r.take(cut, seq, 1); !answered || err != nil {
				t.Errorf("a message of %d bytes: %v, %v", n, answered, err)
			}
			var m Master
			if err := m.decode(r.body); err != nil && !errors.Is(err, nfnetlink.ErrMalformed) {
				t.Errorf("a message of %d bytes: %v", n, err)
			}
		}
	}
}

// FuzzAnswers takes anything for what the kernel says.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{answerEntry4, answerEntry6, answerNone, answerDone, answerNone + answerDone} {
		b := unhex(f, s)
		f.Add(b, binary.NativeEndian.Uint32(b[8:]), byte(len(s)%maxRequests))
	}
	f.Fuzz(func(t *testing.T, b []byte, first uint32, more byte) {
		var r result
		answered, err := r.take(b, first, 1+int(more)%maxRequests)
		if answered && err != nil {
			t.Errorf("answered, and %v", err)
		}
		for _, errno := range r.errno {
			if errno > 4095 {
				t.Errorf("error %d", errno)
			}
		}
		if len(b) > 0 { // a Listener reads no less
			if ev, err := decodeEvent(b); err == nil && ev.Kind > ExpectationDestroyed {
				t.Errorf("%+v", ev)
			}
		}
		for _, body := range [][]byte{b, r.body} {
			m := Master{Helper: "sane"}
			if err := m.decode(body); err != nil {
				continue
			}
			for _, tuple := range m.Tuples {
				if !tuple.Src.IsValid() || !tuple.Dst.IsValid() {
					t.Errorf("%+v", m)
				}
			}
		}
	})
}

// TestZone checks that every request names its conntrack zone.
func TestZone(t *testing.T) {
	t4 := Tuple{Src: netip.MustParseAddrPort("203.0.113.101:50774"), Dst: netip.MustParseAddrPort("192.0.2.2:21")}
	m := &Master{Tuples: [2]Tuple{t4, {Src: t4.Dst, Dst: t4.Src}}}
	e := For(m, Reply, 1025)
	for name, request := range map[string]func(*Client){
		"look-up":  func(c *Client) { c.addGet(t4) },
		"update":   func(c *Client) { c.addUpdate(m, Update{SetLabel: 1}) },
		"announce": func(c *Client) { c.addExpectation(e) },
		"owns":     func(c *Client) { c.owns(e) },
		"remove":   func(c *Client) { _ = c.Unexpect(e) },
	} {
		c := &Client{socket: &socket{fd: -1}}
		request(c)
		if c.count != 1 || len(c.out.Buffer) < nfnetlink.HeaderLen {
			t.Fatalf("%s: %d requests in %d bytes", name, c.count, len(c.out.Buffer))
		}
		want := uint16(ctaZone)
		if binary.NativeEndian.Uint16(c.out.Buffer[4:])>>8 == unix.NFNL_SUBSYS_CTNETLINK_EXP {
			want = ctaExpectZone
		}
		named := false
		for attrs := attributes(c.out.Buffer[nfnetlink.HeaderLen:]); len(attrs) > 0; {
			typ, v, err := attrs.Next()
			must.Do(t, err)
			named = named || typ == want && bytes.Equal(v, []byte{0, zone})
		}
		if !named {
			t.Errorf("%s names no zone: % x", name, c.out.Buffer)
		}
	}
}

// TestOpening says in which state of TCP a connection is opening.
func TestOpening(t *testing.T) {
	const established, synRecv = "0500010003000000", "0500010002000000"
	for text, want := range map[string]bool{answerEntry4: false, strings.Replace(answerEntry4, established, synRecv, 1): true} {
		message, err := hex.DecodeString(text)
		must.Do(t, err)
		var m Master
		if err := m.decode(message[unix.SizeofNlMsghdr:]); err != nil || m.Opening != want {
			t.Errorf("opening: %v, %v, want %v", m.Opening, err, want)
		}
	}
}
