package rules

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Apply installs the ruleset in one transaction, in place of an earlier one: at
// any time the kernel has either the old or the new one, and it keeps the old one
// if Apply fails. It reports which statement the kernel offered, "" for CTHelper. It needs
// CAP_NET_ADMIN; kernel modules that are missing the kernel loads by itself.
//
// Errors are one sentence. Those of the kernel wrap its errno: EPERM; EOPNOTSUPP
// if nf_tables is missing or older than 5.16; ENOENT if the helper or both
// statements are.
func Apply(c Config, opts ...nftables.ConnOption) (Statement, error) {
	if err := c.Validate(); err != nil {
		return "", err
	}
	c.Ports = merge(c.Ports)

	statement := Native
	if c.Ruleset == CTHelper {
		statement = ""
	}
	err := install(c, statement, opts)
	if statement != "" && errors.Is(err, unix.ENOENT) {
		statement = Compat
		loadTarget(opts)
		err = install(c, statement, opts)
	}
	if errors.Is(err, unix.ENOENT) {
		err = missing(c, err, opts)
	}
	if err != nil {
		return "", explain("installing the queue rules", err)
	}
	return statement, nil
}

// install replaces the table with one for c, whose ports are merged.
func install(c Config, s Statement, opts []nftables.ConnOption) error {
	conn, err := nftables.New(opts...)
	if err != nil {
		return err
	}
	// Deleting a table that is not there would fail the transaction.
	conn.AddTable(table)
	conn.DelTable(table)

	conn.AddTable(table)
	if err := conn.AddSet(ports, elements(c.Ports)); err != nil {
		return err
	}
	if c.Ruleset != Monitor {
		conn.AddObj(carrier(table, c.helper()))
	}
	for _, chain := range chains(c) {
		conn.AddChain(chain)
	}
	for _, r := range rules(c, s) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: r.chain, Exprs: r.exprs})
	}
	return conn.Flush()
}

// Remove removes the ruleset. It is no error if it is not there.
func Remove(opts ...nftables.ConnOption) error {
	conn, err := nftables.New(opts...)
	if err == nil {
		conn.AddTable(table)
		conn.DelTable(table)
		err = conn.Flush()
	}
	return explain("removing the queue rules", err)
}

// try puts something in a table that never comes to be, since the transaction ends
// with deleting it: to see what the kernel says, and to have it load modules.
func dryRun(family nftables.TableFamily, opts []nftables.ConnOption, add func(*nftables.Conn, *nftables.Table)) error {
	conn, err := nftables.New(opts...)
	if err != nil {
		return err
	}
	t := conn.AddTable(&nftables.Table{Name: table.Name + "_try", Family: family})
	add(conn, t)
	conn.DelTable(t)
	return conn.Flush()
}

// loadTarget has the kernel load xt_NFQUEUE. It does so for an ip table, and not
// for an inet one: xt_request_find_target has no name for such a module. Whether
// it worked is for install to find out.
func loadTarget(opts []nftables.ConnOption) {
	_ = dryRun(nftables.TableFamilyIPv4, opts, func(conn *nftables.Conn, t *nftables.Table) {
		chain := conn.AddChain(&nftables.Chain{Table: t, Name: control.Name})
		conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{Compat.Expr(0)}})
	})
}

// missing says what an ENOENT of the whole transaction was about.
func missing(c Config, enoent error, opts []nftables.ConnOption) error {
	if err := probeHelper(c.helper(), opts); errors.Is(err, unix.ENOENT) {
		return missingHelper(c.helper(), err)
	}
	return missingStatement(enoent)
}

// tryHelper fails with ENOENT where the kernel has no such conntrack helper.
func probeHelper(name string, opts []nftables.ConnOption) error {
	return dryRun(table.Family, opts, func(conn *nftables.Conn, t *nftables.Table) {
		conn.AddObj(carrier(t, name))
	})
}

func missingHelper(name string, enoent error) error {
	if slices.Contains(Carriers, name) {
		return fmt.Errorf("the kernel lacks the conntrack helper %q: provide the module nf_conntrack_%s (%w)", name, name, enoent)
	}
	return fmt.Errorf("the kernel has no conntrack helper %q: register it before the rules are installed (%w)", name, enoent)
}

func missingStatement(enoent error) error {
	return fmt.Errorf("the kernel has no queue statement: provide the module nft_queue, or nft_compat and xt_NFQUEUE (%w)", enoent)
}

// explain puts an error of the kernel in one sentence: what failed, why, and what
// to do about it.
func explain(attempt string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s in table inet %s: CAP_NET_ADMIN is needed in this network namespace (%w)", attempt, table.Name, err)
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%s in table inet %s: the kernel lacks nf_tables for inet, or is older than 5.16 (%w)", attempt, table.Name, err)
	}
	return fmt.Errorf("%s in table inet %s: %w", attempt, table.Name, err)
}
