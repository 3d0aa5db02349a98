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

// Apply replaces the ruleset in one transaction: the kernel always has the old one or the new one, and keeps the old one
// if Apply fails. It returns the statement that the kernel has, "" for CTHelper. It needs CAP_NET_ADMIN; the kernel
// loads missing modules itself.
//
// Errors are one sentence. Those of the kernel wrap its errno: EPERM; EOPNOTSUPP if nf_tables is missing or older than
// 5.16; ENOENT if the helper or both statements are missing.
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
	// Deleting a missing table would fail the transaction.
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

// Remove removes the ruleset. A missing ruleset is no error.
func Remove(opts ...nftables.ConnOption) error {
	conn, err := nftables.New(opts...)
	if err == nil {
		conn.AddTable(table)
		conn.DelTable(table)
		err = conn.Flush()
	}
	return explain("removing the queue rules", err)
}

// dryRun adds objects to a table that the same transaction deletes: to get the kernel's error, and to load modules.
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

// loadTarget makes the kernel load xt_NFQUEUE, which it does for an ip table, not for an inet one:
// xt_request_find_target has no name for such a module. If it fails, install does too.
func loadTarget(opts []nftables.ConnOption) {
	_ = dryRun(nftables.TableFamilyIPv4, opts, func(conn *nftables.Conn, t *nftables.Table) {
		chain := conn.AddChain(&nftables.Chain{Table: t, Name: control.Name})
		conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{Compat.Expr(0)}})
	})
}

// missing returns the error for an ENOENT of the whole transaction.
func missing(c Config, enoent error, opts []nftables.ConnOption) error {
	if err := probeHelper(c.helper(), opts); errors.Is(err, unix.ENOENT) {
		return missingHelper(c.helper(), err)
	}
	return missingStatement(enoent)
}

// probeHelper fails with ENOENT if the kernel has no such conntrack helper.
func probeHelper(name string, opts []nftables.ConnOption) error {
	return dryRun(table.Family, opts, func(conn *nftables.Conn, t *nftables.Table) {
		conn.AddObj(carrier(t, name))
	})
}

func missingHelper(name string, enoent error) error {
	if slices.Contains(Carriers, name) {
		return fmt.Errorf("the kernel lacks the conntrack helper %q: provide the module nf_conntrack_%s (%w)", name, name, enoent)
	}
	return fmt.Errorf("the kernel has no conntrack helper %q: register it before you install the rules (%w)", name, enoent)
}

func missingStatement(enoent error) error {
	return fmt.Errorf("the kernel has no queue statement: provide the module nft_queue, or nft_compat and xt_NFQUEUE (%w)", enoent)
}

// explain turns an error of the kernel into one sentence: what failed, why, and what to do.
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
