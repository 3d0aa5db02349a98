package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/confine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/daemon"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/jsonout"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/logqueue"
)

func newRun() *cobra.Command {
	var from *source
	var s *settings
	requests := make(chan os.Signal, 1)
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Help FTP connections until stopped",
		Long: `run serves the queues until it gets SIGTERM or SIGINT. It logs refusals and failures; with
--log-opened also every data connection that it opens. With --monitor it logs what it would do,
and opens and changes nothing.

The rules that queue packets are either yours ("rules print" writes them for nft -f), or, with
--rules, applied at start and removed at stop. While the daemon is stopped, packets pass unread
and connections that were helped continue (except with a cthelper whose daemon was killed).

On SIGHUP it reads its configuration file again, applies the settings that can change while it
runs, and logs the name of each setting that needs a restart. It restores its own rules if another
program removes them.`,
		Example: `  nfq-ftphelper run --rules                       FTP on port 21
  nfq-ftphelper run --rules --ports 21,2121-2130  on other ports too
  nfq-ftphelper run --rules --monitor             only log what would be opened
  nfq-ftphelper run --queue 7                     with your own rules that queue to 7
  nfq-ftphelper run --config ./lab.yaml           with the settings of another file`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			// An early SIGHUP waits until the daemon is ready; several count as one.
			signal.Notify(requests, syscall.SIGHUP)
			s, err = from.read()
			return err
		},
		RunE: running(func(cmd *cobra.Command) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			// A closed standard error must not end the daemon.
			signal.Ignore(syscall.SIGPIPE)
			// Packets allocate nothing, so a smaller heap costs no time.
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(50)
			}
			level := new(slog.LevelVar)
			level.Set(s.logLevel.Level)
			reload := daemon.Reload{Requests: requests, Read: from.reader(s, level)}
			s.Confine = &confine.Paths{}
			if from.file != "" {
				s.Confine.Read = foldersOf(from.file)
			}
			if s.Control != "" { // the socket is removed at the end
				s.Confine.Remove = []string{filepath.Dir(s.Control)}
			}
			log, end := logqueue.New(logHandler(cmd.ErrOrStderr(), s.logFormat, level))
			defer end()
			if from.file != "" {
				log.Info("settings read", "file", from.file)
			}
			return daemon.Run(ctx, s.Settings, reload, log)
		}),
	}
	from = addSettings(cmd.Flags())
	return cmd
}

// foldersOf returns the folder of a file, and that of its target if it is a link.
func foldersOf(file string) []string {
	folders := []string{filepath.Dir(file)}
	if target, err := filepath.EvalSymlinks(file); err == nil {
		folders = append(folders, filepath.Dir(target))
	}
	return folders
}

// reader returns a function that reads what has changed since inForce, for a running daemon.
func (src *source) reader(inForce *settings, level *slog.LevelVar) func() (daemon.Change, error) {
	return func() (daemon.Change, error) {
		if src.file == "" {
			nothing := []slog.Attr{slog.String("changed", "nothing: the daemon has no configuration file")}
			return daemon.Change{Settings: inForce.Settings, Changed: nothing, InForce: func() {}}, nil
		}
		s, err := src.read()
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w: the daemon has given up the right to read files outside the file's original folder, or of other users: restart it", err)
		}
		if err != nil {
			return daemon.Change{}, err
		}
		changed, fixed := s.keepFixed(inForce)
		return daemon.Change{Settings: s.Settings, Changed: changed, NeedRestart: fixed, InForce: func() {
			inForce = s
			level.Set(s.logLevel.Level)
		}}, nil
	}
}

func logHandler(w io.Writer, format logFormat, level slog.Leveler) slog.Handler {
	options := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.NewJSONHandler(jsonout.Writer(w), options)
	}
	return slog.NewTextHandler(w, options)
}
