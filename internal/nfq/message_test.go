package nfq

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
)

// TestLooped checks which packets have been here before: those that come in by the loopback
// interface for this host.
func TestLooped(t *testing.T) {
	message := func(hook byte, in uint32) []byte {
		var m nfnetlink.Buffer
		m.Bytes(attrPacketHdr, 0, 0, 0, 9, 8, 0, hook)
		m.Bytes(attrPayload, []byte("packet")...)
		if in != 0 {
			m.Uint32(attrIndev, in)
		}
		return nfnetlink.Data(unix.AF_INET, m)
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
			t.Errorf("hook %d, interface %d: got %+v, looped %v", c.hook, c.in, p, p.looped())
		}
	}
}
