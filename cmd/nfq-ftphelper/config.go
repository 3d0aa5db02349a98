package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/config"
)

// usualFile is the default path of the configuration file.
const usualFile = "/etc/nfq-ftphelper/nfq-ftphelper.yaml"

// yamlFiles are the extensions of configuration files, for completion.
var yamlFiles = []string{"yaml", "yml"}

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check, show or create a configuration file",
		Long: `The configuration file is YAML; its keys are the names of the flags of "run":

  rules: true
  ports: [21, 2121-2130]
  hold-time: 500ms

Every command reads ` + usualFile + ` if it exists and
--config names no other file, and prints a note. --config none (or "") reads no file. Flags take
precedence over the file. On SIGHUP the daemon reads its file again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, sub := range []*cobra.Command{newConfigCheck(), newConfigShow(), newConfigInit()} {
		sub.ValidArgsFunction = cobra.FixedCompletions(yamlFiles, cobra.ShellCompDirectiveFilterFileExt)
		cmd.AddCommand(sub)
	}
	return cmd
}

func newConfigCheck() *cobra.Command {
	var name string
	var keys []string
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Report all faults of a configuration file",
		Long:  "check reads FILE, or " + usualFile + ".\nIt reports every fault with its line.",
		Args:  cobra.MaximumNArgs(1),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			name = cmp.Or(cmd.Flags().Arg(0), defaultFile)
			file, err := newSettings().checkFile(name)
			if err != nil {
				return err
			}
			keys = slices.Sorted(slices.Values(file.Keys()))
			return nil
		},
		RunE: running(func(cmd *cobra.Command) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is right; it sets %s\n", name, cmp.Or(enumerate(keys, "and"), "nothing"))
			return err
		}),
	}
}

func newConfigShow() *cobra.Command {
	var from *source
	var s *settings
	cmd := &cobra.Command{
		Use:   "show [FILE]",
		Short: "Print all settings after defaults, file and flags",
		Long:  "show reads FILE, or the file of --config.",
		Args:  cobra.MaximumNArgs(1),
		PreRunE: func(_ *cobra.Command, args []string) (err error) {
			if len(args) > 0 {
				err = from.Set(args[0])
			}
			if err != nil {
				return err
			}
			s, err = from.read()
			return err
		},
		RunE: running(func(cmd *cobra.Command) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), config.Show(s.flags))
			return err
		}),
	}
	from = addSettings(cmd.Flags())
	return cmd
}

const introduction = `Settings of nfq-ftphelper, each with its default. To change one, remove the # before its name.
The names are those of the flags of "nfq-ftphelper run", which take precedence over this file.

"nfq-ftphelper config check FILE" checks the file. The daemon reads it again on SIGHUP; settings marked [restart] take effect at a restart.`

func newConfigInit() *cobra.Command {
	return &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a configuration file with every setting commented out and explained",
		Long:  "init writes to FILE, which must not exist, or to standard output.",
		Args:  cobra.MaximumNArgs(1),
		RunE: running(func(cmd *cobra.Command) error {
			text := config.Template(newSettings().flags, introduction)
			if name := cmd.Flags().Arg(0); name != "" {
				return writeNew(name, text)
			}
			_, err := fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		}),
	}
}

// writeNew writes a file that does not exist yet.
func writeNew(name, text string) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if os.IsExist(err) {
		return fmt.Errorf("%s exists already, and is not changed", name)
	}
	if err != nil {
		return fmt.Errorf("the configuration file can't be written: %w", err)
	}
	_, err = strings.NewReader(text).WriteTo(file)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("the configuration file can't be written: %w", err)
	}
	return nil
}
