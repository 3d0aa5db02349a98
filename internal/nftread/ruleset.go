// Package nftread reads rulesets of nftables and iptables-legacy, and what they do to a packet.
//
// [Read] returns the ruleset of a network namespace, [Ruleset.AddSaved] adds what iptables-save prints. Then
// [Ruleset.Actions] interprets one rule, [Ruleset.Walk] visits all rules that a base chain leads to, and
// [Ruleset.Follow] follows one packet through a base chain. [Dial] and the Parse functions return the
// kernel's messages, for a program that copies a ruleset.
//
// Rules are read as the kernel's attributes (include/uapi/linux/netfilter/nf_tables.h): package nftables
// fails on some expressions that it knows, and omits those that it does not.
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

// Families of tables that filter TCP.
const (
	FamilyInet = unix.NFPROTO_INET
	FamilyIPv4 = unix.NFPROTO_IPV4
	FamilyIPv6 = unix.NFPROTO_IPV6
)

// Table identifies a table.
type Table struct {
	Family byte
	Name   string
	Legacy bool // of iptables-legacy, which nftables does not list
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

// Chain is a chain. The fields after Base are set for base chains only.
type Chain struct {
	Table    Table
	Name     string
	Base     bool
	Type     string // filter, nat or route
	Hook     uint32
	Priority int32
	Drops    bool // by policy
}

// Rule is a rule of a chain.
type Rule struct {
	Table  Table
	Chain  string
	Handle uint64
	Exprs  []Expression
	// Spec is the rule in the syntax of iptables, "" if unknown.
	Spec string

	actions []Action // of Ruleset.Actions, nil before its first call
}

// Expression is one expression of a rule, such as "payload" or "cmp".
type Expression struct {
	Name  string
	Attrs nfnetlink.Attributes
}

// Helper is a conntrack helper that a rule assigns.
type Helper struct {
	Type     string // such as "ftp"
	TCP      bool
	Template bool // set before conntrack, which assigns it to the connection (target CT)
}

// Object identifies a chain, a set or an object of a table.
type Object struct {
	Table Table
	Name  string
}

// Element is an element of a set or map.
type Element struct {
	Key     []byte
	End     bool     // the first key after an interval
	Verdict *Verdict // of a verdict map
	Object  string   // name, in a map of objects
}

// Verdict is a verdict of a rule.
type Verdict struct {
	Code  int32
	Chain string // target of VerdictJump and VerdictGoto
}

// Codes of verdicts (enum nft_verdicts, NF_DROP and NF_ACCEPT).
const (
	VerdictDrop   = 0
	VerdictAccept = 1
	VerdictJump   = -3
	VerdictGoto   = -4
	VerdictReturn = -5
)

// Ruleset lists chains and rules, those of a chain in their order. The zero value is empty.
type Ruleset struct {
	Chains []Chain
	Rules  []Rule

	helpers  map[Object]Helper
	elements func(of Table, set string) ([]Element, error) // nil for no elements
	byChain  map[Object][]*Rule                            // of RulesOf, nil before its first call
}

// Read reads the nftables ruleset of the calling thread's network namespace: tables of families that filter
// TCP, without dormant ones. Elements of sets are read later, when a rule needs them: some sets are large.
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

// Lister lists the objects of nftables.
type Lister struct {
	*netlink.Conn
	dormant map[Table]bool
	Skipped []string // tables of families that filter no TCP, such as "bridge filter"
}

// Dial opens a Lister in the network namespace of the calling thread.
func Dial() (*Lister, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	return &Lister{Conn: nl, dormant: make(map[Table]bool)}, err
}

// Each calls add for every object that a message (NFT_MSG_GET*) lists, without those of dormant tables and of
// families that filter no TCP. The first call has to list tables (NFT_MSG_GETTABLE).
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

// listed is one message of a listing.
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

// ParseChain returns the chain of an NFT_MSG_NEWCHAIN.
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

// ParseRule returns the rule of an NFT_MSG_NEWRULE.
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

// ParseExpression returns one of NFTA_RULE_EXPRESSIONS.
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

// PortsInSet returns the ports of a set; ok is false if the set cannot be read or its keys are not ports.
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

// Elements lists the elements of a set (NFTA_SET_ELEM_LIST_ELEMENTS).
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

// ParseElement returns one of NFTA_SET_ELEM_LIST_ELEMENTS.
func ParseElement(a nfnetlink.Attributes) Element {
	const intervalEnd = 1 // NFT_SET_ELEM_INTERVAL_END
	return Element{
		Key:     a.Nested(unix.NFTA_SET_ELEM_KEY).Find(unix.NFTA_DATA_VALUE),
		End:     a.Uint32(unix.NFTA_SET_ELEM_FLAGS)&intervalEnd != 0,
		Verdict: newVerdict(a.Nested(unix.NFTA_SET_ELEM_DATA)),
		Object:  a.Text(unix.NFTA_SET_ELEM_OBJREF),
	}
}

// CompareElements orders elements as the kernel takes intervals: by key, the end of an interval before the
// start of the next.
func CompareElements(a, b Element) int {
	if c := bytes.Compare(a.Key, b.Key); c != 0 || a.End == b.End {
		return c
	}
	if a.End {
		return -1
	}
	return 1
}

// newVerdict returns the verdict in nested data, nil if there is none.
func newVerdict(data nfnetlink.Attributes) *Verdict {
	a := data.Nested(unix.NFTA_DATA_VERDICT)
	if a == nil {
		return nil
	}
	return &Verdict{Code: int32(a.Uint32(unix.NFTA_VERDICT_CODE)), Chain: a.Text(unix.NFTA_VERDICT_CHAIN)}
}
