package expect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Messages of connections (enum cntl_msg_types).
const (
	msgCtNew    = unix.NFNL_SUBSYS_CTNETLINK<<8 + iota // IPCTNL_MSG_CT_NEW
	msgCtGet                                           // IPCTNL_MSG_CT_GET
	msgCtDelete                                        // IPCTNL_MSG_CT_DELETE
)

// Messages of expectations (enum ctnl_exp_msg_types).
const (
	msgExpNew    = unix.NFNL_SUBSYS_CTNETLINK_EXP<<8 + iota // IPCTNL_MSG_EXP_NEW
	msgExpGet                                               // IPCTNL_MSG_EXP_GET
	msgExpDelete                                            // IPCTNL_MSG_EXP_DELETE
)

// Attributes (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaTupleOrig   = 1  // CTA_TUPLE_ORIG
	ctaTupleReply  = 2  // CTA_TUPLE_REPLY
	ctaStatus      = 3  // CTA_STATUS
	ctaProtoInfo   = 4  // CTA_PROTOINFO
	ctaHelp        = 5  // CTA_HELP
	ctaTupleMaster = 14 // CTA_TUPLE_MASTER
	ctaSeqAdjOrig  = 15 // CTA_SEQ_ADJ_ORIG
	ctaSeqAdjReply = 16 // CTA_SEQ_ADJ_REPLY
	ctaZone        = 18 // CTA_ZONE
	ctaLabels      = 22 // CTA_LABELS
	ctaLabelsMask  = 23 // CTA_LABELS_MASK

	ctaTupleIP    = 1 // CTA_TUPLE_IP
	ctaTupleProto = 2 // CTA_TUPLE_PROTO

	ctaIPv4Src = 1 // CTA_IP_V4_SRC
	ctaIPv4Dst = 2 // CTA_IP_V4_DST
	ctaIPv6Src = 3 // CTA_IP_V6_SRC
	ctaIPv6Dst = 4 // CTA_IP_V6_DST

	ctaProtoNum     = 1 // CTA_PROTO_NUM
	ctaProtoSrcPort = 2 // CTA_PROTO_SRC_PORT
	ctaProtoDstPort = 3 // CTA_PROTO_DST_PORT

	ctaProtoInfoTCP      = 1 // CTA_PROTOINFO_TCP
	ctaProtoInfoTCPState = 1 // CTA_PROTOINFO_TCP_STATE

	ctaHelpName = 1 // CTA_HELP_NAME

	ctaSeqAdjPosition = 1 // CTA_SEQADJ_CORRECTION_POS
	ctaSeqAdjBefore   = 2 // CTA_SEQADJ_OFFSET_BEFORE
	ctaSeqAdjAfter    = 3 // CTA_SEQADJ_OFFSET_AFTER

	ctaExpectMaster  = 1  // CTA_EXPECT_MASTER
	ctaExpectTuple   = 2  // CTA_EXPECT_TUPLE
	ctaExpectMask    = 3  // CTA_EXPECT_MASK
	ctaExpectTimeout = 4  // CTA_EXPECT_TIMEOUT
	ctaExpectZone    = 7  // CTA_EXPECT_ZONE
	ctaExpectNAT     = 10 // CTA_EXPECT_NAT
	ctaExpectFn      = 11 // CTA_EXPECT_FN

	ctaExpectNATDir   = 1 // CTA_EXPECT_NAT_DIR
	ctaExpectNATTuple = 2 // CTA_EXPECT_NAT_TUPLE
)

// zone is the conntrack zone that every message names.
const zone = 0

const (
	ipsSeqAdjust = 1 << 6  // IPS_SEQ_ADJUST of nf_conntrack_common.h
	ipsHelper    = 1 << 13 // IPS_HELPER: rules have attached a helper
	tcpSynRecv   = 2       // TCP_CONNTRACK_SYN_RECV of nf_conntrack_tcp.h
	tcpClose     = 8       // TCP_CONNTRACK_CLOSE, the last of the states of nf_conntrack_tcp.h

	nlaTypeMask    = 0x3fff // NLA_TYPE_MASK: without the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER
	sizeofNfgenmsg = 4      // struct nfgenmsg: family, version, resource ID
)

// followMaster is the expectfn of nf_nat_core.c: translate as the master is. The strings of
// ctnetlink end in NUL.
const followMaster = "nat-follow-master\x00"

// requests are messages to the kernel, one after another. What is added is whole and aligned.
type requests []byte

// message begins a message; endMessage with what it returns ends it. Between them come its
// attributes.
func (r *requests) message(typ, flags uint16, of netip.Addr, seq uint32) (start int) {
	start = len(*r)
	b := append(*r, 0, 0, 0, 0) // nlmsg_len
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0) // nlmsg_pid
	family := byte(unix.NFPROTO_IPV6)
	if of.Is4() {
		family = unix.NFPROTO_IPV4
	}
	*r = append(b, family, unix.NFNETLINK_V0, 0, 0)
	return start
}

func (r requests) endMessage(start int) {
	binary.NativeEndian.PutUint32(r[start:], uint32(len(r)-start))
}

