package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The kernel lists its tables in nearly the form in which it takes them. What is different is
// here: counters of uses and handles are left out, sets get an id, and no packet waits for a program.
//
// It mirrors net/netfilter/nf_tables_api.c.

// nftMessage is one request of a batch.
type nftMessage struct {
	typ    netlink.HeaderType
	family byte
	attrs  attributes
	what   string // for errors
}

// Attributes that package unix does not have.
const (
	nftaTableHandle = 4
	nftaTableOwner  = 7
	nftaChainFlags  = 10
	nftaChainID     = 11
	nftaSetHandle   = 16
	nftaSetType     = 19
	nftaSetCount    = 20
	nftaObjHandle   = 6
)

const (
	tableDormant = 1 // NFT_TABLE_F_DORMANT
	chainBinding = 4 // NFT_CHAIN_BINDING
	hookIngress  = 5 // NF_INET_INGRESS
	queueBypass  = 1 // NFT_QUEUE_FLAG_BYPASS, NFQ_FLAG_BYPASS
)

// readNFT reads the tables that see forwarded packets and those of this host.
func (s *snapshot) readNFT() error {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer nl.Close()
	r := &nftReader{snapshot: s, nl: nl, asleep: make(map[tableName]bool), ingress: make(map[objectName]bool)}
	s.handles, s.bases = make(map[objectName][]uint64), make(map[objectName]bool)
	for _, part := range []struct {
		list netlink.HeaderType
		add  func(family byte, a attributes) error
	}{
		{unix.NFT_MSG_GETTABLE, r.addTable},
		{unix.NFT_MSG_GETOBJ, r.addObject},
		{unix.NFT_MSG_GETCHAIN, r.addChain},
		{unix.NFT_MSG_GETSET, r.addSet},
		{unix.NFT_MSG_GETRULE, r.addRule},
	} {
		answers, err := dump(nl, part.list, unix.NFPROTO_UNSPEC, nil)
		if err != nil {
			return err
		}
		for _, m := range answers {
			family := m.Data[0]
			if family != familyInet && family != familyIPv4 && family != familyIPv6 {
				if part.list == unix.NFT_MSG_GETTABLE && family != unix.NFPROTO_ARP {
					s.left = append(s.left, fmt.Sprintf("table %s %s", familyName(family), parse(m.Data[nfgenmsg:]).text(unix.NFTA_TABLE_NAME)))
				}
				continue
			}
			a := parse(m.Data[nfgenmsg:])
			if r.asleep[tableName{family: family, name: a.text(1)}] { // each message has its table's name first
				continue
			}
			if err := part.add(family, a); err != nil {
				return err
			}
		}
		if part.list == unix.NFT_MSG_GETSET {
			if err := r.addElements(); err != nil {
				return err
			}
		}
	}
	return nil
}

func familyName(family byte) string {
	switch family {
	case unix.NFPROTO_BRIDGE:
		return "bridge"
	case unix.NFPROTO_NETDEV:
		return "netdev"
	}
	return fmt.Sprintf("family %d", family)
}

type nftReader struct {
	*snapshot
	nl      *netlink.Conn
	asleep  map[tableName]bool
	ingress map[objectName]bool // chains that are left out
	sets    []objectName
}

func (r *nftReader) add(typ netlink.HeaderType, family byte, a attributes, format string, args ...any) {
	r.nft = append(r.nft, nftMessage{typ, family, a, fmt.Sprintf(format, args...)})
}

func (r *nftReader) addTable(family byte, a attributes) error {
	name := tableName{family: family, name: a.text(unix.NFTA_TABLE_NAME)}
	if a.number(unix.NFTA_TABLE_FLAGS)&tableDormant != 0 {
		r.asleep[name] = true
		return nil
	}
	// The flags left, persist and owner, are about the program that made it.
	r.add(unix.NFT_MSG_NEWTABLE, family, a.without(unix.NFTA_TABLE_FLAGS, unix.NFTA_TABLE_USE, nftaTableHandle, nftaTableOwner), "table %s", name)
	return nil
}

