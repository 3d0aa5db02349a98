package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// replica is a rebuilt snapshot, with the sockets that follow packets through it. It is used on the thread that
// built it.
type replica struct {
	*snapshot
	packets  int // packet socket in the namespace of the other ends
	trace    *netlink.Conn
	route    *netlink.Conn
	ct       *expect.Client
	sockets  []int                       // listening
	handles  map[nftread.Object][]uint64 // of the rules of each chain here, in order
	ports    map[netip.AddrPort]bool     // of sockets
	nextPort uint16
	markers  uint32 // number of markers sent
}

// inReplica rebuilds a snapshot in a new network namespace, applies the rules of c, and calls do there.
func inReplica(s *snapshot, c rules.Config, do func(*replica) error) error {
	return inNewNamespace(func() error {
		// On one processor, packets keep their order.
		undo, err := useOneProcessor()
		if err != nil {
			return err
		}
		defer undo()
		far, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(far)
		for _, silent := range []string{"ipv6/conf/default/disable_ipv6", "ipv6/conf/all/disable_ipv6"} {
			if err := (setting{silent, "1"}).write(); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		r := &replica{snapshot: s, ports: make(map[netip.AddrPort]bool), nextPort: 40000}
		if r.packets, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		defer unix.Close(r.packets)
		farRoute, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
		if err != nil {
			return err
		}
		defer farRoute.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		if err := s.rebuildNetwork(far, farRoute); err != nil {
			return err
		}
		for _, t := range s.legacy {
			if err := t.rebuild(); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
		}
		if err := s.rebuildNFT(); err != nil {
			return err
		}
		if _, err := rules.Apply(c); err != nil {
			return err
		}
		defer r.close()
		if err := r.open(); err != nil {
			return err
		}
		return do(r)
	})
}

// useOneProcessor binds the calling thread to one processor until undo is called.
func useOneProcessor() (undo func(), err error) {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, err
	}
	i := 0
	for !all.IsSet(i) {
		i++
	}
	one.Set(i)
	return func() { _ = unix.SchedSetaffinity(0, &all) }, unix.SchedSetaffinity(0, &one)
}

func (r *replica) open() (err error) {
	if err := addTrace(); err != nil {
		return fmt.Errorf("the rules that trace packets: %w", err)
	}
	here := &snapshot{}
	if err := here.readNFT(); err != nil {
		return err
	}
	r.handles, r.bases = here.handles, here.bases
	if r.ct, err = expect.Dial(); err != nil {
		return err
	}
	if r.route, err = netlink.Dial(unix.NETLINK_ROUTE, nil); err != nil {
		return err
	}
	if r.trace, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
		return err
	}
	if err := r.trace.SetReadBuffer(1 << 20); err != nil {
		return err
	}
	if err := r.trace.JoinGroup(unix.NFNLGRP_NFTRACE); err != nil {
		return err
	}
	// Veths have got their hardware addresses.
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		for j := range r.links {
			if int(r.links[j].index) == i.Index {
				r.links[j].hardware = i.HardwareAddr
			}
		}
	}
	return nil
}

func (r *replica) close() {
	for _, fd := range r.sockets {
		unix.Close(fd)
	}
	if r.ct != nil {
		r.ct.Close()
	}
	for _, c := range []*netlink.Conn{r.route, r.trace} {
		if c != nil {
			c.Close()
		}
	}
}

// The table that traces packets. It drops markers: when the trace of a marker arrives, the kernel has handled all
// packets before it. It drops resets too, which the replica sends where no program listens, and which would end
// the connection in conntrack.
const (
	traceTable     = "nfq_ftphelper_trace"
	markerChain    = "prerouting"
	resetChain     = "output"
	markerProtocol = 253 // for experiments, RFC 3692
)

