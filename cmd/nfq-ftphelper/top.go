package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/top"
)

func newTop() *cobra.Command {
	var from *source
	var s *settings
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the FTP control connections, the busiest first",
		Long: `top shows the open control connections on the whole terminal, the busiest first, with the daemon's
load. q quits; the arrows select a connection and Enter shows its details and events, past ones
included. s sorts by the next column, / filters as "flows --filter" does, c shows closing
connections, p pauses, ? shows all keys.

/s is the number of data connections per second, over the last 10 s; LAST SEEN is the time since
the last event. "status --json" and "flows --json" have the same data for programs.`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			s, err = from.read()
			return err
		},
		RunE: querying(func(ctx context.Context, cmd *cobra.Command) error {
			in, out := cmd.InOrStdin(), cmd.OutOrStdout()
			if !onTerminal(in) || !onTerminal(out) {
				return top.ErrNoTerminal
			}
			return top.Run(ctx, control.NewClient(s.Control), in, out)
		}),
	}
	from = addSettings(cmd.Flags(), "control")
	return cmd
}
