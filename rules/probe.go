package rules

import (
	"errors"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ProbeStatement returns the statement that Apply would use. Its transaction changes nothing, except that the kernel
// may load modules. Errors are one sentence, and wrap ENOENT if the kernel has neither statement.
func ProbeStatement(opts ...nftables.ConnOption) (Statement, error) {
	probe := func(s Statement) error {
		return dryRun(table.Family, opts, func(conn *nftables.Conn, t *nftables.Table) {
			chain := conn.AddChain(&nftables.Chain{Table: t, Name: control.Name})
			conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{s.Expr(0)}})
		})
	}
	statement := Native
	err := probe(statement)
	if errors.Is(err, unix.ENOENT) {
		statement = Compat
		loadTarget(opts)
		err = probe(statement)
	}
	if errors.Is(err, unix.ENOENT) {
		err = missingStatement(err)
	}
	if err != nil {
		return "", explain("trying the queue statement", err)
	}
	return statement, nil
}