func (r *nftReader) addObject(family byte, a attributes) error {
	r.add(unix.NFT_MSG_NEWOBJ, family, a.without(unix.NFTA_OBJ_USE, nftaObjHandle),
		"table %s, object %s", tableName{family: family, name: a.text(unix.NFTA_OBJ_TABLE)}, a.text(unix.NFTA_OBJ_NAME))
	return nil
}

func (r *nftReader) addChain(family byte, a attributes) error {
	c := newChain(family, a)
	if c.base && c.table.family == familyInet && c.hook == hookIngress {
		r.ingress[objectName{c.table, c.name}] = true
		r.left = append(r.left, fmt.Sprintf("table %s, chain %s", c.table, c.name))
		return nil
	}
	if c.base {
		r.bases[objectName{c.table, c.name}] = true
	}
	// A chain within a rule is as good as one with a name.
	flags := a.number(nftaChainFlags) &^ chainBinding
	a = a.without(unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_USE, unix.NFTA_CHAIN_COUNTERS, nftaChainID, nftaChainFlags)
	if flags != 0 {
		a = append(a, netlink.Attribute{Type: nftaChainFlags, Data: binary.BigEndian.AppendUint32(nil, flags)})
	}
	r.add(unix.NFT_MSG_NEWCHAIN, family, a, "table %s, chain %s", c.table, c.name)
	return nil
}

func (r *nftReader) addSet(family byte, a attributes) error {
	name := objectName{tableName{family: family, name: a.text(unix.NFTA_SET_TABLE)}, a.text(unix.NFTA_SET_NAME)}
	r.sets = append(r.sets, name)
	a = append(a.without(nftaSetHandle, nftaSetType, nftaSetCount, unix.NFTA_SET_ID),
		netlink.Attribute{Type: unix.NFTA_SET_ID, Data: binary.BigEndian.AppendUint32(nil, uint32(len(r.sets)))})
	r.add(unix.NFT_MSG_NEWSET, family, a, "table %s, set %s", name.table, name.name)
	return nil
}

// addElements adds those of all sets, each in the order in which the kernel wants intervals.
func (r *nftReader) addElements() error {
	for _, set := range r.sets {
		elements, err := listElements(r.nl, set.table, set.name)
		if err != nil {
			return err
		}
		slices.SortStableFunc(elements, func(x, y netlink.Attribute) int {
			a, aEnd := interval(x)
			b, bEnd := interval(y)
			if c := bytes.Compare(a, b); c != 0 || aEnd == bEnd {
				return c
			}
			if aEnd { // one interval ends where the next one begins
				return -1
			}
			return 1
		})
		for chunk := range slices.Chunk(elements, 200) { // the length of an attribute has 16 bits
			list, err := netlink.MarshalAttributes(chunk)
			if err != nil {
				return err
			}
			r.add(unix.NFT_MSG_NEWSETELEM, set.table.family, attributes{
				{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(set.table.name + "\x00")},
				{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(set.name + "\x00")},
				{Type: netlink.Nested | unix.NFTA_SET_ELEM_LIST_ELEMENTS, Data: list},
			}, "table %s, elements of set %s", set.table, set.name)
		}
	}
	return nil
}

func (r *nftReader) addRule(family byte, a attributes) error {
	rule := newRule(family, a)
	in := objectName{rule.table, rule.chain}
	if r.ingress[in] {
		return nil
	}
	r.handles[in] = append(r.handles[in], rule.handle)
	exprs, protocol, err := rebuildable(parse(a.find(unix.NFTA_RULE_EXPRESSIONS)))
	if err != nil {
		return err
	}
	data, err := netlink.MarshalAttributes(exprs)
	if err != nil {
		return err
	}
	a = a.without(unix.NFTA_RULE_HANDLE, unix.NFTA_RULE_POSITION, unix.NFTA_RULE_EXPRESSIONS)
	a = append(a, netlink.Attribute{Type: netlink.Nested | unix.NFTA_RULE_EXPRESSIONS, Data: data})
	if protocol != 0 { // matches and targets of iptables want to know it, and it is not listed
		e := netlink.NewAttributeEncoder()
		e.ByteOrder = binary.BigEndian
		e.Uint32(unix.NFTA_RULE_COMPAT_PROTO, protocol)
		e.Uint32(unix.NFTA_RULE_COMPAT_FLAGS, 0)
		compat, err := e.Encode()
		if err != nil {
			return err
		}
		a = append(a, netlink.Attribute{Type: netlink.Nested | unix.NFTA_RULE_COMPAT, Data: compat})
	}
	r.add(unix.NFT_MSG_NEWRULE, family, a, "table %s, chain %s, rule with handle %d", rule.table, rule.chain, rule.handle)
	return nil
}

