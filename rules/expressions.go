package rules

import (
	"bytes"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
)

// dumpRules returns the expressions of each rule of a chain, as the kernel's attributes. Package nftables cannot read
// "ct original" back, as it expects four bytes where nft_ct has one, and omits expressions that it does not know.
func dumpRules(nl *netlink.Conn, c *nftables.Chain) ([][]nfnetlink.Attributes, error) {
	var query nfnetlink.Buffer
	query.Text(unix.NFTA_RULE_TABLE, c.Table.Name)
	query.Text(unix.NFTA_RULE_CHAIN, c.Name)
	replies, err := nl.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
			Flags: netlink.Request | netlink.Dump,
		},
		Data: nfnetlink.Data(byte(c.Table.Family), query),
	})
	if err != nil {
		return nil, err
	}
	var rules [][]nfnetlink.Attributes
	for _, m := range replies {
		attrs, err := nfnetlink.Body(m.Data)
		if err != nil {
			return nil, err
		}
		var exprs []nfnetlink.Attributes
		for _, e := range attrs.Nested(unix.NFTA_RULE_EXPRESSIONS).All() {
			exprs = append(exprs, e)
		}
		rules = append(rules, exprs)
	}
	return rules, nil
}

// runs reports whether a dumped rule consists of exprs.
func runs(rule []nfnetlink.Attributes, exprs []expr.Any) bool {
	return slices.EqualFunc(rule, exprs, func(got nfnetlink.Attributes, want expr.Any) bool {
		data, err := expr.Marshal(byte(table.Family), want)
		return err == nil && sameAttributes(got, data)
	})
}

// sameAttributes compares the attributes that the kernel dumps with those that were sent, in any order. Trailing zeros
// are ignored, and an attribute of zeros equals a missing one: numbers are sent wider than they are dumped, strings
// without the NUL.
func sameAttributes(got, sent nfnetlink.Attributes) bool {
	for _, attrs := range []nfnetlink.Attributes{got, sent} {
		for typ := range attrs.All() {
			x, y := got.Find(typ), sent.Find(typ)
			// Only the sender marks what is nested.
			if sent.IsNested(typ) {
				if !sameAttributes(x, y) {
					return false
				}
			} else if !bytes.Equal(bytes.TrimRight(x, "\x00"), bytes.TrimRight(y, "\x00")) {
				return false
			}
		}
	}
	return true
}
