// Command nfq-ftphelper is a conntrack helper for FTP that runs in user space: it reads the
// packets of FTP control connections that nftables queues to it, rewrites the addresses in
// them where NAT is at work, and tells conntrack which data connections to expect.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/config"
)

// Exit codes.
const (
	exitFailure = 1 // something failed while running
	exitUsage   = 2 // the command line is wrong, or the configuration file
)

// failure is an error of a command that was called rightly.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

// running turns what a command does into what cobra calls: its errors are failures, while
// those that cobra finds by itself are about usage.
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
	fmt.Fprintf(stderr, "nfq-ftphelper: %v\n", err)
	var f failure
	if errors.As(err, &f) {
		return exitFailure
	}
	var inFile *config.Error
	if errors.As(err, &inFile) {
		fmt.Fprint(stderr, inFile.Excerpt())
		return exitUsage
	}
	fmt.Fprintln(stderr, "Try --help.")
	return exitUsage
}

// extra are commands that a build with more tags has.
var extra []*cobra.Command

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "nfq-ftphelper",
		Short: "FTP through NAT and firewalls: a conntrack helper in user space",
		Long: `nfq-ftphelper makes FTP work through this machine's NAT and stateful firewall, as the
kernel's nf_conntrack_ftp and nf_nat_ftp do. nftables queues the packets of FTP control
connections to it; it rewrites the addresses in PORT, EPRT, 227 and 229 where NAT is at
work, and tells conntrack which data connections to expect.

The quickest way, as root: nfq-ftphelper run --rules`,
		Version:           version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(newRun(), newRules(), newDoctor(), newConfig(), newExplain(), newStatus(), newFlows(), newEvents(), newTop(), newVersion())
	root.AddCommand(extra...)
	return root
}
