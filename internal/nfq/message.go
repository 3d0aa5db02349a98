package nfq

import (
	"encoding/binary"
	"iter"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
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

const (
	attrHeader = 4 // bytes of a struct nlattr
	nfgenmsg   = 4 // bytes of a struct nfgenmsg
)

// recv is recv(2). That of x/sys allocates memory for the sender's address, and read(2) is
// slower on a socket.
func recv(fd int, b []byte, flags int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// message is one that was received.
type message struct {
	typ      uint16
	sequence uint32 // that of the request, if this is an answer
	data     []byte // behind the struct nlmsghdr
}

// messages yields those of a datagram.
func messages(b []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			n := int(binary.NativeEndian.Uint32(b))
			if n < unix.SizeofNlMsghdr || n > len(b) {
				return
			}
			m := message{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n]}
			if !yield(m) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// errno is what an NLMSG_ERROR says, 0 for success.
func (m message) errno() unix.Errno {
	if len(m.data) < 4 {
		return unix.EBADMSG
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.data)))
}

// packet is one that the kernel has queued.
type packet struct {
	id       uint32
	hook     byte
	in       uint32 // number of the interface that it came in by, 0 for none
	priority uint32 // of the socket buffer, 0 for none
	bytes    []byte // from the IP header on; may be missing
}

// looped tells whether this host sent the packet to itself, and it was here a moment ago, on its
// way out: the kernel queues for a cthelper in both places.
func (p packet) looped() bool {
	const loopback = 1 // LOOPBACK_IFINDEX
	return p.hook == unix.NF_INET_LOCAL_IN && p.in == loopback
}

// parsePacket reads an NFQNL_MSG_PACKET, which begins with a struct nfgenmsg; false if it has
// no number.
func parsePacket(b []byte) (p packet, ok bool) {
	const typeMask = 0x3fff // NLA_TYPE_MASK
	for b = b[min(nfgenmsg, len(b)):]; len(b) >= attrHeader; {
		n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])&typeMask
		if n < attrHeader || n > len(b) {
			break
		}
		data := b[attrHeader:n]
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
		b = b[min(align(n), len(b)):]
	}
	return p, ok
}

// appendRequest appends the beginning of a request with n bytes of attributes: a struct
// nlmsghdr and a struct nfgenmsg.
func appendRequest(b []byte, typ uint16, flags netlink.HeaderFlags, sequence uint32, queue uint16, n int) []byte {
	const port = 0 // the kernel fills it in
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+nfgenmsg+n))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, uint16(netlink.Request|flags))
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = binary.NativeEndian.AppendUint32(b, port)
	b = append(b, unix.AF_UNSPEC, unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(b, queue)
}

// appendVerdict appends an NFQNL_MSG_VERDICT, padded so that another message can follow.
func appendVerdict(b []byte, queue uint16, v Verdict) []byte {
	const accept, header = 1, attrHeader + 8 // NF_ACCEPT; a struct nfqnl_msg_verdict_hdr
	n := header
	if v.Packet != nil {
		n += align(attrHeader + len(v.Packet))
	}
	b = appendRequest(b, msgVerdict, 0, 0, queue, n)
	b = appendAttrHeader(b, attrVerdictHdr, header)
	b = binary.BigEndian.AppendUint32(b, accept)
	b = binary.BigEndian.AppendUint32(b, v.ID)
	if v.Packet == nil {
		return b
	}
	b = appendAttrHeader(b, attrPayload, attrHeader+len(v.Packet))
	b = append(b, v.Packet...)
	return append(b, make([]byte, align(len(v.Packet))-len(v.Packet))...)
}

// appendAttrHeader appends a struct nlattr; n is the attribute's length with it.
func appendAttrHeader(b []byte, typ uint16, n int) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(n))
	return binary.NativeEndian.AppendUint16(b, typ)
}

// align rounds a length up to where the next message or attribute begins (NLMSG_ALIGN).
func align(n int) int { return (n + 3) &^ 3 }