// nest begins an attribute that is made of attributes; endNest ends it.
func (r *requests) nest(typ uint16) (start int) {
	start = len(*r)
	b := append(*r, 0, 0) // nla_len
	*r = binary.NativeEndian.AppendUint16(b, unix.NLA_F_NESTED|typ)
	return start
}

func (r requests) endNest(start int) {
	binary.NativeEndian.PutUint16(r[start:], uint16(len(r)-start))
}

func (r *requests) bytes(typ uint16, value ...byte) {
	b := binary.NativeEndian.AppendUint16(*r, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	*r = b
}

func (r *requests) uint32(typ uint16, value uint32) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], value)
	r.bytes(typ, b[:]...)
}

func (r *requests) uint16(typ uint16, value uint16) { r.bytes(typ, byte(value>>8), byte(value)) }

func (r *requests) address(typ4, typ6 uint16, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		r.bytes(typ4, b[:]...)
		return
	}
	b := a.As16()
	r.bytes(typ6, b[:]...)
}

func (r *requests) tuple(typ uint16, t Tuple) {
	tuple := r.nest(typ)
	ip := r.nest(ctaTupleIP)
	r.address(ctaIPv4Src, ctaIPv6Src, t.Src.Addr())
	r.address(ctaIPv4Dst, ctaIPv6Dst, t.Dst.Addr())
	r.endNest(ip)
	proto := r.nest(ctaTupleProto)
	r.bytes(ctaProtoNum, unix.IPPROTO_TCP)
	r.uint16(ctaProtoSrcPort, t.Src.Port())
	r.uint16(ctaProtoDstPort, t.Dst.Port())
	r.endNest(proto)
	r.endNest(tuple)
}

func (r *requests) seqAdj(dir Direction, a SeqAdj) {
	nest := r.nest(ctaSeqAdjOrig + uint16(dir))
	r.uint32(ctaSeqAdjPosition, a.Position)
	r.uint32(ctaSeqAdjBefore, uint32(a.Before))
	r.uint32(ctaSeqAdjAfter, uint32(a.After))
	r.endNest(nest)
}

// expectation puts what IPCTNL_MSG_EXP_NEW says of e.
func (r *requests) expectation(e Expectation) {
	zero := netip.IPv6Unspecified()
	ones := netip.AddrFrom16([16]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	if e.Src.Is4() {
		zero, ones = netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{0xff, 0xff, 0xff, 0xff})
	}
	r.tuple(ctaExpectMaster, e.Master)
	r.tuple(ctaExpectTuple, e.tuple())
	r.tuple(ctaExpectMask, Tuple{netip.AddrPortFrom(ones, 0), netip.AddrPortFrom(zero, 0xffff)})
	if !e.NAT {
		return
	}
	// nf_nat_follow_master takes the addresses from the master, and the real destination port
	// from the source half of this tuple.
	r.bytes(ctaExpectFn, []byte(followMaster)...)
	nat := r.nest(ctaExpectNAT)
	r.uint32(ctaExpectNATDir, uint32(e.Dir))
	r.tuple(ctaExpectNATTuple, Tuple{netip.AddrPortFrom(zero, e.Port), netip.AddrPortFrom(zero, 0)})
	r.endNest(nat)
}

// tuple returns the packets that e expects.
func (e Expectation) tuple() Tuple { return Tuple{netip.AddrPortFrom(e.Src, 0), e.Dst} }

// errMalformed says that what came from the kernel does not hold together.
var errMalformed = errors.New("malformed answer from ctnetlink")

// answer is one message from the kernel.
type answer struct {
	seq   uint32 // of the request that it answers
	typ   uint16
	errno unix.Errno // of NLMSG_ERROR: 0 is an acknowledgement
	body  []byte     // of another message: struct nfgenmsg and attributes
}

// nextAnswer takes the first message off b, which is not empty, and returns the rest.
func nextAnswer(b []byte) (a answer, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return a, nil, fmt.Errorf("%w: %d bytes are no message", errMalformed, len(b))
	}
	size := binary.NativeEndian.Uint32(b)
	if size < unix.SizeofNlMsghdr || uint64(size) > uint64(len(b)) {
		return a, nil, fmt.Errorf("%w: a message of %d bytes in %d", errMalformed, size, len(b))
	}
	a = answer{
		typ:  binary.NativeEndian.Uint16(b[4:]),
		seq:  binary.NativeEndian.Uint32(b[8:]),
		body: b[unix.SizeofNlMsghdr:size],
	}
	rest = b[min(len(b), aligned(int(size))):]
	if a.typ != unix.NLMSG_ERROR {
		return a, rest, nil
	}
	if len(a.body) < 4 {
		return a, nil, fmt.Errorf("%w: an error without a number", errMalformed)
	}
	number := int32(binary.NativeEndian.Uint32(a.body))
	if number > 0 || number < -4095 { // MAX_ERRNO
		return a, nil, fmt.Errorf("%w: error %d", errMalformed, number)
	}
	a.errno, a.body = unix.Errno(-number), nil
	return a, rest, nil
}

// attributes are struct nlattr, one after another.
type attributes []byte

