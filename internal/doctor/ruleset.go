package doctor

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The rules of the host's own tables are read as the kernel's attributes: package nftables
// fails on some expressions that it knows, and leaves out those that it does not
// (include/uapi/linux/netfilter/nf_tables.h).

// Families of tables that filter TCP.
const (
	familyInet = unix.NFPROTO_INET
	familyIPv4 = unix.NFPROTO_IPV4
	familyIPv6 = unix.NFPROTO_IPV6
)

// tableName is how nft(8) names a table.
type tableName struct {
	family byte
	name   string
	legacy bool // of iptables-legacy, which nftables does not see
}

// String returns "inet filter", say.
func (t tableName) String() string {
	families := map[byte]string{familyInet: "inet", familyIPv4: "ip", familyIPv6: "ip6"}
	name := families[t.family] + " " + t.name
	if t.legacy {
		name += " (iptables-legacy)"
	}
	return name
}

// chain is a chain, with what its hook line says if it has one.
type chain struct {
	table    tableName
	name     string
	base     bool
	kind     string // filter, nat or route
	hook     uint32
	priority int32
	drops    bool // by policy
}

// rule is a rule and what it consists of.
type rule struct {
	table  tableName
	chain  string
	handle uint64
	exprs  []expression
	// known is what the rule does, once it was read.
	known []action
	// spec is how iptables writes the rule, "" if unknown.
	spec string
}

type expression struct {
	name  string
	attrs attributes
}

// ctHelper is an object that rules attach to connections.
type ctHelper struct {
	kind string // of the kernel's helper, such as "ftp"
	tcp  bool
	// template says that conntrack attaches it later, so that it may be set before conntrack.
	template bool
}

type objectName struct {
	table tableName
	name  string
}

// element is one of a set or map. In a set of intervals, end is where one has ended.
type element struct {
	key     []byte
	end     bool
	verdict *verdict
	object  string
}

// verdict is what becomes of a packet.
type verdict struct {
	code  int32
	chain string // to jump or go to
}

// Verdicts, besides NF_DROP and NF_ACCEPT.
const (
	verdictDrop   = 0
	verdictAccept = 1
	verdictJump   = -3
	verdictGoto   = -4
	verdictReturn = -5
)

// ruleset is what is in nftables. The order of rules is that in their chains.
type ruleset struct {
	chains   []chain
	rules    []rule
	helpers  map[objectName]ctHelper
	elements func(of tableName, set string) ([]element, error)

	byChain map[objectName][]*rule // of chainRules
}

// ruleset implements system.
func (host) ruleset() (*ruleset, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	rs := &ruleset{helpers: make(map[objectName]ctHelper), elements: readElements}
	asleep := make(map[tableName]bool)
	for _, part := range []struct {
		message netlink.HeaderType
		add     func(family byte, a attributes)
	}{
		{unix.NFT_MSG_GETTABLE, func(family byte, a attributes) {
			const dormant = 1 // NFT_TABLE_F_DORMANT
			asleep[tableName{family: family, name: a.text(unix.NFTA_TABLE_NAME)}] = a.number(unix.NFTA_TABLE_FLAGS)&dormant != 0
		}},
		{unix.NFT_MSG_GETCHAIN, func(family byte, a attributes) { rs.chains = append(rs.chains, newChain(family, a)) }},
		{unix.NFT_MSG_GETRULE, func(family byte, a attributes) { rs.rules = append(rs.rules, newRule(family, a)) }},
		{unix.NFT_MSG_GETOBJ, rs.addObject},
	} {
		answers, err := dump(nl, part.message, unix.NFPROTO_UNSPEC, nil)
		if err != nil {
			return nil, err
		}
		for _, m := range answers {
			family := m.Data[0]
			if family == familyInet || family == familyIPv4 || family == familyIPv6 {
				part.add(family, parse(m.Data[nfgenmsg:]))
			}
		}
	}
	rs.chains = slices.DeleteFunc(rs.chains, func(c chain) bool { return asleep[c.table] })
	return rs, nil
}

const nfgenmsg = 4 // struct nfgenmsg: family, version, resource id

func dump(nl *netlink.Conn, message netlink.HeaderType, family byte, query []byte) ([]netlink.Message, error) {
	answers, err := nl.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | message, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, query...),
	})
	if err != nil {
		return nil, err
	}
	for _, m := range answers {
		if len(m.Data) < nfgenmsg {
			return nil, fmt.Errorf("an answer of %d bytes", len(m.Data))
		}
	}
	return answers, nil
}

