package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

func newRules() *cobra.Command {
	var w backend.Request
	var own, applied bool
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Print, apply, check or remove the rules that queue packets",
		Long: `The rules are one nftables table, inet nfq_ftphelper; other tables are not changed. They give
FTP control connections a conntrack helper and queue their packets with payload, or, with
--ruleset lean, only packets that may have to be read. With --monitor they only queue.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	from := addSettings(cmd.PersistentFlags(), ruleSettings...)
	add := func(use, short string, choose func() (backend.Plan, error), do func(cmd *cobra.Command, c rules.Config) error) *cobra.Command {
		sub := &cobra.Command{
			Use: use, Short: short, Args: cobra.NoArgs,
			PreRunE: func(*cobra.Command, []string) error {
				s, err := from.read()
				if err == nil {
					// Without a file it is unknown whether the daemon applies them.
					w, applied = s.Request, s.ApplyRules || from.file == ""
				}
				return err
			},
			RunE: running(func(cmd *cobra.Command) error {
				choice, err := choose()
				if err != nil {
					return err
				}
				return do(cmd, choice.Rules)
			}),
		}
		cmd.AddCommand(sub)
		return sub
	}
	forAnyHost := func() (backend.Plan, error) { return backend.Choose(w, anyKernel{}) }
	forThisHost := func() (backend.Plan, error) {
		choice, err := backend.Choose(w, backend.Host{})
		if err == nil && choice.Helper == backend.CTHelper {
			err = registered(choice.Rules.Helper)
		}
		return choice, err
	}
	inPlace := func() (backend.Plan, error) {
		w.Installed = true
		return backend.Choose(w, backend.Host{})
	}
	add("print", "Print the rules for nft -f", forAnyHost, func(cmd *cobra.Command, c rules.Config) error {
		_, err := fmt.Fprint(cmd.OutOrStdout(), rules.Text(c))
		return err
	})
	add("apply", "Apply the rules in one transaction", forThisHost, func(cmd *cobra.Command, c rules.Config) error {
		statement, err := rules.Apply(c)
		if err == nil && c.Ruleset == rules.CTHelper {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "table inet nfq_ftphelper is in place: connections to ports %s get the helper %s\n",
				rules.FormatPorts(c.Ports, ","), c.Helper)
		} else if err == nil {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "table inet nfq_ftphelper is in place: ports %s go to %s (%s)\n",
				rules.FormatPorts(c.Ports, ","), queueList(c), statement)
		}
		return err
	})
	add("check", "Check that the rules in the kernel are as the settings require", inPlace, func(cmd *cobra.Command, c rules.Config) error {
		err := rules.Check(c)
		if err == nil {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "table inet nfq_ftphelper is right, for ports %s and any that were added\n",
				rules.FormatPorts(c.Ports, ","))
		}
		return err
	})
	remove := add("remove", "Remove the rules", forAnyHost, func(cmd *cobra.Command, _ rules.Config) error {
		switch {
		case !own:
			return rules.Remove()
		case applied:
			return removeOwn(w, cmd.ErrOrStderr())
		}
		return nil
	})
	remove.Flags().BoolVar(&own, "own", false, "remove only rules that a daemon with the same settings applies, after it was killed")
	return cmd
}

// removeOwn removes the rules if they are those that a daemon with this request applies. Otherwise it leaves them in
// place, and reports that without an error.
func removeOwn(w backend.Request, stderr io.Writer) error {
	w.Installed = false // as for the daemon that applies them
	choice, err := backend.Choose(w, backend.Host{})
	if err != nil {
		return err
	}
	switch err := rules.Check(choice.Rules); {
	case errors.Is(err, rules.ErrMissing):
		return nil
	case errors.Is(err, os.ErrPermission):
		return err
	case err != nil:
		_, err = fmt.Fprintf(stderr, "the rules are left in place: %v\n", err)
		return err
	}
	return rules.Remove()
}

// registered returns an error if the daemon has not registered the helper: for rules that name it the kernel would
// load a kernel helper with that name.
func registered(helper string) error {
	_, found, err := cthelper.Lookup(helper)
	if err == nil && !found {
		err = fmt.Errorf("the conntrack helper %q is not registered: start the daemon first, or run it with --rules", helper)
	}
	return err
}

// anyKernel has every helper, for rules of another host.
type anyKernel struct{}

func (anyKernel) Carrier(string) error         { return nil }
func (anyKernel) CTHelper() error              { return nil }
func (anyKernel) Installed(rules.Config) error { return nil }

func queueList(c rules.Config) string {
	if c.Queues <= 1 {
		return fmt.Sprintf("queue %d", c.Queue)
	}
	return fmt.Sprintf("queues %d to %d", c.Queue, int(c.Queue)+int(c.Queues)-1)
}
