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
		Long: `top fills the terminal with the open control connections that the daemon helps, the busiest first,
and with how much it has to do. q ends it, the arrows select a connection and Enter shows its
details and events, those from before top was started too. s sorts by the next column, / filters
as "flows --filter" does, c shows closing connections, p pauses, ? shows all keys.

A /s is a second's data connections over the last ten seconds; LAST SEEN is the time since the
last event. "status --json" and "flows --json" have the same for programs.`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			s, err = from.read()
			return err
		},
		RunE: asking(func(ctx context.Context, cmd *cobra.Command) error {
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
