package rules

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrMissing means that there is no table inet nfq_ftphelper.
var ErrMissing = errors.New("the queue rules are not installed: there is no table inet nfq_ftphelper")

// Check compares the installed ruleset with that of Apply(c). Either Statement is accepted, and so are additional ports in
// the set and additional sets and chains in the table. It returns nil, ErrMissing, or in one sentence the difference, or
// why the ruleset could not be read.
func Check(c Config, opts ...nftables.ConnOption) error {
	if err := c.Validate(); err != nil {
		return err
	}
	conn, err := nftables.New(opts...)
	if err != nil {
		return unread(err)
	}
	for _, check := range []func(*nftables.Conn, Config) error{
		checkTable, checkPorts, checkHelper, checkChains, checkRules,
	} {
		if err := check(conn, c); err != nil {
			return err
		}
	}
	return nil
}

func unread(err error) error { return explain("reading the queue rules", err) }

func differs(format string, args ...any) error {
	return fmt.Errorf("table inet %s: %s", table.Name, fmt.Sprintf(format, args...))
}

func checkTable(conn *nftables.Conn, _ Config) error {
	tables, err := conn.ListTablesOfFamily(table.Family)
	if err != nil {
		return unread(err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name })
	if i < 0 {
		return ErrMissing
	}
	if tables[i].Flags != 0 {
		return differs("it has flags, such as dormant, and should have none")
	}
	return nil
}

func checkPorts(conn *nftables.Conn, c Config) error {
	_, elems, err := portSet(conn)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(elems, catchAll) {
		return nil
	}
	got := merge(intervals(elems))
	for _, want := range merge(c.Ports) {
		if !slices.ContainsFunc(got, func(r PortRange) bool { return r.First <= want.First && want.Last <= r.Last }) {
			return differs("set %s lacks %v", ports.Name, want)
		}
	}
	return nil
}

// catchAll reports whether an element is "*", for every port: it has no key.
func catchAll(e nftables.SetElement) bool { return len(e.Key) == 0 }

// intervals is the inverse of elements, for elements in any order. The result is sorted and not merged; a catch-all
// element is ignored.
func intervals(elems []nftables.SetElement) []PortRange {
	elems = slices.DeleteFunc(elems, catchAll)
	slices.SortFunc(elems, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 || a.IntervalEnd == b.IntervalEnd {
			return c
		}
		if a.IntervalEnd { // one range ends where the next one begins
			return -1
		}
		return 1
	})
	var found []PortRange
	open := false
	for _, e := range elems {
		port := binary.BigEndian.Uint16(e.Key)
		switch {
		case !e.IntervalEnd:
			found = append(found, PortRange{First: port, Last: 65535})
		case open:
			found[len(found)-1].Last = port - 1
		}
		open = !e.IntervalEnd
	}
	return found
}

func checkHelper(conn *nftables.Conn, c Config) error {
	if c.Ruleset == Monitor {
		return nil
	}
	want := carrier(table, c.helper())
	obj, err := conn.GetObject(want)
	if err != nil {
		return differs("ct helper %s cannot be read (%v)", want.Name, err)
	}
	fits := []expr.Any{want.Obj}
	if c.helper() == pptp {
		// The kernel lists the family of the helper, not the one that was sent.
		fits = append(fits, &expr.CtHelper{Name: pptp, L3Proto: unix.NFPROTO_IPV4, L4Proto: unix.IPPROTO_TCP})
	}
	got, ok := obj.(*nftables.NamedObj)
	if !ok || !slices.ContainsFunc(fits, func(o expr.Any) bool { return reflect.DeepEqual(got.Obj, o) }) {
		return differs("ct helper %s is not \"type \\\"%s\\\" protocol tcp; l3proto inet\"", want.Name, c.helper())
	}
	return nil
}

func checkChains(conn *nftables.Conn, c Config) error {
	got, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return unread(err)
	}
	for _, want := range chains(c) {
		i := slices.IndexFunc(got, func(c *nftables.Chain) bool {
			return c.Table.Name == table.Name && c.Name == want.Name
		})
		switch {
		case i < 0:
			return differs("chain %s is missing", want.Name)
		case reflect.DeepEqual(got[i], want):
		case want.Hooknum == nil:
			return differs("chain %s is hooked, and should only be jumped to", want.Name)
		default:
			return differs("chain %s is not \"type filter hook %s priority %d; policy accept;\"",
				want.Name, hookName[*want.Hooknum], *want.Priority)
		}
	}
	return nil
}

var hookName = map[nftables.ChainHook]string{
	*nftables.ChainHookPrerouting:  "prerouting",
	*nftables.ChainHookInput:       "input",
	*nftables.ChainHookOutput:      "output",
	*nftables.ChainHookPostrouting: "postrouting",
}

func checkRules(conn *nftables.Conn, c Config) error {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: conn.NetNS})
	if err != nil {
		return unread(err)
	}
	defer nl.Close()

	native, compat := rules(c, Native), rules(c, Compat)
	for _, chain := range chains(c) {
		got, err := dumpRules(nl, chain)
		if err != nil {
			return unread(err)
		}
		n := 0
		for i, want := range native {
			if want.chain.Name != chain.Name {
				continue
			}
			if n++; n > len(got) || !runs(got[n-1], want.exprs) && !runs(got[n-1], compat[i].exprs) {
				return differs("chain %s: rule %d is not %q", chain.Name, n, want.text)
			}
		}
		if len(got) > n {
			return differs("chain %s has %d rules, and should have %d", chain.Name, len(got), n)
		}
	}
	return nil
}