func newChain(family byte, a attributes) chain {
	c := chain{
		table: tableName{family: family, name: a.text(unix.NFTA_CHAIN_TABLE)},
		name:  a.text(unix.NFTA_CHAIN_NAME),
		kind:  a.text(unix.NFTA_CHAIN_TYPE),
	}
	if hook := a.find(unix.NFTA_CHAIN_HOOK); hook != nil {
		h := parse(hook)
		c.base, c.hook, c.priority = true, h.number(unix.NFTA_HOOK_HOOKNUM), int32(h.number(unix.NFTA_HOOK_PRIORITY))
		c.drops = a.find(unix.NFTA_CHAIN_POLICY) != nil && a.number(unix.NFTA_CHAIN_POLICY) == verdictDrop
	}
	return c
}

func newRule(family byte, a attributes) rule {
	r := rule{table: tableName{family: family, name: a.text(unix.NFTA_RULE_TABLE)}, chain: a.text(unix.NFTA_RULE_CHAIN)}
	if handle := a.find(unix.NFTA_RULE_HANDLE); len(handle) == 8 {
		r.handle = binary.BigEndian.Uint64(handle)
	}
	for _, e := range parse(a.find(unix.NFTA_RULE_EXPRESSIONS)) {
		parts := parse(e.Data)
		r.exprs = append(r.exprs, expression{parts.text(unix.NFTA_EXPR_NAME), parse(parts.find(unix.NFTA_EXPR_DATA))})
	}
	return r
}

func (rs *ruleset) addObject(family byte, a attributes) {
	if a.number(unix.NFTA_OBJ_TYPE) != unix.NFT_OBJECT_CT_HELPER {
		return
	}
	data := parse(a.find(unix.NFTA_OBJ_DATA))
	proto := data.find(unix.NFTA_CT_HELPER_L4PROTO)
	rs.helpers[objectName{tableName{family: family, name: a.text(unix.NFTA_OBJ_TABLE)}, a.text(unix.NFTA_OBJ_NAME)}] = ctHelper{
		kind: data.text(unix.NFTA_CT_HELPER_NAME),
		tcp:  bytes.Equal(proto, []byte{unix.IPPROTO_TCP}),
	}
}

// readElements reads a set, which only a few rules make necessary: some are large.
func readElements(of tableName, set string) ([]element, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
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
	var elements []element
	for _, m := range answers {
		for _, e := range parse(parse(m.Data[nfgenmsg:]).find(unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			const intervalEnd = 1 // NFT_SET_ELEM_INTERVAL_END
			a := parse(e.Data)
			elements = append(elements, element{
				key:     parse(a.find(unix.NFTA_SET_ELEM_KEY)).find(unix.NFTA_DATA_VALUE),
				end:     a.number(unix.NFTA_SET_ELEM_FLAGS)&intervalEnd != 0,
				verdict: newVerdict(a.find(unix.NFTA_SET_ELEM_DATA)),
				object:  a.text(unix.NFTA_SET_ELEM_OBJREF),
			})
		}
	}
	return elements, nil
}

// newVerdict reads nested data that may be a verdict.
func newVerdict(data []byte) *verdict {
	inner := parse(data).find(unix.NFTA_DATA_VERDICT)
	if inner == nil {
		return nil
	}
	a := parse(inner)
	return &verdict{code: int32(a.number(unix.NFTA_VERDICT_CODE)), chain: a.text(unix.NFTA_VERDICT_CHAIN)}
}

// attributes are those of a message, or nested in another one. What is missing or malformed
// is empty.
type attributes []netlink.Attribute

func parse(data []byte) attributes {
	a, err := netlink.UnmarshalAttributes(data)
	if err != nil {
		return nil
	}
	return a
}

func (a attributes) find(typ uint16) []byte {
	const flags = netlink.Nested | netlink.NetByteOrder
	for _, x := range a {
		if x.Type&^flags == typ {
			return x.Data
		}
	}
	return nil
}

func (a attributes) number(typ uint16) uint32 {
	if data := a.find(typ); len(data) == 4 {
		return binary.BigEndian.Uint32(data)
	}
	return 0
}

func (a attributes) text(typ uint16) string {
	return string(bytes.TrimRight(a.find(typ), "\x00"))
}
