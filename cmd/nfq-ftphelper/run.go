package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// runSettings are what the command line says of run.
type runSettings struct {
	rules      rules.Config
	applyRules bool
	minPort    uint16
	logFormat  logFormat
	logLevel   slog.Level
}

func newRun() *cobra.Command {
	s := runSettings{logFormat: "text"}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Help FTP connections until stopped",
		Long: `run serves the queue until it gets SIGTERM or SIGINT, and logs a line for every data
connection that it has conntrack expect.

The rules that fill the queue are either yours (nft -f ftp-queue.nft, which "rules print"
writes), or, with --rules, applied at start and removed at stop. While the daemon is not
there, packets pass unread and connections that were helped go on.`,
		Example: `  nfq-ftphelper run --rules                       FTP on port 21
  nfq-ftphelper run --rules --ports 21,2121-2130  on other ports too
  nfq-ftphelper run --queue 7                     with rules of your own that queue to 7`,
		Args: cobra.NoArgs,
		RunE: running(func(cmd *cobra.Command) error {
			return run(cmd.Context(), s, cmd.ErrOrStderr())
		}),
	}
	f := cmd.Flags()
	rulesFlags(f, &s.rules)
	f.BoolVar(&s.applyRules, "rules", false, "apply the rules at start and remove them at stop")
	f.Uint16Var(&s.minPort, "min-port", engine.DefaultMinPort, "lowest `port` that a client or server may announce")
	f.Var(&s.logFormat, "log-format", "how to log, `text` or json, to standard error")
	f.TextVar(&s.logLevel, "log-level", slog.LevelInfo, "what to log: `debug`, info, warn or error")
	return cmd
}

// logFormat is a flag that takes text or json.
type logFormat string

// String implements pflag.Value.
func (f *logFormat) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *logFormat) Type() string { return "format" }

// Set implements pflag.Value.
func (f *logFormat) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("it must be text or json")
	}
	*f = logFormat(s)
	return nil
}

func newLogger(s runSettings, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.logLevel}
	if s.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// run wires the parts and runs them: the queue is bound before the rules fill it, and the
// rules are gone before it closes.
func run(ctx context.Context, s runSettings, stderr io.Writer) (err error) {
	log := newLogger(s, stderr)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	conntrack, err := expect.Dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conntrack.Close()) }()

	eng := engine.New(engine.Config{Conntrack: conntrack, Log: log, MinPort: s.minPort})
	queue := nfq.New(s.rules.Queue, eng, log)
	queueCtx, stopQueue := context.WithCancel(context.WithoutCancel(ctx))
	defer stopQueue()
	ended := make(chan error, 1)
	go func() { ended <- queue.Run(queueCtx) }()
	select {
	case err := <-ended:
		return err
	case <-queue.Ready():
	}

	statement, err := ensureRules(s, log)
	if err != nil {
		stopQueue()
		return errors.Join(err, <-ended)
	}
	log.Info("ready", "queue", s.rules.Queue, "ports", portList(s.rules.Ports), "rules", statement)

	lost := false
	select {
	case err = <-ended:
		lost = true
	case <-ctx.Done():
	}
	if s.applyRules {
		err = errors.Join(err, rules.Remove())
	}
	if !lost {
		stopQueue()
		err = errors.Join(err, <-ended)
	}
	stats := eng.Stats()
	log.Info("stopped", "packets", stats.Packets, "changed", stats.Changed, "expected", stats.Expectations,
		"refused", stats.Refused, "failed", stats.Failed, "held", stats.Held, "lost", queue.Lost())
	return err
}

// ensureRules applies the rules if it is to, and says what fills the queue.
func ensureRules(s runSettings, log *slog.Logger) (string, error) {
	if s.applyRules {
		statement, err := rules.Apply(s.rules)
		return fmt.Sprintf("own (%s)", statement), err
	}
	if err := rules.Check(s.rules); err != nil {
		log.Warn("nothing may fill the queue: load ftp-queue.nft, or use --rules", "reason", err)
		return "unknown", nil
	}
	return "ftp-queue.nft", nil
}