// next takes the first one off, of which there must be one.
func (a *attributes) next() (typ uint16, value []byte, err error) {
	b := *a
	if len(b) < unix.SizeofNlAttr {
		return 0, nil, fmt.Errorf("%w: %d bytes are no attribute", errMalformed, len(b))
	}
	size := int(binary.NativeEndian.Uint16(b))
	if size < unix.SizeofNlAttr || size > len(b) {
		return 0, nil, fmt.Errorf("%w: an attribute of %d bytes in %d", errMalformed, size, len(b))
	}
	*a = b[min(len(b), aligned(size)):]
	return binary.NativeEndian.Uint16(b[2:]) & nlaTypeMask, b[unix.SizeofNlAttr:size], nil
}

// aligned is NLMSG_ALIGN and NLA_ALIGN.
func aligned(n int) int { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }

// decode makes m what the body of an IPCTNL_MSG_CT_NEW says. It allocates only for another
// helper's name than m has already.
func (m *Master) decode(body []byte) error {
	if len(body) < sizeofNfgenmsg {
		return fmt.Errorf("%w: %d bytes are no message of nfnetlink", errMalformed, len(body))
	}
	known := m.Helper
	*m = Master{}
	for attrs := attributes(body[sizeofNfgenmsg:]); len(attrs) > 0; {
		typ, v, err := attrs.next()
		if err != nil {
			return err
		}
		switch typ {
		case ctaTupleOrig, ctaTupleReply:
			m.Tuples[typ-ctaTupleOrig], err = decodeTuple(v)
		case ctaStatus:
			var status uint32
			status, err = decodeUint32(v)
			m.Adjustable = status&ipsSeqAdjust != 0
		case ctaProtoInfo:
			var state byte
			state, err = decodeTCPState(v)
			m.Opening, m.Closing = state == tcpSynRecv, state > tcpEstablished && state <= tcpClose
		case ctaHelp:
			m.Helper, err = decodeHelper(v, known)
		case ctaSeqAdjOrig, ctaSeqAdjReply:
			m.SeqAdj[typ-ctaSeqAdjOrig], err = decodeSeqAdj(v)
		case ctaLabels:
			copy(m.Labels[:], v)
		}
		if err != nil {
			return err
		}
	}
	for _, t := range m.Tuples {
		if !t.Src.IsValid() || !t.Dst.IsValid() {
			return fmt.Errorf("%w: a connection without its addresses", errMalformed)
		}
	}
	return nil
}

func decodeTuple(v attributes) (t Tuple, err error) {
	var src, dst netip.Addr
	var srcPort, dstPort uint16
	for len(v) > 0 {
		typ, half, err := v.next()
		if err != nil {
			return t, err
		}
		for half := attributes(half); len(half) > 0; {
			field, v, err := half.next()
			if err != nil {
				return t, err
			}
			switch {
			case typ == ctaTupleIP && (field == ctaIPv4Src || field == ctaIPv6Src):
				src, err = decodeAddr(v)
			case typ == ctaTupleIP && (field == ctaIPv4Dst || field == ctaIPv6Dst):
				dst, err = decodeAddr(v)
			case typ == ctaTupleProto && field == ctaProtoSrcPort:
				srcPort, err = decodeUint16(v)
			case typ == ctaTupleProto && field == ctaProtoDstPort:
				dstPort, err = decodeUint16(v)
			}
			if err != nil {
				return t, err
			}
		}
	}
	return Tuple{netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)}, nil
}

func decodeAddr(v []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(v)
	if !ok {
		return a, fmt.Errorf("%w: an address of %d bytes", errMalformed, len(v))
	}
	return a, nil
}

// decodeHelper returns known, if that is the name, and a new string otherwise.
func decodeHelper(v attributes, known string) (string, error) {
	for len(v) > 0 {
		typ, name, err := v.next()
		if err != nil {
			return "", err
		}
		if typ != ctaHelpName {
			continue
		}
		if n := len(name); n > 0 && name[n-1] == 0 {
			name = name[:n-1]
		}
		if string(name) == known {
			return known, nil
		}
		return string(name), nil
	}
	return "", nil
}

func decodeSeqAdj(v attributes) (a SeqAdj, err error) {
	for len(v) > 0 {
		typ, value, err := v.next()
		if err != nil {
			return a, err
		}
		n, err := decodeUint32(value)
		if err != nil {
			return a, err
		}
		switch typ {
		case ctaSeqAdjPosition:
			a.Position = n
		case ctaSeqAdjBefore:
			a.Before = int32(n)
		case ctaSeqAdjAfter:
			a.After = int32(n)
		}
	}
	return a, nil
}

func decodeUint32(v []byte) (uint32, error) {
	if len(v) != 4 {
		return 0, fmt.Errorf("%w: a number of %d bytes, not 4", errMalformed, len(v))
	}
	return binary.BigEndian.Uint32(v), nil
}

func decodeUint16(v []byte) (uint16, error) {
	if len(v) != 2 {
		return 0, fmt.Errorf("%w: a number of %d bytes, not 2", errMalformed, len(v))
	}
	return binary.BigEndian.Uint16(v), nil
}
