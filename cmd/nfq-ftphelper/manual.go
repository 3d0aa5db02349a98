//go:build manual

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/deploy/package/manual"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
)

func init() { extra = append(extra, newManual()) }

// newManual is only in builds with the tag manual, which make the packages.
func newManual() *cobra.Command {
	var example string
	cmd := &cobra.Command{
		Use:       "manual 5|8",
		Short:     "Write a page of the manual, in mdoc; its date is $SOURCE_DATE_EPOCH",
		Hidden:    true,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"5", "8"},
		RunE: func(cmd *cobra.Command, args []string) error {
			date, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
			if err != nil {
				return errors.New("SOURCE_DATE_EPOCH must be the page's date, in seconds since 1970")
			}
			text, err := os.ReadFile(example)
			if err != nil {
				return fmt.Errorf("read the example of nftables.conf: %w", err)
			}
			daemon, _, err := cmd.Root().Find([]string{"run"})
			if err != nil {
				return err
			}
			page := manual.Page{Root: cmd.Root(), Daemon: daemon, Version: version, Vocabulary: engine.Vocabulary(), Date: time.Unix(date, 0), Example: string(text)}
			if args[0] == "5" {
				return page.File(cmd.OutOrStdout())
			}
			return page.Program(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&example, "example", "deploy/package/nftables.conf", "`file` that shows how /etc/nftables.conf includes the rules")
	return cmd
}