func addTrace() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: traceTable, Family: nftables.TableFamilyINet})
	first := nftables.ChainPriority(-1 << 31)
	protocol := func(number byte) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
		}
	}
	traced := []expr.Any{
		&expr.Immediate{Register: 1, Data: []byte{1}},
		&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: 1},
	}
	const flags, rst = 13, 4 // of the header of TCP
	reset := []expr.Any{
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{rst}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0}},
	}
	in := conn.AddChain(&nftables.Chain{Table: table, Name: markerChain, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &first})
	out := conn.AddChain(&nftables.Chain{Table: table, Name: resetChain, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: &first})
	for chain, all := range map[*nftables.Chain][][]expr.Any{
		in: {
			slices.Concat(protocol(unix.IPPROTO_TCP), traced),
			slices.Concat(protocol(markerProtocol), traced, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}),
		},
		out: {
			slices.Concat(protocol(unix.IPPROTO_TCP), reset, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}),
			slices.Concat(protocol(unix.IPPROTO_TCP), traced),
		},
	} {
		for _, exprs := range all {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
	}
	return conn.Flush()
}

// place is the rule or policy of the host that dropped a packet.
type place struct {
	base  nftread.Object // the base chain
	chain string         // of the rule: the base chain, or one that it leads to
	// handle identifies a rule of nftables, number one of iptables-legacy, from 1. Both are 0 for the policy of
	// the base chain.
	handle uint64
	number int
}

// dropEvent is the trace of a packet that was dropped.
type dropEvent struct {
	packet uint32
	at     place
}

// collectTrace waits until the kernel has handled all packets that were sent. It returns the trace id and the
// sequence number of the first one, and all drops. Later packets are the replica's own answers.
func (r *replica) collectTrace() (first, seq uint32, drops []dropEvent, err error) {
	const most, wait = 20, 500 * time.Millisecond // a busy kernel may lose a packet or its trace
	send := func() error {
		r.markers++
		return errors.Join(r.send(r.links[0], unix.ETH_P_IP, marker(r.markers)), r.trace.SetReadDeadline(time.Now().Add(wait)))
	}
	if err := send(); err != nil {
		return 0, 0, nil, err
	}
	earliest := r.markers
	bases := make(map[uint32]nftread.Object) // base chain of each packet
	for {
		messages, err := r.trace.Receive()
		if errors.Is(err, os.ErrDeadlineExceeded) && r.markers-earliest < most {
			messages, err = nil, send()
		}
		if err != nil {
			return 0, 0, nil, fmt.Errorf("read the trace of packets: %w", err)
		}
		for _, m := range messages {
			a, err := nfnetlink.Body(m.Data)
			if err != nil || m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_TRACE {
				continue
			}
			at := nftread.Object{Table: nftread.Table{Family: m.Data[0], Name: a.Text(unix.NFTA_TRACE_TABLE)}, Name: a.Text(unix.NFTA_TRACE_CHAIN)}
			dropped := int32(a.Nested(unix.NFTA_TRACE_VERDICT).Uint32(unix.NFTA_VERDICT_CODE)) == nftread.VerdictDrop
			var handle uint64
			switch a.Uint32(unix.NFTA_TRACE_TYPE) {
			case unix.NFT_TRACETYPE_POLICY:
				dropped = a.Find(unix.NFTA_TRACE_POLICY) != nil && a.Uint32(unix.NFTA_TRACE_POLICY) == nftread.VerdictDrop
			case unix.NFT_TRACETYPE_RULE:
				dropped = dropped && a.Find(unix.NFTA_TRACE_VERDICT) != nil
				if h := a.Find(unix.NFTA_TRACE_RULE_HANDLE); len(h) == 8 {
					handle = binary.BigEndian.Uint64(h)
				}
			default:
				dropped = false
			}
			packet, transport := a.Uint32(unix.NFTA_TRACE_ID), a.Find(unix.NFTA_TRACE_TRANSPORT_HEADER)
			switch {
			case at.Table.Name == traceTable && dropped:
				if len(transport) == lenMarker && binary.BigEndian.Uint32(transport) >= earliest {
					return first, seq, drops, nil
				}
				continue // a late one of an earlier call
			case at.Table.Name == traceTable && first == 0 && len(transport) >= 8:
				first, seq = packet, binary.BigEndian.Uint32(transport[4:])
			case r.bases[at]:
				bases[packet] = at
			}
			if dropped {
				drops = append(drops, dropEvent{packet, place{base: bases[packet], chain: at.Name, handle: r.onHost(at, handle)}})
			}
		}
	}
}

