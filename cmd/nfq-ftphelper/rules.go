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
		Short: "Print, apply, check or remove the rules that fill the queue",
		Long: `The rules are one table of nftables, inet nfq_ftphelper, and touch nothing else. They
give FTP control connections a conntrack helper and queue those of their packets that
carry text, or, with --ruleset lean, only those that must be read. With --monitor they only
queue.`,
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
					// Without a file nothing says that the daemon does not apply them.
					w, applied = s.Wish, s.ApplyRules || from.file == ""
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
	onPaper := func() (backend.Plan, error) { return backend.Choose(w, anyKernel{}) }
	onHost := func() (backend.Plan, error) {
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
	add("print", "Write the rules in the language of nft, for nft -f", onPaper, func(cmd *cobra.Command, c rules.Config) error {
		_, err := fmt.Fprint(cmd.OutOrStdout(), rules.Text(c))
		return err
	})
	add("apply", "Put the rules into the kernel, in one transaction", onHost, func(cmd *cobra.Command, c rules.Config) error {
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
	add("check", "Say whether the rules are in the kernel as they should be", inPlace, func(cmd *cobra.Command, c rules.Config) error {
		err := rules.Check(c)
		if err == nil {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "table inet nfq_ftphelper is as it should be, for ports %s and any that were added\n",
				rules.FormatPorts(c.Ports, ","))
		}
		return err
	})
	remove := add("remove", "Take the rules out of the kernel", onPaper, func(cmd *cobra.Command, _ rules.Config) error {
		switch {
		case !own:
			return rules.Remove()
		case applied:
			return removeOwn(w, cmd.ErrOrStderr())
		}
		return nil
	})
	remove.Flags().BoolVar(&own, "own", false, "only if they are what the daemon applies with the same settings: for one that was killed")
	return cmd
}

// removeOwn removes the rules if they are those that a daemon with the wish applies. It is no error if
// they are not: it says so, and leaves them in place.
func removeOwn(w backend.Request, stderr io.Writer) error {
	w.Installed = false // the daemon chooses without a look at them
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

// registered returns an error if the daemon has not registered the helper: for rules that name it
// the kernel would load its own, if that is called so.
func registered(helper string) error {
	_, there, err := cthelper.Lookup(helper)
	if err == nil && !there {
		err = fmt.Errorf("the conntrack helper %q is not registered: start the daemon first, or let it apply the rules (run --rules)", helper)
	}
	return err
}

// anyKernel has everything: for rules that are not for this host.
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
