package nftread

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
	FamilyInet = unix.NFPROTO_INET
	FamilyIPv4 = unix.NFPROTO_IPV4
	FamilyIPv6 = unix.NFPROTO_IPV6
)

// tableName is how nft(8) names a table.
type Table struct {
	Family byte
	Name   string
	Legacy bool // of iptables-legacy, which nftables does not see
}

// String returns "inet filter", say.
func (t Table) String() string {
	families := map[byte]string{FamilyInet: "inet", FamilyIPv4: "ip", FamilyIPv6: "ip6"}
	name := families[t.Family] + " " + t.Name
	if t.Legacy {
		name += " (iptables-legacy)"
	}
	return name
}

// chain is a chain, with what its hook line says if it has one.
type Chain struct {
	Table    Table
	Name     string
	Base     bool
	Type     string // filter, nat or route
	Hook     uint32
	Priority int32
	Drops    bool // by policy
}

// rule is a rule and what it consists of.
type Rule struct {
	Table  Table
	Chain  string
	Handle uint64
	Exprs  []Expression
	// known is what the rule does, once it was read.
	actions []Action
	// spec is how iptables writes the rule, "" if unknown.
	Spec string
}

type Expression struct {
	Name  string
	Attrs nfnetlink.Attributes
}

// ctHelper is an object that rules attach to connections.
type Helper struct {
	Type string // of the kernel's helper, such as "ftp"
	TCP  bool
	// template says that conntrack attaches it later, so that it may be set before conntrack.
	Template bool
}

type Object struct {
	Table Table
	Name  string
}

// element is one of a set or map. In a set of intervals, end is where one has ended.
type Element struct {
	Key     []byte
	End     bool
	Verdict *Verdict
	Object  string
}

// verdict is what becomes of a packet.
type Verdict struct {
	Code  int32
	Chain string // to jump or go to
}

// Verdicts, besides NF_DROP and NF_ACCEPT.
const (
	VerdictDrop   = 0
	VerdictAccept = 1
	VerdictJump   = -3
	VerdictGoto   = -4
	VerdictReturn = -5
)

// ruleset is what is in nftables. The order of rules is that in their chains.
type Ruleset struct {
	Chains   []Chain
	Rules    []Rule
	helpers  map[Object]Helper
	elements func(of Table, set string) ([]Element, error)

	byChain map[Object][]*Rule // of chainRules
}

// read reads the ruleset of the calling thread's network namespace.
func Read() (*Ruleset, error) {
	l, err := Dial()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	rs := &Ruleset{helpers: make(map[Object]Helper), elements: readElements}
	for _, part := range []struct {
		message netlink.HeaderType
		add     func(family byte, a nfnetlink.Attributes)
	}{
		{unix.NFT_MSG_GETTABLE, func(byte, nfnetlink.Attributes) {}},
		{unix.NFT_MSG_GETCHAIN, func(family byte, a nfnetlink.Attributes) { rs.Chains = append(rs.Chains, ParseChain(family, a)) }},
		{unix.NFT_MSG_GETRULE, func(family byte, a nfnetlink.Attributes) { rs.Rules = append(rs.Rules, ParseRule(family, a)) }},
		{unix.NFT_MSG_GETOBJ, rs.addObject},
	} {
		if err := l.Each(part.message, part.add); err != nil {
			return nil, err
		}
	}
	return rs, nil
}

// lister lists what is in nftables.
type Lister struct {
	*netlink.Conn
	dormant map[Table]bool
	Skipped []string // tables whose families filter no TCP, as "bridge filter"
}

func Dial() (*Lister, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	return &Lister{Conn: nl, dormant: make(map[Table]bool)}, err
}

