package doctor

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
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

// read reads the ruleset of the calling thread's network namespace.
func read() (*ruleset, error) {
	l, err := dialNFT()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	rs := &ruleset{helpers: make(map[objectName]ctHelper), elements: readElements}
	for _, part := range []struct {
		message netlink.HeaderType
		add     func(family byte, a attributes)
	}{
		{unix.NFT_MSG_GETTABLE, func(byte, attributes) {}},
		{unix.NFT_MSG_GETCHAIN, func(family byte, a attributes) { rs.chains = append(rs.chains, newChain(family, a)) }},
		{unix.NFT_MSG_GETRULE, func(family byte, a attributes) { rs.rules = append(rs.rules, newRule(family, a)) }},
		{unix.NFT_MSG_GETOBJ, rs.addObject},
	} {
		if err := l.each(part.message, part.add); err != nil {
			return nil, err
		}
	}
	return rs, nil
}

// lister lists what is in nftables.
type lister struct {
	*netlink.Conn
	dormant map[tableName]bool
	left    []string // tables whose families filter no TCP, as "bridge filter"
}

func dialNFT() (*lister, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	return &lister{Conn: nl, dormant: make(map[tableName]bool)}, err
}

// each calls add for every object that a message lists. Those of dormant tables and of families that filter no
// TCP are left out, so tables (NFT_MSG_GETTABLE) have to be listed first.
func (l *lister) each(message netlink.HeaderType, add func(family byte, a attributes)) error {
	answers, err := l.dump(message, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return err
	}
	for _, o := range answers {
		table := tableName{family: o.family, name: o.Text(unix.NFTA_TABLE_NAME)} // first in every message
		if message == unix.NFT_MSG_GETTABLE {
			const dormant = 1 // NFT_TABLE_F_DORMANT
			l.dormant[table] = o.Uint32(unix.NFTA_TABLE_FLAGS)&dormant != 0
		}
		switch table.family {
		case familyInet, familyIPv4, familyIPv6:
			if !l.dormant[table] {
				add(o.family, o.attributes)
			}
		case unix.NFPROTO_ARP:
		default:
			if message == unix.NFT_MSG_GETTABLE {
				l.left = append(l.left, familyName(table.family)+" "+table.name)
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

// listed is an object, or a part of a set, as the kernel lists it.
type listed struct {
	family byte
	attributes
}

func (l *lister) dump(message netlink.HeaderType, family byte, query nfnetlink.Buffer) (all []listed, err error) {
	answers, err := l.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | message, Flags: netlink.Request | netlink.Dump},
		Data:   nfnetlink.Data(family, query),
	})
	if err != nil {
		return nil, err
	}
	for _, m := range answers {
		a, err := nfnetlink.Body(m.Data)
		if err != nil {
			return nil, err
		}
		all = append(all, listed{m.Data[0], a})
	}
	return all, nil
}

func newChain(family byte, a attributes) chain {
	c := chain{
		table: tableName{family: family, name: a.Text(unix.NFTA_CHAIN_TABLE)},
		name:  a.Text(unix.NFTA_CHAIN_NAME),
		kind:  a.Text(unix.NFTA_CHAIN_TYPE),
	}
	if h := a.Nested(unix.NFTA_CHAIN_HOOK); h != nil {
		c.base, c.hook, c.priority = true, h.Uint32(unix.NFTA_HOOK_HOOKNUM), int32(h.Uint32(unix.NFTA_HOOK_PRIORITY))
		c.drops = a.Find(unix.NFTA_CHAIN_POLICY) != nil && a.Uint32(unix.NFTA_CHAIN_POLICY) == verdictDrop
	}
	return c
}

func newRule(family byte, a attributes) rule {
	r := rule{table: tableName{family: family, name: a.Text(unix.NFTA_RULE_TABLE)}, chain: a.Text(unix.NFTA_RULE_CHAIN)}
	if handle := a.Find(unix.NFTA_RULE_HANDLE); len(handle) == 8 {
		r.handle = binary.BigEndian.Uint64(handle)
	}
	for _, e := range a.Nested(unix.NFTA_RULE_EXPRESSIONS).All() {
		r.exprs = append(r.exprs, newExpression(e))
	}
	return r
}

func newExpression(a attributes) expression {
	return expression{a.Text(unix.NFTA_EXPR_NAME), a.Nested(unix.NFTA_EXPR_DATA)}
}

func (rs *ruleset) addObject(family byte, a attributes) {
	if a.Uint32(unix.NFTA_OBJ_TYPE) != unix.NFT_OBJECT_CT_HELPER {
		return
	}
	data := a.Nested(unix.NFTA_OBJ_DATA)
	proto := data.Find(unix.NFTA_CT_HELPER_L4PROTO)
	rs.helpers[objectName{tableName{family: family, name: a.Text(unix.NFTA_OBJ_TABLE)}, a.Text(unix.NFTA_OBJ_NAME)}] = ctHelper{
		kind: data.Text(unix.NFTA_CT_HELPER_NAME),
		tcp:  bytes.Equal(proto, []byte{unix.IPPROTO_TCP}),
	}
}

// readElements reads a set, which only a few rules make necessary: some are large.
func readElements(of tableName, set string) ([]element, error) {
	l, err := dialNFT()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	listed, err := l.elements(of, set)
	if err != nil {
		return nil, err
	}
	var elements []element
	for _, a := range listed {
		elements = append(elements, newElement(a))
	}
	return elements, nil
}

// portsInSet returns the members of a set of ports; ok is false if it can't be read or is no such set.
func (rs *ruleset) portsInSet(of tableName, set string) (ports []rules.PortRange, ok bool) {
	elements, err := rs.setElements(of, set)
	if err != nil || !allHave(elements, 2) {
		return nil, false
	}
	return portRanges(elements), true
}

func (rs *ruleset) setElements(of tableName, set string) ([]element, error) {
	if rs.elements == nil {
		return nil, nil
	}
	return rs.elements(of, set)
}

// elements returns those of a set.
func (l *lister) elements(of tableName, set string) (elements []attributes, err error) {
	var query nfnetlink.Buffer
	query.Text(unix.NFTA_SET_ELEM_LIST_TABLE, of.name)
	query.Text(unix.NFTA_SET_ELEM_LIST_SET, set)
	answers, err := l.dump(unix.NFT_MSG_GETSETELEM, of.family, query)
	if err != nil {
		return nil, err
	}
	for _, part := range answers {
		for _, a := range part.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS).All() {
			elements = append(elements, a)
		}
	}
	return elements, nil
}

