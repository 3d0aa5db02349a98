package nfq

import (
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TestLooped says which packets have been here before: those that come in by the loopback
// interface for this host.
func TestLooped(t *testing.T) {
	message := func(hook byte, in uint32) []byte {
		attrs := []netlink.Attribute{{Type: 1, Data: []byte{0, 0, 0, 9, 8, 0, hook}}, {Type: 10, Data: []byte("packet")}}
		if in != 0 {
			attrs = append(attrs, netlink.Attribute{Type: 5, Data: be32(in)})
		}
		b, err := netlink.MarshalAttributes(attrs)
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{2, 0, 0, 7}, b...)
	}
	for _, c := range []struct {
		hook byte
		in   uint32
		want bool
	}{
		{unix.NF_INET_LOCAL_IN, 1, true}, {unix.NF_INET_LOCAL_IN, 2, false}, {unix.NF_INET_LOCAL_IN, 0, false},
		{unix.NF_INET_POST_ROUTING, 0, false}, {unix.NF_INET_PRE_ROUTING, 1, false},
	} {
		p, ok := parsePacket(message(c.hook, c.in))
		if !ok || p.id != 9 || string(p.bytes) != "packet" || p.looped() != c.want {
			t.Errorf("hook %d, interface %d: %+v, looped %v", c.hook, c.in, p, p.looped())
		}
	}
}
