package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
)

// The kernel dumps tables nearly in the form in which it takes them (net/netfilter/nf_tables_api.c). The differences:
// use counters and handles are omitted, sets get an id, and queues get the bypass flag.

// nftMessage is one request of a batch.
type nftMessage struct {
	typ    uint16
	family byte
	attrs  nfnetlink.Attributes
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
	nftaListElem    = 1
)

const (
	chainBinding = 4 // NFT_CHAIN_BINDING
	hookIngress  = 5 // NF_INET_INGRESS
	queueBypass  = 1 // NFT_QUEUE_FLAG_BYPASS, NFQ_FLAG_BYPASS
)

// readNFT reads the tables of families that filter TCP.
func (s *snapshot) readNFT() error {
	l, err := nftread.Dial()
	if err != nil {
		return err
	}
	defer l.Close()
	r := &nftReader{snapshot: s, ingress: make(map[nftread.Object]bool)}
	s.handles, s.bases = make(map[nftread.Object][]uint64), make(map[nftread.Object]bool)
	for _, part := range []struct {
		message netlink.HeaderType
		add     func(family byte, a nfnetlink.Attributes)
	}{
		{unix.NFT_MSG_GETTABLE, r.addTable},
		{unix.NFT_MSG_GETOBJ, r.addObject},
		{unix.NFT_MSG_GETCHAIN, r.addChain},
		{unix.NFT_MSG_GETSET, r.addSet},
		{unix.NFT_MSG_GETRULE, r.addRule},
	} {
		if part.message == unix.NFT_MSG_GETRULE {
			if err := r.addElements(l); err != nil {
				return err
			}
		}
		if err := l.Each(part.message, part.add); err != nil {
			return err
		}
	}
	for _, t := range l.Skipped {
		s.omitted = append(s.omitted, "table "+t)
	}
	return nil
}

type nftReader struct {
	*snapshot
	ingress map[nftread.Object]bool // chains that are omitted
	sets    []nftread.Object
}

func (r *nftReader) add(typ uint16, family byte, a nfnetlink.Buffer, format string, args ...any) {
	r.nft = append(r.nft, nftMessage{typ, family, nfnetlink.Attributes(a), fmt.Sprintf(format, args...)})
}

func (r *nftReader) addTable(family byte, a nfnetlink.Attributes) {
	name := nftread.Table{Family: family, Name: a.Text(unix.NFTA_TABLE_NAME)}
	// The flags persist and owner concern the program that created the table.
	r.add(unix.NFT_MSG_NEWTABLE, family, a.Without(unix.NFTA_TABLE_FLAGS, unix.NFTA_TABLE_USE, nftaTableHandle, nftaTableOwner), "table %s", name)
}

func (r *nftReader) addObject(family byte, a nfnetlink.Attributes) {
	r.add(unix.NFT_MSG_NEWOBJ, family, a.Without(unix.NFTA_OBJ_USE, nftaObjHandle),
		"table %s, object %s", nftread.Table{Family: family, Name: a.Text(unix.NFTA_OBJ_TABLE)}, a.Text(unix.NFTA_OBJ_NAME))
}

func (r *nftReader) addChain(family byte, a nfnetlink.Attributes) {
	c := nftread.ParseChain(family, a)
	if c.Base && c.Table.Family == nftread.FamilyInet && c.Hook == hookIngress {
		r.ingress[nftread.Object{Table: c.Table, Name: c.Name}] = true
		r.omitted = append(r.omitted, fmt.Sprintf("table %s, chain %s", c.Table, c.Name))
		return
	}
	if c.Base {
		r.bases[nftread.Object{Table: c.Table, Name: c.Name}] = true
	}
	// A chain that is bound to a rule becomes an ordinary one.
	flags := a.Uint32(nftaChainFlags) &^ chainBinding
	b := a.Without(unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_USE, unix.NFTA_CHAIN_COUNTERS, nftaChainID, nftaChainFlags)
	if flags != 0 {
		b.Uint32(nftaChainFlags, flags)
	}
	r.add(unix.NFT_MSG_NEWCHAIN, family, b, "table %s, chain %s", c.Table, c.Name)
}

