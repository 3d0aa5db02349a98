package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/doctor"
)

func newDoctor() *cobra.Command {
	var s *settings
	var from *source
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out why FTP connections are not helped",
		Long: `doctor examines this host and prints a line for each subject: ok, a warning, or a problem,
with why it matters and what mends it. It changes nothing: what it tries, it tries in a
network namespace that it throws away.

Give it the --config and the flags that the daemon has. The exit code is 0 if
there is no problem, and 1 otherwise.`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			s, err = from.read()
			return err
		},
		RunE: running(func(cmd *cobra.Command) error {
			runtime.LockOSThread() // everything is asked in one network namespace
			defer runtime.UnlockOSThread()
			findings := doctor.Examine(s.Wish, from.file)
			out := cmd.OutOrStdout()
			var err error
			if asJSON {
				err = doctor.WriteJSON(out, findings)
			} else {
				err = doctor.WriteText(out, findings, isTerminal(out))
			}
			if n := doctor.Count(findings, doctor.Problem); err == nil && n == 1 {
				err = errors.New("there is 1 problem")
			} else if err == nil && n > 1 {
				err = fmt.Errorf("there are %d problems", n)
			}
			return err
		}),
	}
	from = addSettings(cmd.Flags(), ruleSettings...)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// isTerminal tells whether w shows colours to somebody who has not declined (no-color.org).
func isTerminal(w io.Writer) bool { return os.Getenv("NO_COLOR") == "" && onTerminal(w) }

// onTerminal tells whether what is read or written is a terminal.
func onTerminal(rw any) bool {
	f, ok := rw.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
