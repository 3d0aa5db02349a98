package expect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"
)

// Errors of Client, for what a caller decides on.
var (
	// ErrNoEntry is returned where conntrack does not know the control connection.
	ErrNoEntry = errors.New("conntrack has no such connection")
	// ErrNoHelper is returned where the control connection has no helper attached, so that
	// the kernel takes no expectation for it. A helper can only be attached to a
	// connection's first packet.
	ErrNoHelper = errors.New("no conntrack helper is attached to the control connection")
	// ErrPortTaken is returned where another control connection expects a data connection
	// at the same place, and no other port could be had.
	ErrPortTaken = errors.New("another control connection expects a data connection there")
	// ErrFull is returned where the kernel's table of expectations is full.
	ErrFull = errors.New("the table of expectations is full: raise the sysctl net.netfilter.nf_conntrack_expect_max")
	// ErrNoSeqAdj is returned where the kernel does not adjust the sequence numbers of the
	// control connection: its conntrack entry got no room for that when it was made,
	// because it is not translated, or the helper was attached after NAT.
	ErrNoSeqAdj = errors.New("the kernel does not adjust the sequence numbers of the control connection")
)

// nfnetlink_conntrack.h
const (
	msgCtNew     = 0
	msgExpGet    = 1
	msgExpDelete = 2

	ctaTupleOrig   = 1
	ctaLabels      = 22
	ctaLabelsMask  = 23
	ctaSeqAdjOrig  = 15
	ctaSeqAdjReply = 16

	ctaSeqAdjPosition = 1
	ctaSeqAdjBefore   = 2
	ctaSeqAdjAfter    = 3

	ctaExpectTuple = 2

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3
)

// The strings of ctnetlink end in NUL; conntrack.Expect sends them as they are.
const followMaster = "nat-follow-master\x00"

// Client talks to conntrack over ctnetlink, in the network namespace in which it was opened.
// It needs CAP_NET_ADMIN there. It is not safe for concurrent use.
type Client struct {
	ct *conntrack.Conn
	nf *netfilter.Conn // for messages that package conntrack cannot send
}

// Dial opens a Client.
func Dial() (*Client, error) {
	ct, err := conntrack.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open ctnetlink socket: %w", err)
	}
	nf, err := netfilter.Dial(nil)
	if err != nil {
		_ = ct.Close()
		return nil, fmt.Errorf("open ctnetlink socket: %w", err)
	}
	return &Client{ct, nf}, nil
}

// Close closes the Client. What it has installed stays in the kernel.
func (c *Client) Close() error {
	return errors.Join(c.ct.Close(), c.nf.Close())
}

// Lookup finds the connection to which packets with the tuple t belong, and says in which
// direction they go. It returns ErrNoEntry if there is none.
func (c *Client) Lookup(t Tuple) (*Master, Direction, error) {
	flow, err := c.ct.Get(conntrack.Flow{TupleOrig: ctTuple(t)})
	if errors.Is(err, unix.ENOENT) {
		return nil, Original, ErrNoEntry
	}
	if err != nil {
		return nil, Original, fmt.Errorf("look up control connection %s to %s: %w", t.Src, t.Dst, err)
	}
	m := &Master{
		Tuples: [2]Tuple{fromCt(flow.TupleOrig), fromCt(flow.TupleReply)},
		Helper: flow.Helper.Name,
		SeqAdj: [2]SeqAdj{fromSeqAdj(flow.SeqAdjOrig), fromSeqAdj(flow.SeqAdjReply)},
	}
	copy(m.Labels[:], flow.Labels)
	m.Adjustable = flow.Status.SeqAdjust()
	if t == m.Tuples[Original] {
		return m, Original, nil
	}
	return m, Reply, nil
}

// maxTries is how many ports are tried for one expectation: nf_nat_exp_find_port of
// net/netfilter/nf_nat_helper.c.
const maxTries = 128