func (r *nftReader) addSet(family byte, a nfnetlink.Attributes) {
	name := nftread.Object{Table: nftread.Table{Family: family, Name: a.Text(unix.NFTA_SET_TABLE)}, Name: a.Text(unix.NFTA_SET_NAME)}
	r.sets = append(r.sets, name)
	b := a.Without(nftaSetHandle, nftaSetType, nftaSetCount, unix.NFTA_SET_ID)
	b.Uint32(unix.NFTA_SET_ID, uint32(len(r.sets)))
	r.add(unix.NFT_MSG_NEWSET, family, b, "table %s, set %s", name.Table, name.Name)
}

// addElements adds the elements of all sets, sorted as the kernel takes intervals.
func (r *nftReader) addElements(l *nftread.Lister) error {
	for _, set := range r.sets {
		elements, err := l.Elements(set.Table, set.Name)
		if err != nil {
			return err
		}
		slices.SortStableFunc(elements, func(x, y nfnetlink.Attributes) int {
			return nftread.CompareElements(nftread.ParseElement(x), nftread.ParseElement(y))
		})
		for chunk := range slices.Chunk(elements, 200) { // the length of an attribute has 16 bits
			var b nfnetlink.Buffer
			b.Text(unix.NFTA_SET_ELEM_LIST_TABLE, set.Table.Name)
			b.Text(unix.NFTA_SET_ELEM_LIST_SET, set.Name)
			list := b.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			for _, x := range chunk {
				b.Bytes(unix.NLA_F_NESTED|nftaListElem, x...)
			}
			b.End(list)
			r.add(unix.NFT_MSG_NEWSETELEM, set.Table.Family, b, "table %s, elements of set %s", set.Table, set.Name)
		}
	}
	return nil
}

func (r *nftReader) addRule(family byte, a nfnetlink.Attributes) {
	rule := nftread.ParseRule(family, a)
	in := nftread.Object{Table: rule.Table, Name: rule.Chain}
	if r.ingress[in] {
		return
	}
	r.handles[in] = append(r.handles[in], rule.Handle)
	b := a.Without(unix.NFTA_RULE_HANDLE, unix.NFTA_RULE_POSITION, unix.NFTA_RULE_EXPRESSIONS)
	exprs := b.Nest(unix.NFTA_RULE_EXPRESSIONS)
	protocol := addExpressions(&b, rule.Exprs)
	b.End(exprs)
	if protocol != 0 { // matches and targets of iptables need it, and it is not dumped
		compat := b.Nest(unix.NFTA_RULE_COMPAT)
		b.Uint32(unix.NFTA_RULE_COMPAT_PROTO, protocol)
		b.Uint32(unix.NFTA_RULE_COMPAT_FLAGS, 0)
		b.End(compat)
	}
	r.add(unix.NFT_MSG_NEWRULE, family, b, "table %s, chain %s, rule with handle %d", rule.Table, rule.Chain, rule.Handle)
}