func newElement(a attributes) element {
	const intervalEnd = 1 // NFT_SET_ELEM_INTERVAL_END
	return element{
		key:     a.Nested(unix.NFTA_SET_ELEM_KEY).Find(unix.NFTA_DATA_VALUE),
		end:     a.Uint32(unix.NFTA_SET_ELEM_FLAGS)&intervalEnd != 0,
		verdict: newVerdict(a.Nested(unix.NFTA_SET_ELEM_DATA)),
		object:  a.Text(unix.NFTA_SET_ELEM_OBJREF),
	}
}

// compareElements orders elements as the kernel takes intervals: where one ends and the next one begins, the end is first.
func compareElements(a, b element) int {
	if c := bytes.Compare(a.key, b.key); c != 0 || a.end == b.end {
		return c
	}
	if a.end {
		return -1
	}
	return 1
}

// newVerdict reads nested data that may be a verdict.
func newVerdict(data attributes) *verdict {
	a := data.Nested(unix.NFTA_DATA_VERDICT)
	if a == nil {
		return nil
	}
	return &verdict{code: int32(a.Uint32(unix.NFTA_VERDICT_CODE)), chain: a.Text(unix.NFTA_VERDICT_CHAIN)}
}

// attributes are those of a message, or nested in another one. What is missing or malformed
// is empty.
type attributes = nfnetlink.Attributes