// Expect installs the expectation e and returns what was installed. That is e itself, or,
// if another control connection expects the same and the connection is translated, e with
// another destination port. An expectation of the same master for the same place is
// replaced. It returns ErrNoEntry, ErrNoHelper, ErrPortTaken, ErrFull, or what the kernel said.
func (c *Client) Expect(e Expectation) (Expectation, error) {
	err := c.create(e)
	if errors.Is(err, unix.EEXIST) && c.owns(e) {
		if err = c.Unexpect(e); err == nil {
			err = c.create(e)
		}
	}
	for try := 1; taken(err) && e.NAT && try < maxTries; try++ {
		e = e.WithAnyPort()
		err = c.create(e)
	}
	switch {
	case err == nil:
		return e, nil
	case taken(err):
		return e, ErrPortTaken
	case errors.Is(err, unix.ENOENT):
		return e, ErrNoEntry
	case errors.Is(err, unix.EOPNOTSUPP):
		return e, ErrNoHelper
	case errors.Is(err, unix.EMFILE):
		return e, ErrFull
	}
	return e, fmt.Errorf("install expectation %s to %s: %w", e.Src, e.Dst, err)
}

func taken(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) }

func (c *Client) create(e Expectation) error {
	ones, zeros := masks(e.Src)
	x := conntrack.Expect{
		TupleMaster: ctTuple(e.Master),
		Tuple:       ctTuple(Tuple{netip.AddrPortFrom(e.Src, 0), e.Dst}),
		Mask:        ctTuple(Tuple{netip.AddrPortFrom(ones, 0), netip.AddrPortFrom(zeros, 0xffff)}),
	}
	if e.NAT {
		// nf_nat_follow_master takes the addresses from the master, and the real
		// destination port from the source half of this tuple.
		x.Function = followMaster
		x.NAT = conntrack.ExpectNAT{
			Direction: e.Dir == Reply,
			Tuple:     ctTuple(Tuple{netip.AddrPortFrom(zeros, e.Port), netip.AddrPortFrom(zeros, 0)}),
		}
	}
	return c.ct.CreateExpect(x)
}

// owns reports whether the expectation that is in the place of e belongs to e's master.
func (c *Client) owns(e Expectation) bool {
	answer, err := c.query(netfilter.NFSubsysCTNetlinkExp, msgExpGet, e.Dst.Addr(), []netfilter.Attribute{
		tupleAttribute(ctaExpectTuple, Tuple{netip.AddrPortFrom(e.Src, 0), e.Dst}),
	})
	if err != nil || len(answer) == 0 {
		return false
	}
	var there conntrack.Event
	if err := there.Unmarshal(answer[0]); err != nil || there.Expect == nil {
		return false
	}
	return fromCt(there.Expect.TupleMaster) == e.Master
}

// Unexpect removes an expectation. That there is none is not an error.
func (c *Client) Unexpect(e Expectation) error {
	_, err := c.query(netfilter.NFSubsysCTNetlinkExp, msgExpDelete, e.Dst.Addr(), []netfilter.Attribute{
		tupleAttribute(ctaExpectTuple, Tuple{netip.AddrPortFrom(e.Src, 0), e.Dst}),
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove expectation %s to %s: %w", e.Src, e.Dst, err)
	}
	return nil
}

// Adjust makes the kernel adjust the sequence numbers of direction dir of m, and the
// acknowledgements of the other one, from the next packet that it lets go. The kernel
// answers success and does nothing where it cannot, so the entry is read back until it has been
// seen to: ErrNoSeqAdj says that nothing is adjusted. On any other error nothing is, either; an
// error of reading back is none, as the kernel did answer success.
func (c *Client) Adjust(m *Master, dir Direction, a SeqAdj) error {
	_, err := c.query(netfilter.NFSubsysCTNetlink, msgCtNew, m.Client().Addr(), []netfilter.Attribute{
		tupleAttribute(ctaTupleOrig, m.Tuples[Original]),
		{Type: ctaSeqAdjOrig + uint16(dir), Nested: true, Children: []netfilter.Attribute{
			{Type: ctaSeqAdjPosition, Data: netfilter.Uint32Bytes(a.Position)},
			{Type: ctaSeqAdjBefore, Data: netfilter.Uint32Bytes(uint32(a.Before))},
			{Type: ctaSeqAdjAfter, Data: netfilter.Uint32Bytes(uint32(a.After))},
		}},
	})
	if errors.Is(err, unix.ENOENT) {
		return ErrNoEntry
	}
	if err != nil {
		return fmt.Errorf("set sequence adjustment of %s to %s: %w", m.Client(), m.Server(), err)
	}
	if !m.Adjustable {
		now, _, err := c.Lookup(m.Tuples[Original])
		if err == nil && (!now.Adjustable || now.SeqAdj[dir] != a) {
			return ErrNoSeqAdj
		}
		m.Adjustable = err == nil
	}
	m.SeqAdj[dir] = a
	return nil
}

// SetLabel sets a bit of the connection's label (ct label in nftables), 0 to 127. The kernel
// refuses with ENOSPC where no rule sets labels: it has room for them only then.
func (c *Client) SetLabel(m *Master, bit int) error {
	label := make([]byte, 16)
	binary.NativeEndian.PutUint32(label[bit/32*4:], 1<<(bit%32))
	_, err := c.query(netfilter.NFSubsysCTNetlink, msgCtNew, m.Client().Addr(), []netfilter.Attribute{
		tupleAttribute(ctaTupleOrig, m.Tuples[Original]),
		{Type: ctaLabels, Data: label},
		{Type: ctaLabelsMask, Data: label},
	})
	if errors.Is(err, unix.ENOENT) {
		return ErrNoEntry
	}
	if err != nil {
		return fmt.Errorf("set label %d of %s to %s: %w", bit, m.Client(), m.Server(), err)
	}
	return nil
}

func (c *Client) query(subsys netfilter.SubsystemID, msg uint8, family netip.Addr, attrs []netfilter.Attribute) ([]netlink.Message, error) {
	pf := netfilter.ProtoIPv4
	if family.Is6() {
		pf = netfilter.ProtoIPv6
	}
	req, err := netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: subsys,
		MessageType: netfilter.MessageType(msg),
		Family:      pf,
		Flags:       netlink.Request | netlink.Acknowledge,
	}, attrs)
	if err != nil {
		return nil, err
	}
	return c.nf.Query(req)
}

