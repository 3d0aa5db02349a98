package rules

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The library can't read a rule back that has "ct original": it expects four
// bytes where nft_ct has one. It also leaves out expressions that it does not
// know. So the rules are compared as they are on the wire.

// dumpRules returns the expressions of each rule of a chain, as the kernel's
// attributes.
func dumpRules(nl *netlink.Conn, c *nftables.Chain) ([][]netlink.Attribute, error) {
	query, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(c.Table.Name + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(c.Name + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	const nfgenmsg = 4 // family, version, resource id
	header := []byte{byte(c.Table.Family), unix.NFNETLINK_V0, 0, 0}
	replies, err := nl.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
			Flags: netlink.Request | netlink.Dump,
		},
		Data: append(header, query...),
	})
	if err != nil {
		return nil, err
	}
	var rules [][]netlink.Attribute
	for _, m := range replies {
		if len(m.Data) < nfgenmsg {
			return nil, fmt.Errorf("an answer of %d bytes", len(m.Data))
		}
		attrs, err := netlink.UnmarshalAttributes(m.Data[nfgenmsg:])
		if err != nil {
			return nil, err
		}
		exprs, err := netlink.UnmarshalAttributes(find(attrs, unix.NFTA_RULE_EXPRESSIONS).Data)
		if err != nil {
			return nil, err
		}
		rules = append(rules, exprs)
	}
	return rules, nil
}

// runs tells whether a rule, as the kernel has it, consists of exprs.
func runs(rule []netlink.Attribute, exprs []expr.Any) bool {
	return slices.EqualFunc(rule, exprs, func(got netlink.Attribute, want expr.Any) bool {
		data, err := expr.Marshal(byte(table.Family), want)
		return err == nil && sameAttributes(got.Data, data)
	})
}

// sameAttributes compares the attributes that the kernel dumps with those that it
// was sent, in any order. One that is all zero is the same as none, and a length
// does not matter where the rest is zero: numbers are sent wider than they are
// dumped, strings without the NUL.
func sameAttributes(got, sent []byte) bool {
	g, err := netlink.UnmarshalAttributes(got)
	if err != nil {
		return false
	}
	s, err := netlink.UnmarshalAttributes(sent)
	if err != nil {
		return false
	}
	for _, a := range slices.Concat(g, s) {
		// Only the sender marks what is nested.
		x, y := find(g, a.Type), find(s, a.Type)
		if y.Type&netlink.Nested != 0 {
			if !sameAttributes(x.Data, y.Data) {
				return false
			}
		} else if !bytes.Equal(bytes.TrimRight(x.Data, "\x00"), bytes.TrimRight(y.Data, "\x00")) {
			return false
		}
	}
	return true
}

// find returns the attribute of a type, flags aside, or the zero one.
func find(attrs []netlink.Attribute, typ uint16) netlink.Attribute {
	const flags = netlink.Nested | netlink.NetByteOrder
	for _, a := range attrs {
		if a.Type&^flags == typ&^flags {
			return a
		}
	}
	return netlink.Attribute{}
}