// rebuildable returns the expressions of a rule as they are to be, and its protocol if it has a
// match or target of iptables.
func rebuildable(list attributes) (exprs attributes, protocol uint32, err error) {
	var load expression
	var compat bool
	for _, x := range list {
		parts := parse(x.Data)
		e := expression{parts.text(unix.NFTA_EXPR_NAME), parse(parts.find(unix.NFTA_EXPR_DATA))}
		switch e.name {
		case "flow_offload": // changes no verdict, and needs devices
			continue
		case "queue": // of packets that no program reads here
			flags := binary.BigEndian.Uint16(append(e.attrs.find(unix.NFTA_QUEUE_FLAGS), 0, 0)) | queueBypass
			data := append(e.attrs.without(unix.NFTA_QUEUE_FLAGS), netlink.Attribute{Type: unix.NFTA_QUEUE_FLAGS, Data: binary.BigEndian.AppendUint16(nil, flags)})
			x, err = e.with(data, x.Type)
		case "target":
			compat = true
			if info := e.attrs.find(unix.NFTA_TARGET_INFO); e.attrs.text(unix.NFTA_TARGET_NAME) == "NFQUEUE" && len(info) >= 6 &&
				e.attrs.number(unix.NFTA_TARGET_REV) == 3 {
				binary.NativeEndian.PutUint16(info[4:], binary.NativeEndian.Uint16(info[4:])|queueBypass)
				x, err = e.with(e.attrs, x.Type)
			}
		case "match":
			compat = true
		case "osf": // without flags, the kernel lists them and does not take them
			const flags = 3 // NFTA_OSF_FLAGS
			if e.attrs.number(flags) == 0 {
				x, err = e.with(e.attrs.without(flags), x.Type)
			}
		case "exthdr": // the kernel lists attributes that it does not take of rules that change an option
			const sreg, dreg, offset, length, flags = 7, 1, 3, 4, 5 // NFTA_EXTHDR_*
			data := e.attrs
			switch {
			case data.find(sreg) != nil:
				data = data.without(flags)
			case data.find(dreg) == nil:
				data = data.without(flags, offset, length)
			}
			x, err = e.with(data, x.Type)
		case "cmp":
			data := parse(e.attrs.find(unix.NFTA_CMP_DATA)).find(unix.NFTA_DATA_VALUE)
			if load.protocol() && e.attrs.number(unix.NFTA_CMP_OP) == unix.NFT_CMP_EQ && len(data) == 1 {
				protocol = uint32(data[0])
			}
		}
		if err != nil {
			return nil, 0, err
		}
		load = e
		exprs = append(exprs, x)
	}
	if !compat {
		protocol = 0
	}
	return exprs, protocol, nil
}

// protocol reports whether an expression loads the packet's transport protocol.
func (e expression) protocol() bool {
	switch e.name {
	case "meta":
		return e.attrs.number(unix.NFTA_META_KEY) == unix.NFT_META_L4PROTO
	case "payload": // of the IPv4 header
		return e.attrs.number(unix.NFTA_PAYLOAD_BASE) == unix.NFT_PAYLOAD_NETWORK_HEADER && e.attrs.number(unix.NFTA_PAYLOAD_OFFSET) == 9 &&
			e.attrs.number(unix.NFTA_PAYLOAD_LEN) == 1
	}
	return false
}

// with returns the expression with other data, as an element of a list.
func (e expression) with(data attributes, typ uint16) (netlink.Attribute, error) {
	inner, err := netlink.MarshalAttributes(data)
	if err != nil {
		return netlink.Attribute{}, err
	}
	outer, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: []byte(e.name + "\x00")},
		{Type: netlink.Nested | unix.NFTA_EXPR_DATA, Data: inner},
	})
	return netlink.Attribute{Type: typ, Data: outer}, err
}

