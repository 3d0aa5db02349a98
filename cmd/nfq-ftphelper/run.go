package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/daemon"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
)

// runSettings are what the command line says of run.
type runSettings struct {
	daemon.Settings
	logFormat logFormat
	logLevel  slog.Level
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
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			// A log that nobody reads any more must not end the daemon.
			signal.Ignore(syscall.SIGPIPE)
			return daemon.Run(ctx, s.Settings, nil, newLogger(s, cmd.ErrOrStderr()))
		}),
	}
	f := cmd.Flags()
	wishFlags(f, &s.Wish)
	f.BoolVar(&s.ApplyRules, "rules", false, "apply the rules at start and remove them at stop")
	f.BoolVar(&s.KeepHelper, "keep-helper", false, "leave a cthelper registered at stop, so that rules which name it can be loaded")
	p := &s.Engine.Policy
	f.Uint16Var(&p.MinPort, "min-port", engine.DefaultMinPort, "lowest `port` that a client or server may announce")
	f.BoolVar(&p.Loose, "loose", false, "let clients and servers announce any address, not only their own (FXP; opens the way for bounce attacks)")
	f.Var(prefixesFlag{&p.Allowed}, "allow", "`addresses` that clients and servers may announce besides their own, such as 192.0.2.7,2001:db8::/64")
	f.IntVar(&p.Rate, "rate", engine.DefaultRate, "most data connections expected for one client address within a second, in each queue (`number`)")
	a := &s.Engine.Advertise
	f.Var(advertiseFlag{a}, "advertise", "`address` that clients reach the servers at, where NAT happens elsewhere; one of each family at most, as in 203.0.113.55,2001:db8::55")
	f.Var(prefixesFlag{&a.Except}, "advertise-except", "`addresses` of clients that reach the servers directly, such as 10.0.0.0/8")
	f.IntVar(&s.Engine.MaxFlows, "max-connections", engine.DefaultMaxFlows, "most control connections tracked in each queue (`number`); beyond it the longest silent one is forgotten")
	f.DurationVar(&s.Engine.HoldTime, "hold-time", engine.DefaultHoldTime, "how long a packet waits at most for the rest of a line (`duration`)")
	f.Var(&s.logFormat, "log-format", "log `format`: text or json, to standard error")
	f.TextVar(&s.logLevel, "log-level", slog.LevelInfo, "log `level`: debug, info, warn or error")
	return cmd
}

// validate refuses numbers with which nothing could be helped.
func (s *runSettings) validate() error {
	if s.Wish.Rules.Queues < 1 {
		return errors.New("--queues must be 1 at least")
	}
	if err := s.Wish.Validate(); err != nil {
		return err
	}
	switch c := s.Engine; {
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
