package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/doctor"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// runSettings are what the command line says of run.
type runSettings struct {
	wish       backend.Wish
	applyRules bool
	keepHelper bool
	engine     engine.Config
	logFormat  logFormat
	logLevel   slog.Level
}

func newRun() *cobra.Command {
	s := runSettings{logFormat: "text"}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Help FTP connections until stopped",
		Long: `run serves the queue until it gets SIGTERM or SIGINT. It logs what it refuses and cannot do;
with --log-level debug also every data connection that it has conntrack expect.

The rules that fill the queue are either yours (nft -f ftp-queue.nft, which "rules print"
writes), or, with --rules, applied at start and removed at stop. While the daemon is not
there, packets pass unread and connections that were helped go on (but for --sequence user,
and a cthelper whose daemon was killed).`,
		Example: `  nfq-ftphelper run --rules                       FTP on port 21
  nfq-ftphelper run --rules --ports 21,2121-2130  on other ports too
  nfq-ftphelper run --queue 7                     with rules of your own that queue to 7`,
		Args:    cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error { return s.validate() },
		RunE: running(func(cmd *cobra.Command) error {
			return run(cmd.Context(), s, cmd.ErrOrStderr())
		}),
	}
	f := cmd.Flags()
	wishFlags(f, &s.wish)
	f.BoolVar(&s.applyRules, "rules", false, "apply the rules at start and remove them at stop")
	f.BoolVar(&s.keepHelper, "keep-helper", false, "leave a cthelper registered at stop, so that rules which name it can be loaded")
	p := &s.engine.Policy
	f.Uint16Var(&p.MinPort, "min-port", engine.DefaultMinPort, "lowest `port` that a client or server may announce")
	f.BoolVar(&p.Loose, "loose", false, "let clients and servers announce any address, not only their own (FXP; opens the way for bounce attacks)")
	f.Var(prefixesFlag{&p.Allowed}, "allow", "`addresses` that clients and servers may announce besides their own, such as 192.0.2.7,2001:db8::/64")
	f.IntVar(&p.Rate, "rate", engine.DefaultRate, "most data connections expected for one client address within a second, in each queue (`number`)")
	a := &s.engine.Advertise
	f.Var(advertiseFlag{a}, "advertise", "`address` that clients reach the servers at, where NAT happens elsewhere; one of each family at most, as in 203.0.113.55,2001:db8::55")
	f.Var(prefixesFlag{&a.Except}, "advertise-except", "`addresses` of clients that reach the servers directly, such as 10.0.0.0/8")
	f.IntVar(&s.engine.MaxFlows, "max-connections", engine.DefaultMaxFlows, "most control connections tracked in each queue (`number`); beyond it the longest silent one is forgotten")
	f.DurationVar(&s.engine.HoldTime, "hold-time", engine.DefaultHoldTime, "how long a packet waits at most for the rest of a line (`duration`)")
	f.Var(&s.logFormat, "log-format", "log `format`: text or json, to standard error")
	f.TextVar(&s.logLevel, "log-level", slog.LevelInfo, "log `level`: debug, info, warn or error")
	return cmd
}

// validate refuses numbers with which nothing could be helped.
func (s *runSettings) validate() error {
	if s.wish.Rules.Queues < 1 {
		return errors.New("--queues must be 1 at least")
	}
	if err := s.wish.Validate(); err != nil {
		return err
	}
	s.wish.Installed = !s.applyRules
	switch c := s.engine; {
	case c.Policy.MinPort == 0:
		return errors.New("--min-port must be 1 at least; there is no port 0")
	case c.Policy.Rate < 1:
		return errors.New("--rate must be 1 at least")
	case c.MaxFlows < 1:
		return errors.New("--max-connections must be 1 at least")
	case c.HoldTime <= 0:
		return errors.New("--hold-time must be longer than nothing")
	}
	return nil
}

// advertiseFlag is a flag that takes an address of either family, or one of each.
type advertiseFlag struct{ a *engine.Advertise }

// String implements pflag.Value.
func (f advertiseFlag) String() string {
	if f.a == nil {
		return ""
	}
	var texts []string
	for _, a := range []netip.Addr{f.a.Addr4, f.a.Addr6} {
		if a.IsValid() {
			texts = append(texts, a.String())
		}
	}
	return strings.Join(texts, ",")
}

// Type implements pflag.Value.
func (f advertiseFlag) Type() string { return "address" }

