package nfnetlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TestBuffer compares a message with that of package netlink, and decodes it.
func TestBuffer(t *testing.T) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.String(1, "name")
	e.Nested(2, func(e *netlink.AttributeEncoder) error {
		e.Uint16(1, 0x1234)
		e.Bytes(netlink.NetByteOrder|2, []byte{5})
		return nil
	})
	e.Uint32(3, 0x12345678)
	e.ByteOrder = binary.NativeEndian
	e.Uint32(4, 0x12345678)
	attrs, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	data := append([]byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0x01, 0x02}, attrs...)
	want, err := netlink.Message{
		Header: netlink.Header{
			Length: uint32(unix.SizeofNlMsghdr + len(data)), Type: unix.NFNL_SUBSYS_QUEUE<<8 | 2, Flags: netlink.Request | netlink.Acknowledge, Sequence: 7,
		},
		Data: data,
	}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}

	var b Buffer
	build := func() {
		b = b[:0]
		start := b.Message(unix.NFNL_SUBSYS_QUEUE<<8|2, unix.NLM_F_ACK, 7, unix.NFPROTO_IPV4, 0x0102)
		b.Text(1, "name")
		nest := b.Nest(2)
		b.Uint16(1, 0x1234)
		b.Bytes(unix.NLA_F_NET_BYTEORDER|2, 5)
		b.End(nest)
		b.Uint32(3, 0x12345678)
		b.Native(4, 0x12345678)
		b.EndMessage(start)
	}
	if build(); !bytes.Equal(b, want) {
		t.Fatalf("% x, want % x", []byte(b), want)
	}
	m, rest, err := Next(b)
	if err != nil || len(rest) != 0 || m.Type != unix.NFNL_SUBSYS_QUEUE<<8|2 || m.Seq != 7 || !bytes.Equal(m.Body, data) {
		t.Fatalf("got %+v, %d bytes left, %v", m, len(rest), err)
	}
	a, err := Body(m.Body)
	if err != nil || a.Text(1) != "name" || a.Uint32(3) != 0x12345678 || a.Native(4) != 0x12345678 || a.IsNested(1) || !a.IsNested(2) ||
		!bytes.Equal(a.Nested(2).Find(2), []byte{5}) || a.Find(5) != nil || a.Uint32(1) != 0 {
		t.Errorf("got % x, %v", []byte(a), err)
	}
	if less := Attributes(a.Without(1, 3)); less.Find(1) != nil || less.Find(3) != nil || less.Native(4) != 0x12345678 || !less.IsNested(2) {
		t.Errorf("without two attributes: got % x", []byte(less))
	}
	if n := testing.AllocsPerRun(100, func() {
		build()
		m, _, _ := Next(b)
		for a, _ := Body(m.Body); len(a) > 0; {
			_, _, _ = a.Next()
		}
	}); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

// TestMalformed cuts a message and its attributes off everywhere.
func TestMalformed(t *testing.T) {
	var b Buffer
	start := b.Message(unix.NLMSG_ERROR, 0, 7, 0, 0)
	b.Uint32(1, 2)
	b.EndMessage(start)
	for n := range len(b) {
		if _, _, err := Next(b[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes: got %v, want ErrMalformed", n, err)
		}
		if n <= HeaderLen {
			continue
		}
		a := Attributes(b[HeaderLen:n])
		if v := a.Find(1); v != nil {
			t.Errorf("%d bytes: got % x, want none", n, v)
		}
		if _, _, err := a.Next(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes: got %v, want ErrMalformed", n, err)
		}
	}
	for errno, want := range map[int32]error{0: nil, -2: nil, -4095: nil, 1: ErrMalformed, -4096: ErrMalformed} {
		binary.NativeEndian.PutUint32(b[unix.SizeofNlMsghdr:], uint32(errno))
		if m, _, err := Next(b); !errors.Is(err, want) || err == nil && m.Errno != unix.Errno(-errno) {
			t.Errorf("error %d: got %v, %v", errno, m.Errno, err)
		}
	}
}
