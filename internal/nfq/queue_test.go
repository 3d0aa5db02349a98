package nfq

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// letGo is a Handler that lets everything go, every fourth one with a changed byte.
type letGo struct{ idle }

func (letGo) Handle(id uint32, packet []byte, verdicts []Verdict) []Verdict {
	v := Verdict{ID: id}
	if id%4 == 2 {
		packet[0]++
		v.Packet = packet
	}
	return append(verdicts, v)
}

// newPair returns a Queue whose socket leads to a descriptor instead of the kernel.
func newPair(t *testing.T) (q *Queue, kernel int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	must.Do(t, err)
	t.Cleanup(func() { unix.Close(pair[0]); unix.Close(pair[1]) })
	q = New(7, letGo{}, slog.New(slog.DiscardHandler))
	q.fd, q.buffer = pair[0], make([]byte, maxMessageLen)
	return q, pair[1]
}

// packetMessage is an NFQNL_MSG_PACKET.
func packetMessage(id, priority uint32, content string) (m nfnetlink.Buffer) {
	start := m.Message(msgPacket, 0, 0, unix.AF_INET, 7)
	m.Bytes(attrPacketHdr, append(binary.BigEndian.AppendUint32(nil, id), 8, 0, unix.NF_INET_PRE_ROUTING)...)
	m.Bytes(attrPayload, []byte(content)...)
	m.Uint32(attrPriority, priority)
	m.EndMessage(start)
	return m
}

// sent returns the numbers of the packets that the next datagram gives verdicts for.
func sent(t *testing.T, kernel int) (ids []uint32) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := unix.Read(kernel, b)
	must.Do(t, err)
	for b := b[:n]; len(b) > 0; {
		var m nfnetlink.Message
		m, b, err = nfnetlink.Next(b)
		must.Do(t, err)
		want := append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 7}, 12, 0, attrVerdictHdr, 0, 0, 0, 0, 1)
		if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
			want[4], want[5], want[6], want[7] = 0, 12, 0, attrVerdictHdr
		}
		if m.Type != msgVerdict || len(m.Body) < 16 || !bytes.Equal(m.Body[:12], want) {
			t.Fatalf("got message %+v, want a verdict", m)
		}
		id := binary.BigEndian.Uint32(m.Body[12:])
		if changed := id%4 == 2; changed != bytes.HasSuffix(m.Body, []byte("qacket\x00\x00")) || !changed && len(m.Body) != 16 {
			t.Errorf("verdict for %d: got %q", id, m.Body[16:])
		}
		ids = append(ids, id)
	}
	return ids
}

// TestVerdicts checks which verdicts a series of messages gets, and which of them are sent together.
func TestVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		ids  []uint32
		busy bool
		want [][]uint32
	}{
		"alone":      {[]uint32{1, 2}, false, [][]uint32{{1}, {2}}},
		"with a gap": {[]uint32{3, 6}, false, [][]uint32{{3}, {6}}}, // the kernel has let 4 and 5 go by itself
		"under load": {[]uint32{1, 2, 3, 4, 5}, true, [][]uint32{{1, 2, 3, 4, 5}}},
		"many": {
			[]uint32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18}, true,
			[][]uint32{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, {17, 18}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			q, kernel := newPair(t)
			q.busy = c.busy
			for _, id := range c.ids {
				must.Do(t, unix.Send(kernel, packetMessage(id, 0, "packet"), 0))
			}
			q.stopping = true // receive ends when there is no more
			must.Do(t, q.receive())
			for _, want := range c.want {
				if got := sent(t, kernel); !slices.Equal(got, want) {
					t.Errorf("sent %v, want %v", got, want)
				}
			}
		})
	}
}

// TestAllocations checks that nothing is allocated for a packet.
func TestAllocations(t *testing.T) {
	q, kernel := newPair(t)
	q.bound = true
	b := make([]byte, 1<<16)
	id := uint32(0)
	packet := packetMessage(id, 0, "packet")
	n := testing.AllocsPerRun(100, func() {
		id++
		binary.BigEndian.PutUint32(packet[nfnetlink.HeaderLen+unix.SizeofNlAttr:], id)
		must.Do(t, unix.Send(kernel, packet, 0))
		must.Do(t, q.next())
		must.Do(t, q.send())
		if n, err := unix.Read(kernel, b); err != nil || n < 32 {
			t.Fatalf("verdict for %d: got %d bytes, %v", id, n, err)
		}
	})
	if n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

// TestHandleByPriority hands packets with one priority to another function.
func TestHandleByPriority(t *testing.T) {
	q, kernel := newPair(t)
	var byPriority []uint32
	q.HandleByPriority(0x21270119, func(id uint32, _ []byte, verdicts []Verdict) []Verdict {
		byPriority = append(byPriority, id)
		return append(verdicts, Verdict{ID: id})
	})
	for id, priority := range []uint32{1: 0, 2: 0x21270119, 3: 0x01192721, 4: 0x21270119} {
		if id == 0 {
			continue
		}
		must.Do(t, unix.Send(kernel, packetMessage(uint32(id), priority, "packet"), 0))
	}
	q.stopping = true
	must.Do(t, q.receive())
	if !slices.Equal(byPriority, []uint32{2, 4}) {
		t.Errorf("packets of the priority: got %v, want 2 and 4", byPriority)
	}
}
