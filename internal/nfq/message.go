package nfq

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
)

// Types of messages: NFQNL_MSG_* of linux/netfilter/nfnetlink_queue.h.
const (
	msgPacket  = unix.NFNL_SUBSYS_QUEUE << 8
	msgVerdict = unix.NFNL_SUBSYS_QUEUE<<8 | 1
	msgConfig  = unix.NFNL_SUBSYS_QUEUE<<8 | 2
)

// Attributes of packets and of verdicts: NFQA_*.
const (
	attrPacketHdr  = 1
	attrVerdictHdr = 2
	attrIndev      = 5 // NFQA_IFINDEX_INDEV
	attrPayload    = 10
	attrPriority   = 21 // NFQA_PRIORITY
)

// recv is recv(2). That of x/sys allocates memory for the sender's address, and read(2) is slower on a
// socket.
func recv(fd int, b []byte, flags int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// packet is a queued packet.
type packet struct {
	id       uint32
	hook     byte
	in       uint32 // index of the input interface, 0 for none
	priority uint32 // of the socket buffer, 0 for none
	bytes    []byte // from the IP header on; may be nil
}

// looped reports whether this host sent the packet to itself, so that the kernel, which queues for a cthelper in
// output and input, has queued it before.
func (p packet) looped() bool {
	const loopback = 1 // LOOPBACK_IFINDEX
	return p.hook == unix.NF_INET_LOCAL_IN && p.in == loopback
}

// parsePacket parses the body of an NFQNL_MSG_PACKET; false if it has no packet number.
func parsePacket(body []byte) (p packet, ok bool) {
	attrs, err := nfnetlink.Body(body)
	for err == nil && len(attrs) > 0 {
		var typ uint16
		var data []byte
		typ, data, err = attrs.Next()
		switch {
		case typ == attrPacketHdr && len(data) >= 7: // struct nfqnl_msg_packet_hdr
			p.id, p.hook, ok = binary.BigEndian.Uint32(data), data[6], true
		case typ == attrIndev && len(data) == 4:
			p.in = binary.BigEndian.Uint32(data)
		case typ == attrPriority && len(data) == 4:
			p.priority = binary.BigEndian.Uint32(data)
		case typ == attrPayload:
			p.bytes = data
		}
	}
	return p, ok
}

// appendVerdict appends an NFQNL_MSG_VERDICT.
func appendVerdict(b *nfnetlink.Buffer, queue uint16, v Verdict) {
	const accept = 1 // NF_ACCEPT
	start := b.Message(msgVerdict, 0, 0, unix.AF_UNSPEC, queue)
	header := [8]byte{3: accept} // struct nfqnl_msg_verdict_hdr
	binary.BigEndian.PutUint32(header[4:], v.ID)
	b.Bytes(attrVerdictHdr, header[:]...)
	if v.Packet != nil {
		b.Bytes(attrPayload, v.Packet...)
	}
	b.EndMessage(start)
}