// onHost returns the handle that a rule of the replica has on the host.
func (r *replica) onHost(chain nftread.Object, handle uint64) uint64 {
	i := slices.Index(r.handles[chain], handle)
	if onHost := r.snapshot.handles[chain]; 0 <= i && i < len(onHost) {
		return onHost[i]
	}
	return handle
}

// send sends a packet to an interface of the replica.
func (r *replica) send(l link, protocol uint16, packet []byte) error {
	target := make(net.HardwareAddr, 6)
	copy(target, l.hardware)
	frame := slices.Concat(target, net.HardwareAddr{2, 0, 0, 0, 0, 1}, []byte{byte(protocol >> 8), byte(protocol)}, packet)
	return unix.Sendto(r.packets, frame, 0, &unix.SockaddrLinklayer{Ifindex: int(l.index), Protocol: protocol<<8 | protocol>>8})
}

// marker returns an IPv4 packet of [markerProtocol] from 192.0.2.1 to 192.0.2.2 with a number as payload.
func marker(number uint32) []byte {
	header := []byte{0x45, 0, 0, 20 + lenMarker, 0, 0, 0, 0, 64, markerProtocol, 0xf5, 0xe5, 192, 0, 2, 1, 192, 0, 2, 2}
	return binary.BigEndian.AppendUint32(header, number)
}

const lenMarker = 4 // bytes of payload

// segment returns the SYN of a connection, or the SYN-ACK that acknowledges seq.
func segment(src, dst netip.AddrPort, acknowledges bool, seq uint32) (protocol uint16, packet []byte) {
	const lenTCP, flagSYN, flagACK = 20, 0x02, 0x10
	var ip []byte
	if src.Addr().Is4() {
		protocol = unix.ETH_P_IP
		ip = []byte{0x45, 0, 0, 20 + lenTCP, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0}
	} else {
		protocol = unix.ETH_P_IPV6
		ip = []byte{0x60, 0, 0, 0, 0, lenTCP, unix.IPPROTO_TCP, 64}
	}
	tcp := make([]byte, lenTCP)
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	tcp[12], tcp[13], tcp[14], tcp[15] = lenTCP/4<<4, flagSYN, 0xff, 0xff // the window
	if acknowledges {
		tcp[13] |= flagACK
		binary.BigEndian.PutUint32(tcp[8:], seq+1)
	}
	var p mangle.Packet
	if err := p.Decode(slices.Concat(ip, src.Addr().AsSlice(), dst.Addr().AsSlice(), tcp)); err != nil {
		return protocol, nil // addresses of two families
	}
	packet, _ = p.AppendSegment(nil, 1000, nil) // fits
	return protocol, packet
}

// interfaceTo returns the interface of the route to an address; local reports an address of the replica.
func (r *replica) interfaceTo(to netip.Addr) (l link, local bool, err error) {
	header := make([]byte, lenRoute)
	header[0], header[1] = unix.AF_INET, byte(to.BitLen())
	if to.Is6() {
		header[0] = unix.AF_INET6
	}
	var dst nfnetlink.Buffer
	dst.Bytes(unix.RTA_DST, to.AsSlice()...)
	answers, err := r.route.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request}, Data: append(header, dst...),
	})
	if err != nil {
		return link{}, false, err
	}
	for _, m := range answers {
		if len(m.Data) < lenRoute {
			continue
		}
		const typ = 7
		if m.Data[typ] == unix.RTN_LOCAL {
			return link{}, true, nil
		}
		out := nfnetlink.Attributes(m.Data[lenRoute:]).Native(unix.RTA_OIF)
		if i := slices.IndexFunc(r.links, func(l link) bool { return uint32(l.index) == out }); m.Data[typ] == unix.RTN_UNICAST && i >= 0 {
			return r.links[i], false, nil
		}
	}
	return link{}, false, unix.ENETUNREACH
}

// segmentResult is the result of sending a segment.
type segmentResult struct {
	master *expect.Master // connection, nil if the segment was dropped
	at     *place         // that dropped it, nil if unknown
	answer *place         // that dropped the replica's answer
	seq    uint32         // sequence number of the segment
}

