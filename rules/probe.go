package rules

import (
	"errors"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ProbeStatement asks the kernel which statement Apply would use, in a transaction that
// leaves nothing behind but the modules that the kernel has loaded for it. Errors are one
// sentence, and wrap ENOENT if the kernel has neither.
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