// each calls add for every object that a message lists. Those of dormant tables and of families that filter no
// TCP are left out, so tables (NFT_MSG_GETTABLE) have to be listed first.
func (l *Lister) Each(message netlink.HeaderType, add func(family byte, a nfnetlink.Attributes)) error {
	answers, err := l.dump(message, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return err
	}
	for _, o := range answers {
		table := Table{Family: o.family, Name: o.Text(unix.NFTA_TABLE_NAME)} // first in every message
		if message == unix.NFT_MSG_GETTABLE {
			const dormant = 1 // NFT_TABLE_F_DORMANT
			l.dormant[table] = o.Uint32(unix.NFTA_TABLE_FLAGS)&dormant != 0
		}
		switch table.Family {
		case FamilyInet, FamilyIPv4, FamilyIPv6:
			if !l.dormant[table] {
				add(o.family, o.Attributes)
			}
		case unix.NFPROTO_ARP:
		default:
			if message == unix.NFT_MSG_GETTABLE {
				l.Skipped = append(l.Skipped, familyName(table.Family)+" "+table.Name)
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
	nfnetlink.Attributes
}

func (l *Lister) dump(message netlink.HeaderType, family byte, query nfnetlink.Buffer) (all []listed, err error) {
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

func ParseChain(family byte, a nfnetlink.Attributes) Chain {
	c := Chain{
		Table: Table{Family: family, Name: a.Text(unix.NFTA_CHAIN_TABLE)},
		Name:  a.Text(unix.NFTA_CHAIN_NAME),
		Type:  a.Text(unix.NFTA_CHAIN_TYPE),
	}
	if h := a.Nested(unix.NFTA_CHAIN_HOOK); h != nil {
		c.Base, c.Hook, c.Priority = true, h.Uint32(unix.NFTA_HOOK_HOOKNUM), int32(h.Uint32(unix.NFTA_HOOK_PRIORITY))
		c.Drops = a.Find(unix.NFTA_CHAIN_POLICY) != nil && a.Uint32(unix.NFTA_CHAIN_POLICY) == VerdictDrop
	}
	return c
}

func ParseRule(family byte, a nfnetlink.Attributes) Rule {
	r := Rule{Table: Table{Family: family, Name: a.Text(unix.NFTA_RULE_TABLE)}, Chain: a.Text(unix.NFTA_RULE_CHAIN)}
	if handle := a.Find(unix.NFTA_RULE_HANDLE); len(handle) == 8 {
		r.Handle = binary.BigEndian.Uint64(handle)
	}
	for _, e := range a.Nested(unix.NFTA_RULE_EXPRESSIONS).All() {
		r.Exprs = append(r.Exprs, ParseExpression(e))
	}
	return r
}

func ParseExpression(a nfnetlink.Attributes) Expression {
	return Expression{a.Text(unix.NFTA_EXPR_NAME), a.Nested(unix.NFTA_EXPR_DATA)}
}

func (rs *Ruleset) addObject(family byte, a nfnetlink.Attributes) {
	if a.Uint32(unix.NFTA_OBJ_TYPE) != unix.NFT_OBJECT_CT_HELPER {
		return
	}
	data := a.Nested(unix.NFTA_OBJ_DATA)
	proto := data.Find(unix.NFTA_CT_HELPER_L4PROTO)
	rs.helpers[Object{Table{Family: family, Name: a.Text(unix.NFTA_OBJ_TABLE)}, a.Text(unix.NFTA_OBJ_NAME)}] = Helper{
		Type: data.Text(unix.NFTA_CT_HELPER_NAME),
		TCP:  bytes.Equal(proto, []byte{unix.IPPROTO_TCP}),
	}
}

// readElements reads a set, which only a few rules make necessary: some are large.
func readElements(of Table, set string) ([]Element, error) {
	l, err := Dial()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	listed, err := l.Elements(of, set)
	if err != nil {
		return nil, err
	}
	var elements []Element
	for _, a := range listed {
		elements = append(elements, ParseElement(a))
	}
	return elements, nil
}

// portsInSet returns the members of a set of ports; ok is false if it can't be read or is no such set.
func (rs *Ruleset) PortsInSet(of Table, set string) (ports []rules.PortRange, ok bool) {
	elements, err := rs.setElements(of, set)
	if err != nil || !allHave(elements, 2) {
		return nil, false
	}
	return portRanges(elements), true
}

func (rs *Ruleset) setElements(of Table, set string) ([]Element, error) {
	if rs.elements == nil {
		return nil, nil
	}
	return rs.elements(of, set)
}

// elements returns those of a set.
func (l *Lister) Elements(of Table, set string) (elements []nfnetlink.Attributes, err error) {
	var query nfnetlink.Buffer
	query.Text(unix.NFTA_SET_ELEM_LIST_TABLE, of.Name)
	query.Text(unix.NFTA_SET_ELEM_LIST_SET, set)
	answers, err := l.dump(unix.NFT_MSG_GETSETELEM, of.Family, query)
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

func ParseElement(a nfnetlink.Attributes) Element {
	const intervalEnd = 1 // NFT_SET_ELEM_INTERVAL_END
	return Element{
		Key:     a.Nested(unix.NFTA_SET_ELEM_KEY).Find(unix.NFTA_DATA_VALUE),
		End:     a.Uint32(unix.NFTA_SET_ELEM_FLAGS)&intervalEnd != 0,
		Verdict: newVerdict(a.Nested(unix.NFTA_SET_ELEM_DATA)),
		Object:  a.Text(unix.NFTA_SET_ELEM_OBJREF),
	}
}

// compareElements orders elements as the kernel takes intervals: where one ends and the next one begins, the end is first.
func CompareElements(a, b Element) int {
	if c := bytes.Compare(a.Key, b.Key); c != 0 || a.End == b.End {
		return c
	}
	if a.End {
		return -1
	}
	return 1
}

// newVerdict reads nested data that may be a verdict.
func newVerdict(data nfnetlink.Attributes) *Verdict {
	a := data.Nested(unix.NFTA_DATA_VERDICT)
	if a == nil {
		return nil
	}
	return &Verdict{Code: int32(a.Uint32(unix.NFTA_VERDICT_CODE)), Chain: a.Text(unix.NFTA_VERDICT_CHAIN)}
}