// connect sends the SYN of a connection. It has passed if conntrack has confirmed the connection, which it does
// after the last rule.
func (r *replica) connect(src, dst netip.AddrPort) (segmentResult, error) {
	in, local, err := r.interfaceTo(src.Addr())
	if err != nil {
		return segmentResult{}, err
	}
	return r.follow(src, dst, segmentKind{local: local}, func() error {
		if local {
			return r.dial(src, dst)
		}
		protocol, packet := segment(src, dst, false, 0)
		return r.send(in, protocol, packet)
	})
}

// accept sends the SYN-ACK for a SYN with sequence number seq.
func (r *replica) accept(src, dst netip.AddrPort, seq uint32) (segmentResult, error) {
	in, local, err := r.interfaceTo(src.Addr())
	if err != nil || local { // the replica has answered
		return segmentResult{}, err
	}
	return r.follow(src, dst, segmentKind{answers: true}, func() error {
		protocol, packet := segment(src, dst, true, seq)
		return r.send(in, protocol, packet)
	})
}

// segmentKind is whether the replica itself sends a segment, and whether it is a SYN-ACK.
type segmentKind struct{ local, answers bool }

func (r *replica) follow(src, dst netip.AddrPort, kind segmentKind, send func() error) (segmentResult, error) {
	before, err := r.legacyRules()
	if err != nil {
		return segmentResult{}, err
	}
	if err := send(); err != nil {
		return segmentResult{}, err
	}
	first, seq, drops, err := r.collectTrace()
	if err != nil {
		return segmentResult{}, err
	}
	o := segmentResult{seq: seq}
	for _, d := range drops {
		switch at := d.at; {
		case d.packet == first && o.at == nil:
			o.at = &at
		case d.packet != first && o.answer == nil:
			o.answer = &at
		}
	}
	m, _, err := r.ct.Lookup(expect.Tuple{Src: src, Dst: dst})
	if err != nil && !errors.Is(err, expect.ErrNoEntry) {
		return segmentResult{}, err
	}
	if err == nil {
		o.master = m
	}
	if o.at == nil && o.answer == nil {
		// If the segment has passed, the replica's answer was dropped.
		passed := o.master != nil && !kind.answers
		at, err := r.legacyDrop(before, kind.local || passed)
		if err != nil {
			return segmentResult{}, err
		}
		if passed {
			o.answer = at
		} else {
			o.at = at
		}
	}
	return o, nil
}

// legacyRules reads the counters of the tables of iptables-legacy.
func (r *replica) legacyRules() ([][]xtRule, error) {
	var all [][]xtRule
	for i := range r.legacy {
		now := xtable{family: r.legacy[i].family}
		now.info.name = r.legacy[i].info.name
		if err := now.read(); err != nil {
			return nil, err
		}
		all = append(all, now.rules())
	}
	return all, nil
}

// legacyDrop returns the place where iptables-legacy has dropped a packet since before was read: one that the
// replica sent, or one that it received.
func (r *replica) legacyDrop(before [][]xtRule, sent bool) (*place, error) {
	for i := range r.legacy {
		now := xtable{family: r.legacy[i].family}
		now.info.name = r.legacy[i].info.name
		if err := now.read(); err != nil {
			return nil, err
		}
		if at, ok := now.dropped(before[i], sent); ok {
			return &at, nil
		}
	}
	return nil, nil
}

// dial sends the SYN of a connection from the replica itself. The socket is closed at once, so that there is no
// retransmission.
func (r *replica) dial(src, dst netip.AddrPort) error {
	fd, err := boundSocket(src)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// On failure, by a rule or without a route, conntrack has no connection.
	_ = unix.Connect(fd, sockaddr(dst))
	return nil
}

// listen opens a port of the replica.
func (r *replica) listen(at netip.AddrPort) error {
	if r.ports[at] {
		return nil
	}
	fd, err := boundSocket(at)
	if err != nil {
		return err
	}
	r.sockets = append(r.sockets, fd)
	r.ports[at] = true
	return unix.Listen(fd, 16)
}

func boundSocket(at netip.AddrPort) (fd int, err error) {
	family := unix.AF_INET
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, sockaddr(at))
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// port returns a port that no connection has used.
func (r *replica) port() uint16 {
	r.nextPort++
	return r.nextPort
}