// Set implements pflag.Value.
func (f advertiseFlag) Set(s string) error {
	var addr4, addr6 netip.Addr
	for text := range strings.SplitSeq(s, ",") {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("%q is not an address", text)
		}
		of := &addr6
		if a = a.Unmap(); a.Is4() {
			of = &addr4
		}
		if of.IsValid() {
			return fmt.Errorf("%s and %s are of the same family", *of, a)
		}
		*of = a
	}
	f.a.Addr4, f.a.Addr6 = addr4, addr6
	return nil
}

// prefixesFlag is a flag that takes addresses and networks.
type prefixesFlag struct{ prefixes *[]netip.Prefix }

// String implements pflag.Value.
func (p prefixesFlag) String() string {
	if p.prefixes == nil {
		return ""
	}
	var texts []string
	for _, n := range *p.prefixes {
		texts = append(texts, n.String())
	}
	return strings.Join(texts, ",")
}

// Type implements pflag.Value.
func (p prefixesFlag) Type() string { return "addresses" }

// Set implements pflag.Value.
func (p prefixesFlag) Set(s string) error {
	var prefixes []netip.Prefix
	for text := range strings.SplitSeq(s, ",") {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			a, aerr := netip.ParseAddr(text)
			if aerr != nil {
				return fmt.Errorf("%q is neither an address nor a network such as 192.0.2.0/24", text)
			}
			n = netip.PrefixFrom(a, a.BitLen())
		}
		prefixes = append(prefixes, n.Masked())
	}
	*p.prefixes = prefixes
	return nil
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

// run wires the parts and runs them. The queues are bound before the rules fill them, and empty
// before the rules go: with a table's hooks, the kernel drops all that waits in any queue
// (nf_queue_nf_hook_drop). In between packets pass unread.
func run(ctx context.Context, s runSettings, stderr io.Writer) (err error) {
	log := newLogger(s, stderr)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A log that nobody reads any more must not end the daemon.
	signal.Ignore(syscall.SIGPIPE)

	choice, err := doctor.Ready(s.wish)
	if err != nil {
		return fmt.Errorf("no connection could be helped: %w", err)
	}
	logChoice(choice, log)

	// A thread that waits for its queue would be taken for one that works, and looked at all the time.
	if busy := int(choice.Rules.Queues) + 1; runtime.GOMAXPROCS(0) < busy {
		runtime.GOMAXPROCS(busy)
	}
	// Each queue has an engine of its own, and that a connection to conntrack: no locks. If one
	// queue is lost, all end.
	served, lost := errgroup.WithContext(context.WithoutCancel(ctx))
	queueCtx, stopQueues := context.WithCancel(lost)
	defer stopQueues()
	var workers []worker
	for i := range choice.Rules.Queues {
		w, failed := newWorker(s, choice, choice.Rules.Queue+i, log)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, w.close()) }()
		workers = append(workers, w)
	}
	for _, w := range workers {
		served.Go(func() error { return w.queue.Run(queueCtx) })
	}
	for _, w := range workers {
		select {
		case <-w.queue.Ready():
		case <-lost.Done():
			return served.Wait()
		}
	}

	statement, err := fill(s, choice, log)
	if err != nil {
		stopQueues()
		return errors.Join(err, served.Wait())
	}
	log.Info("ready", "queue", choice.Rules.Queue, "queues", choice.Rules.Queues, "rules", statement)

	select {
	case <-ctx.Done():
	case <-lost.Done():
	}
	err = disable(choice)
	stopQueues()
	err = errors.Join(err, served.Wait(), unfill(s, choice, log))
	for _, w := range workers {
		w.logStopped(log)
	}
	return err
}

// logChoice says in one line what was chosen, and why.
func logChoice(c backend.Choice, log *slog.Logger) {
	why := "as asked for"
	if c.Sequence == engine.Auto {
		why = "by the kernel where this host translates, "
		if c.Rules.Ruleset == rules.User {
			why += "by the daemon elsewhere"
		} else {
			why += "and elsewhere lines keep their length"
		}
	}
	log.Info("back ends chosen", "helper", c.Helper, "helper_name", c.Rules.Helper, "helper_why", c.Why,
		"sequence", c.Sequence, "sequence_why", why)
}

// worker is a queue and what serves it.
type worker struct {
	number    uint16
	conntrack *expect.Client
	early     *rules.Early // nil where the rules have no use for it
	engine    *engine.Engine
	queue     *nfq.Queue
}