// masks returns the addresses of a's family whose bits are all set and all clear.
func masks(a netip.Addr) (ones, zeros netip.Addr) {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{0xff, 0xff, 0xff, 0xff}), netip.IPv4Unspecified()
	}
	var b [16]byte
	for i := range b {
		b[i] = 0xff
	}
	return netip.AddrFrom16(b), netip.IPv6Unspecified()
}

func tupleAttribute(typ uint16, t Tuple) netfilter.Attribute {
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if t.Src.Addr().Is6() {
		src, dst = ctaIPv6Src, ctaIPv6Dst
	}
	return netfilter.Attribute{Type: typ, Nested: true, Children: []netfilter.Attribute{
		{Type: ctaTupleIP, Nested: true, Children: []netfilter.Attribute{
			{Type: src, Data: t.Src.Addr().AsSlice()},
			{Type: dst, Data: t.Dst.Addr().AsSlice()},
		}},
		{Type: ctaTupleProto, Nested: true, Children: []netfilter.Attribute{
			{Type: ctaProtoNum, Data: []byte{unix.IPPROTO_TCP}},
			{Type: ctaProtoSrcPort, Data: netfilter.Uint16Bytes(t.Src.Port())},
			{Type: ctaProtoDstPort, Data: netfilter.Uint16Bytes(t.Dst.Port())},
		}},
	}}
}

func ctTuple(t Tuple) conntrack.Tuple {
	return conntrack.Tuple{
		IP: conntrack.IPTuple{SourceAddress: t.Src.Addr(), DestinationAddress: t.Dst.Addr()},
		Proto: conntrack.ProtoTuple{
			Protocol:        unix.IPPROTO_TCP,
			SourcePort:      t.Src.Port(),
			DestinationPort: t.Dst.Port(),
		},
	}
}

func fromCt(t conntrack.Tuple) Tuple {
	return Tuple{
		Src: netip.AddrPortFrom(t.IP.SourceAddress, t.Proto.SourcePort),
		Dst: netip.AddrPortFrom(t.IP.DestinationAddress, t.Proto.DestinationPort),
	}
}

func fromSeqAdj(a conntrack.SequenceAdjust) SeqAdj {
	return SeqAdj{Position: a.Position, Before: int32(a.OffsetBefore), After: int32(a.OffsetAfter)}
}

func (c *Client) Refresh(m *Master) error {
	n, _, err := c.Lookup(m.Tuples[Original])
	if err == nil {
		m.Helper, m.SeqAdj, m.Labels = n.Helper, n.SeqAdj, n.Labels
	}
	return err
}

func (c *Client) Announce(m *Master, e Expectation, u Update) error {
	e.NAT, _ = false, e.NAT
	return nil
}

func (c *Client) Update(m *Master, u Update) error { return nil }
