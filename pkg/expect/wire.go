package expect

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
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
	ctaTupleZone  = 3 // CTA_TUPLE_ZONE: of this direction only

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

// zone is the conntrack zone of every request. The kernel omits zone 0 in its own messages, so an entry with a
// zone belongs to another one.
const zone = 0

// errOtherZone is returned for a connection of another zone.
var errOtherZone = errors.New("another conntrack zone")

const (
	ipsSeqAdjust = 1 << 6  // IPS_SEQ_ADJUST of nf_conntrack_common.h
	ipsHelper    = 1 << 13 // IPS_HELPER: rules have attached a helper

	// States of nf_conntrack_tcp.h. The states after tcpEstablished belong to a connection that ends.
	tcpSynRecv     = 2 // TCP_CONNTRACK_SYN_RECV
	tcpEstablished = 3 // TCP_CONNTRACK_ESTABLISHED
	tcpClose       = 8 // TCP_CONNTRACK_CLOSE, the last state
)

// followMaster is the expectfn of nf_nat_core.c that translates a connection as its master is.
const followMaster = "nat-follow-master"

// requests is a sequence of messages to the kernel.
type requests struct{ nfnetlink.Buffer }

// message starts a message for the family of an address; EndMessage ends it, after its attributes.
func (r *requests) message(typ, flags uint16, of netip.Addr, seq uint32) (start int) {
	family := byte(unix.NFPROTO_IPV6)
	if of.Is4() {
		family = unix.NFPROTO_IPV4
	}
	return r.Message(typ, flags, seq, family, 0)
}

func (r *requests) address(typ4, typ6 uint16, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		r.Bytes(typ4, b[:]...)
		return
	}
	b := a.As16()
	r.Bytes(typ6, b[:]...)
}

func (r *requests) tuple(typ uint16, t Tuple) {
	tuple := r.Nest(typ)
	ip := r.Nest(ctaTupleIP)
	r.address(ctaIPv4Src, ctaIPv6Src, t.Src.Addr())
	r.address(ctaIPv4Dst, ctaIPv6Dst, t.Dst.Addr())
	r.End(ip)
	proto := r.Nest(ctaTupleProto)
	r.Bytes(ctaProtoNum, unix.IPPROTO_TCP)
	r.Uint16(ctaProtoSrcPort, t.Src.Port())
	r.Uint16(ctaProtoDstPort, t.Dst.Port())
	r.End(proto)
	r.End(tuple)
}

func (r *requests) seqAdj(dir Direction, a SeqAdj) {
	nest := r.Nest(ctaSeqAdjOrig + uint16(dir))
	r.Uint32(ctaSeqAdjPosition, a.Position)
	r.Uint32(ctaSeqAdjBefore, uint32(a.Before))
	r.Uint32(ctaSeqAdjAfter, uint32(a.After))
	r.End(nest)
}

// expectation appends the attributes of e for IPCTNL_MSG_EXP_NEW.
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
	// nf_nat_follow_master takes the addresses from the master, and the real destination port from this
	// tuple's source port.
	r.Text(ctaExpectFn, followMaster)
	nat := r.Nest(ctaExpectNAT)
	r.Uint32(ctaExpectNATDir, uint32(e.Dir))
	r.tuple(ctaExpectNATTuple, Tuple{netip.AddrPortFrom(zero, e.Port), netip.AddrPortFrom(zero, 0)})
	r.End(nat)
}

// tuple returns the tuple of e; its source port is 0.
func (e Expectation) tuple() Tuple { return Tuple{netip.AddrPortFrom(e.Src, 0), e.Dst} }

// attributes are those of a message from the kernel, or nested ones.
type attributes = nfnetlink.Attributes

// decode sets m from the body of an IPCTNL_MSG_CT_NEW. It allocates only if the helper's name differs from that
// in m.
func (m *Master) decode(body []byte) error {
	attrs, err := nfnetlink.Body(body)
	if err != nil {
		return err
	}
	known := m.Helper
	*m = Master{}
	for typ, v := range attrs.All() {
		v := attributes(v)
		switch typ {
		case ctaTupleOrig, ctaTupleReply:
			if m.Tuples[typ-ctaTupleOrig], err = decodeTuple(v); err != nil {
				return err
			}
		case ctaStatus:
			m.SeqAdjWorks = attrs.Uint32(ctaStatus)&ipsSeqAdjust != 0
		case ctaProtoInfo:
			if state := v.Nested(ctaProtoInfoTCP).Find(ctaProtoInfoTCPState); len(state) == 1 {
				m.Opening, m.Closing = state[0] == tcpSynRecv, state[0] > tcpEstablished && state[0] <= tcpClose
			}
		case ctaHelp:
			m.Helper = decodeHelper(v.Find(ctaHelpName), known)
		case ctaSeqAdjOrig, ctaSeqAdjReply:
			m.SeqAdj[typ-ctaSeqAdjOrig] = SeqAdj{
				Position: v.Uint32(ctaSeqAdjPosition), Before: int32(v.Uint32(ctaSeqAdjBefore)), After: int32(v.Uint32(ctaSeqAdjAfter)),
			}
		case ctaLabels:
			copy(m.Labels[:], v)
		}
	}
	for _, t := range m.Tuples {
		if !t.Src.IsValid() || !t.Dst.IsValid() {
			return fmt.Errorf("%w: a connection without addresses", nfnetlink.ErrMalformed)
		}
	}
	return nil
}

// decodeTuple decodes CTA_TUPLE_ORIG and the like. Missing parts are zero.
func decodeTuple(v attributes) (t Tuple, err error) {
	var src, dst netip.Addr
	var srcPort, dstPort uint16
	for typ, v := range v.All() {
		v := attributes(v)
		switch typ {
		case ctaTupleIP:
			src, dst = decodeAddr(v, ctaIPv4Src, ctaIPv6Src), decodeAddr(v, ctaIPv4Dst, ctaIPv6Dst)
		case ctaTupleProto:
			srcPort, dstPort = v.Uint16(ctaProtoSrcPort), v.Uint16(ctaProtoDstPort)
		case ctaTupleZone:
			return t, errOtherZone
		}
	}
	return Tuple{netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)}, nil
}

func decodeAddr(v attributes, typ4, typ6 uint16) netip.Addr {
	b := v.Find(typ4)
	if b == nil {
		b = v.Find(typ6)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// decodeHelper returns the name of a helper, without allocation if it is known.
func decodeHelper(name []byte, known string) string {
	if name = bytes.TrimRight(name, "\x00"); string(name) == known {
		return known
	}
	return string(name)
}