func newWorker(s runSettings, choice backend.Choice, number uint16, log *slog.Logger) (w worker, err error) {
	w.number = number
	if w.conntrack, err = expect.Dial(); err != nil {
		return w, err
	}
	config := s.engine
	config.Conntrack, config.Log, config.Sequence = w.conntrack, log, choice.Sequence
	switch choice.Rules.Ruleset {
	case rules.CTHelper:
		config.PostNAT = true
	case rules.User:
		config.OpaqueLabel, config.KeptLabel, config.ShiftedLabel = rules.OpaqueLabel, rules.UserLabel, rules.ShiftedLabel
		if w.early, err = rules.OpenEarly(choice.Rules, number); err != nil {
			return w, errors.Join(err, w.conntrack.Close())
		}
		config.Early = w.early
	case rules.Lean:
		config.OpaqueLabel, config.AskedLabel, config.EditedLabel = rules.OpaqueLabel, rules.AskedLabel, rules.EditedLabel
	default:
		config.OpaqueLabel = rules.OpaqueLabel
	}
	w.engine = engine.New(config)
	w.queue = nfq.New(number, w.engine, log)
	if choice.Rules.Ruleset == rules.Lean {
		w.queue.Distinguish(rules.AgainPriority, w.engine.HandleAgain)
	}
	return w, nil
}

func (w worker) close() error {
	err := w.conntrack.Close()
	if w.early != nil {
		err = errors.Join(err, w.early.Close())
	}
	return err
}

// logStopped says what has been done.
func (w worker) logStopped(log *slog.Logger) {
	s := w.engine.Stats()
	for r, n := range s.Refused {
		if n > 0 {
			log.Info("endpoints were refused", "queue", w.number, "count", n, "reason", engine.Reason(r))
		}
	}
	log.Info("stopped", "queue", w.number, "packets", s.Packets, "unknown", s.Unknown, "changed", s.Changed, "expected", s.Expectations,
		"failed", s.Failed, "held", s.Held, "gave_up", s.GaveUp, "overflows", w.queue.Overflows())
}

// fill makes packets come to the queues: it registers the helper, if that is one of ours, and
// applies the rules, if they are ours to apply. It says whose the rules are.
func fill(s runSettings, choice backend.Choice, log *slog.Logger) (string, error) {
	if choice.Helper == backend.CTHelper {
		if err := cthelper.Register(helper(choice)); err != nil {
			return "", err
		}
	}
	statement, err := ensureRules(s, choice.Rules, log)
	if err != nil {
		return "", errors.Join(err, disable(choice), unregister(s, choice, log))
	}
	return statement, nil
}

// unfill undoes fill. Removing rules or a helper drops all packets that wait in any queue: the
// queues have to be empty.
func unfill(s runSettings, choice backend.Choice, log *slog.Logger) error {
	var err error
	if s.applyRules {
		err = removeRules(choice.Rules, log)
	}
	return errors.Join(err, unregister(s, choice, log))
}

// unregister removes the helper, unless it is to stay, or rules that are not ours hold it.
func unregister(s runSettings, choice backend.Choice, log *slog.Logger) error {
	if choice.Helper != backend.CTHelper || s.keepHelper {
		return nil
	}
	err := cthelper.Unregister(choice.Rules.Helper)
	if errors.Is(err, cthelper.ErrInUse) {
		log.Warn("the helper is left in place, disabled", "reason", err)
		return nil
	}
	return err
}

// disable ends that the kernel queues for the helper, while the queue is still served: it does
// not adjust sequence numbers in packets that it queues for nobody (nf_confirm).
func disable(choice backend.Choice) error {
	if !choice.Enabled() {
		return nil
	}
	h := helper(choice)
	h.Enabled = false
	return cthelper.Register(h)
}

// helper is the one that is registered for a choice.
func helper(c backend.Choice) cthelper.Helper {
	return cthelper.Helper{Name: c.Rules.Helper, Queue: c.Rules.Queue, Enabled: c.Enabled()}
}

// ensureRules applies the rules if it is to, and says what fills the queue.
func ensureRules(s runSettings, c rules.Config, log *slog.Logger) (string, error) {
	err := rules.Check(c)
	switch {
	case err == nil && c.Ruleset == rules.User:
		return "in place", rules.ClearEarly() // what an earlier daemon knew of these connections is lost
	case err == nil:
		return "in place", nil
	case !s.applyRules:
		log.Warn("the rules are not as the flags say, the queue may stay empty: load what \"nfq-ftphelper rules print\" writes, or use --rules",
			"reason", err)
		return "not checked", nil
	}
	statement, err := rules.Apply(c)
	if statement == "" {
		return "own", err
	}
	return fmt.Sprintf("own (%s)", statement), err
}

// removeRules removes the rules that were applied, unless they are somebody else's by now.
func removeRules(c rules.Config, log *slog.Logger) error {
	switch err := rules.Check(c); {
	case errors.Is(err, rules.ErrMissing):
		return nil
	case err != nil:
		log.Warn("the rules are left in place: they are not those that were applied", "reason", err)
		return nil
	}
	return rules.Remove()
}