// addExpressions adds the expressions of a rule as the kernel takes them. It returns the rule's protocol, 0 if it
// has no match or target of iptables.
func addExpressions(b *nfnetlink.Buffer, exprs []nftread.Expression) (protocol uint32) {
	var load nftread.Expression
	var compat bool
	for _, e := range exprs {
		data := nfnetlink.Buffer(e.Attrs)
		switch e.Name {
		case "flow_offload": // changes no verdict, and needs devices
			continue
		case "queue": // no program reads it here
			flags := binary.BigEndian.Uint16(append(e.Attrs.Find(unix.NFTA_QUEUE_FLAGS), 0, 0)) | queueBypass
			data = e.Attrs.Without(unix.NFTA_QUEUE_FLAGS)
			data.Uint16(unix.NFTA_QUEUE_FLAGS, flags)
		case "target":
			compat = true
			if info := e.Attrs.Find(unix.NFTA_TARGET_INFO); e.Attrs.Text(unix.NFTA_TARGET_NAME) == "NFQUEUE" && len(info) >= 6 &&
				e.Attrs.Uint32(unix.NFTA_TARGET_REV) == 3 {
				binary.NativeEndian.PutUint16(info[4:], binary.NativeEndian.Uint16(info[4:])|queueBypass)
			}
		case "match":
			compat = true
		case "osf": // flags 0 are dumped and not taken
			const flags = 3 // NFTA_OSF_FLAGS
			if e.Attrs.Uint32(flags) == 0 {
				data = e.Attrs.Without(flags)
			}
		case "exthdr": // some attributes of rules that change an option are dumped and not taken
			const sreg, dreg, offset, length, flags = 7, 1, 3, 4, 5 // NFTA_EXTHDR_*
			switch {
			case e.Attrs.Find(sreg) != nil:
				data = e.Attrs.Without(flags)
			case e.Attrs.Find(dreg) == nil:
				data = e.Attrs.Without(flags, offset, length)
			}
		case "cmp":
			data := e.Attrs.Nested(unix.NFTA_CMP_DATA).Find(unix.NFTA_DATA_VALUE)
			if loadsProtocol(load) && e.Attrs.Uint32(unix.NFTA_CMP_OP) == unix.NFT_CMP_EQ && len(data) == 1 {
				protocol = uint32(data[0])
			}
		}
		load = e
		element := b.Nest(nftaListElem)
		b.Text(unix.NFTA_EXPR_NAME, e.Name)
		b.Bytes(unix.NLA_F_NESTED|unix.NFTA_EXPR_DATA, data...)
		b.End(element)
	}
	if !compat {
		return 0
	}
	return protocol
}

// loadsProtocol reports whether an expression loads the transport protocol.
func loadsProtocol(e nftread.Expression) bool {
	switch e.Name {
	case "meta":
		return e.Attrs.Uint32(unix.NFTA_META_KEY) == unix.NFT_META_L4PROTO
	case "payload": // of the IPv4 header
		return e.Attrs.Uint32(unix.NFTA_PAYLOAD_BASE) == unix.NFT_PAYLOAD_NETWORK_HEADER && e.Attrs.Uint32(unix.NFTA_PAYLOAD_OFFSET) == 9 &&
			e.Attrs.Uint32(unix.NFTA_PAYLOAD_LEN) == 1
	}
	return false
}

// rebuildNFT creates the tables in the calling thread's namespace, in one batch.
func (s *snapshot) rebuildNFT() error {
	if len(s.nft) == 0 {
		return nil
	}
	var batch nfnetlink.Buffer
	batch.EndMessage(batch.Message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, 0, unix.NFNL_SUBSYS_NFTABLES))
	for i, m := range s.nft {
		flags := uint16(unix.NLM_F_CREATE)
		if m.typ == unix.NFT_MSG_NEWRULE {
			flags |= unix.NLM_F_APPEND
		}
		if i == len(s.nft)-1 {
			flags |= unix.NLM_F_ACK
		}
		start := batch.Message(unix.NFNL_SUBSYS_NFTABLES<<8|m.typ, flags, uint32(i+1), m.family, 0)
		batch = append(batch, m.attrs...)
		batch.EndMessage(start)
	}
	batch.EndMessage(batch.Message(unix.NFNL_MSG_BATCH_END, 0, uint32(len(s.nft)+1), 0, unix.NFNL_SUBSYS_NFTABLES))
	return s.sendBatch(batch)
}

// sendBatch sends a batch whose last request is acknowledged. The kernel's first answer is the error of the first
// request that it refuses.
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
	answer, _, err := nfnetlink.Next(buffer[:n])
	if err != nil || answer.Type != unix.NLMSG_ERROR {
		return errors.Join(errors.New("the kernel's answer cannot be read"), err)
	}
	if answer.Errno == 0 {
		return nil
	}
	if i := int(answer.Seq); 0 < i && i <= len(s.nft) {
		return fmt.Errorf("%s: %w", s.nft[i-1].what, answer.Errno)
	}
	return answer.Errno
}
