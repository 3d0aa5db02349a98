// Command nfq-ftphelper is a conntrack helper for FTP that runs in user space: it reads the
// packets of FTP control connections that nftables queues to it, rewrites the addresses in
// them where this host translates, and announces data connections to conntrack.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/config"
)

// Exit codes.
const (
	exitFailure = 1 // something failed while running
	exitUsage   = 2 // the command line is wrong, or the configuration file
)

// failure is an error of a command with right usage.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

// running turns a command into a function for cobra. Its errors are failures; cobra's own errors are about usage.
func running(do func(cmd *cobra.Command) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := do(cmd); err != nil {
			return failure{err}
		}
		return nil
	}
}

func main() {
	os.Exit(execute(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs the command line and returns the exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var inFile config.Errors
	if errors.As(err, &inFile) {
		for _, fault := range inFile {
			fmt.Fprintf(stderr, "nfq-ftphelper: %v\n%s", fault, fault.Excerpt())
		}
		return exitUsage
	}
	fmt.Fprintf(stderr, "nfq-ftphelper: %v\n", err)
	var f failure
	if errors.As(err, &f) {
		return exitFailure
	}
	fmt.Fprintln(stderr, "Try --help.")
	return exitUsage
}

// extra are commands of builds with more tags.
var extra []*cobra.Command

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "nfq-ftphelper",
		Short: "FTP through NAT and firewalls: a conntrack helper in user space",
		Long: `nfq-ftphelper makes FTP work through this machine's NAT and stateful firewall, as the
kernel's nf_conntrack_ftp and nf_nat_ftp do. nftables queues the packets of FTP control
connections to it; it rewrites the addresses in PORT, EPRT, 227 and 229 where this host
translates, and announces the data connections to conntrack.

The quickest way, as root: nfq-ftphelper run --rules`,
		Version:           version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		// run logs which file it reads.
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			if flag := cmd.Flags().Lookup("config"); flag != nil && cmd.Name() != "run" {
				flag.Value.(*source).notes = cmd.ErrOrStderr()
			}
		},
	}
	root.SetFlagErrorFunc(suggestFlag)
	root.AddCommand(newRun(), newRules(), newDoctor(), newConfig(), newExplain(), newStatus(), newFlows(), newEvents(), newTop(), newVersion())
	root.AddCommand(extra...)
	completeValues(root)
	return root
}

// suggestFlag adds to the error of an unknown flag the name of a similar one.
func suggestFlag(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return err
	}
	name := unknown.GetSpecifiedName()
	if close := config.Closest(name, cmd.Flags()); unknown.GetSpecifiedShortnames() == "" && close != "" {
		return fmt.Errorf("unknown flag --%s; did you mean --%s?", name, close)
	}
	return err
}

// completeValues has the shell complete the values of all flags of a command and its subcommands: the words that a
// flag takes, files where it takes one, and nothing otherwise.
func completeValues(cmd *cobra.Command) {
	complete := func(flag *pflag.Flag) {
		var words []string
		directive := cobra.ShellCompDirectiveNoFileComp
		switch v := flag.Value.(type) {
		case completer:
			words = v.Completions()
		case *source:
			words, directive = yamlFiles, cobra.ShellCompDirectiveFilterFileExt
		default:
			if name, _ := pflag.UnquoteUsage(flag); name == "file" || name == "path" {
				return
			}
		}
		// An error means that another command with the flag has done so.
		_ = cmd.RegisterFlagCompletionFunc(flag.Name, cobra.FixedCompletions(words, directive))
	}
	cmd.NonInheritedFlags().VisitAll(complete)
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 && len(strings.Fields(cmd.Use)) == 1 {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		completeValues(sub)
	}
}