// rebuildNFT makes the tables in the calling thread's namespace, in one batch.
func (s *snapshot) rebuildNFT() error {
	if len(s.nft) == 0 {
		return nil
	}
	var batch []byte
	for i, m := range s.nft {
		flags := netlink.Request | netlink.Create
		if m.typ == unix.NFT_MSG_NEWRULE {
			flags |= netlink.Append
		}
		if i == len(s.nft)-1 {
			flags |= netlink.Acknowledge
		}
		attrs, err := netlink.MarshalAttributes(m.attrs)
		if err != nil {
			return err
		}
		if batch, err = appendNFT(batch, unix.NFNL_SUBSYS_NFTABLES<<8|m.typ, flags, uint32(i+1), m.family, 0, attrs); err != nil {
			return err
		}
	}
	first, err := appendNFT(nil, unix.NFNL_MSG_BATCH_BEGIN, netlink.Request, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	if err != nil {
		return err
	}
	last, err := appendNFT(nil, unix.NFNL_MSG_BATCH_END, netlink.Request, uint32(len(s.nft)+1), 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	if err != nil {
		return err
	}
	return s.sendBatch(slices.Concat(first, batch, last))
}

// appendNFT appends a message with struct nfgenmsg.
func appendNFT(b []byte, typ netlink.HeaderType, flags netlink.HeaderFlags, seq uint32, family byte, resource uint16, attrs []byte) ([]byte, error) {
	data := append([]byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}, attrs...)
	m := netlink.Message{Header: netlink.Header{Length: uint32(unix.NLMSG_HDRLEN + len(data)), Type: typ, Flags: flags, Sequence: seq}, Data: data}
	for len(m.Data)%unix.NLMSG_ALIGNTO != 0 {
		m.Data = append(m.Data, 0)
		m.Header.Length++
	}
	out, err := m.MarshalBinary()
	return append(b, out...), err
}

// sendBatch sends a batch whose last request is acknowledged. The first error that the kernel
// reports is that of the first request that it refuses.
func (s *snapshot) sendBatch(batch []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, option := range []struct{ name, value int }{{unix.SO_SNDBUFFORCE, 2*len(batch) + 1<<16}, {unix.SO_RCVBUFFORCE, 1 << 20}} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option.name, option.value); err != nil {
			return err
		}
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buffer := make([]byte, 1<<16)
	n, _, err := unix.Recvfrom(fd, buffer, 0)
	if err != nil {
		return err
	}
	answers, err := syscall.ParseNetlinkMessage(buffer[:n])
	if err != nil || len(answers) == 0 || answers[0].Header.Type != unix.NLMSG_ERROR || len(answers[0].Data) < 4 {
		return errors.Join(errors.New("the kernel's answer cannot be read"), err)
	}
	code := int32(binary.NativeEndian.Uint32(answers[0].Data))
	if code == 0 {
		return nil
	}
	err = unix.Errno(-code)
	if i := int(answers[0].Header.Seq); 0 < i && i <= len(s.nft) {
		err = fmt.Errorf("%s: %w", s.nft[i-1].what, err)
	}
	return err
}

// listElements returns the elements of a set as the kernel lists them.
func listElements(nl *netlink.Conn, of tableName, set string) ([]netlink.Attribute, error) {
	query, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(of.name + "\x00")},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(set + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	answers, err := dump(nl, unix.NFT_MSG_GETSETELEM, of.family, query)
	if err != nil {
		return nil, err
	}
	var all []netlink.Attribute
	for _, m := range answers {
		all = append(all, parse(parse(m.Data[nfgenmsg:]).find(unix.NFTA_SET_ELEM_LIST_ELEMENTS))...)
	}
	return all, nil
}

// interval returns the key of an element, and whether an interval ends there.
func interval(x netlink.Attribute) (key []byte, end bool) {
	const intervalEnd = 1 // NFT_SET_ELEM_INTERVAL_END
	a := parse(x.Data)
	return parse(a.find(unix.NFTA_SET_ELEM_KEY)).find(unix.NFTA_DATA_VALUE), a.number(unix.NFTA_SET_ELEM_FLAGS)&intervalEnd != 0
}
