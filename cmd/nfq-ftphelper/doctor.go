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
	var asJSON, strict bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out why FTP connections are not helped",
		Long: `doctor examines this host and prints a line for each subject: ok, a warning, or a problem, with
why it matters and the fix. It changes nothing on this host: its tests run in throw-away network
namespaces.

Give it the --config and the flags of the daemon. The exit code is 0 if it found no problem, and 1
otherwise. A problem stops FTP transfers, a warning does not; with --strict the exit code is 1 for
warnings too.`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			s, err = from.read()
			return err
		},
		RunE: running(func(cmd *cobra.Command) error {
			runtime.LockOSThread() // all examinations use one network namespace
			defer runtime.UnlockOSThread()
			findings := doctor.Examine(s.Request, from.file)
			out := cmd.OutOrStdout()
			var err error
			if asJSON {
				err = doctor.WriteJSON(out, findings)
			} else {
				err = doctor.WriteText(out, findings, isTerminal(out))
			}
			if err == nil {
				err = verdict(findings, strict)
			}
			return err
		}),
	}
	from = addSettings(cmd.Flags(), ruleSettings...)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with 1 for warnings too")
	return cmd
}

// verdict returns an error if there are problems; with strict, if there are warnings.
func verdict(findings []doctor.Finding, strict bool) error {
	problems, warnings := doctor.Count(findings, doctor.Problem), doctor.Count(findings, doctor.Warning)
	switch {
	case problems == 1:
		return errors.New("there is 1 problem")
	case problems > 1:
		return fmt.Errorf("there are %d problems", problems)
	case strict && warnings == 1:
		return errors.New("there is 1 warning, and --strict does not allow any")
	case strict && warnings > 1:
		return fmt.Errorf("there are %d warnings, and --strict does not allow any", warnings)
	}
	return nil
}

// isTerminal reports whether w is a terminal whose user has not declined colours (no-color.org).
func isTerminal(w io.Writer) bool { return os.Getenv("NO_COLOR") == "" && onTerminal(w) }

// onTerminal reports whether a reader or writer is a terminal.
func onTerminal(rw any) bool {
	f, ok := rw.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
