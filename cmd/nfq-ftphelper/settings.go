package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/pflag"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/config"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/daemon"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// settings are what the daemon can be told, on the command line and in the configuration file.
type settings struct {
	daemon.Settings
	logFormat logFormat
	logLevel  logLevel

	// flags have the settings for their values: one for each.
	flags *pflag.FlagSet
}

// newSettings returns the defaults. A new setting is one line here, and another one if it can change
// while the daemon runs.
func newSettings() *settings {
	s := &settings{logFormat: "text"}
	s.Version = version
	f := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	f.SortFlags = false
	s.flags = f

	w, ports := &s.Wish, portsFlag{&s.Wish.Rules.Ports}
	if err := ports.Set(rules.DefaultPorts); err != nil {
		panic(err)
	}
	f.Var(ports, "ports", "control `ports` that the rules queue, such as 21,2121,2200-2210")
	f.Uint16Var(&w.Rules.Queue, "queue", rules.DefaultQueue, "`number` of the queue, 0 to 65535")
	f.Uint16Var(&w.Rules.Queues, "queues", 1, "how many queues there are (`count`): that one and those behind it, for as many processors")
	f.BoolVar(&s.ApplyRules, "rules", false, "apply the rules at start and remove them at stop")
	f.Var(oneOf[rules.Ruleset]{&w.Ruleset, backend.Rulesets}, "ruleset", "what the rules queue: `full|lean`; full is every packet with text, lean only what must be read, and goes with a carrier (default full, or that of the rules in place)")
	config.Group(f, "The rules that fill the queue")

	w.Helper = backend.Auto
	f.Var(oneOf[backend.Helper]{&w.Helper, backend.Helpers}, "helper", "the `way` in which connections get a conntrack helper: carrier (one of the kernel's that does nothing with FTP), cthelper (one that the daemon registers), or auto (a carrier)")
	f.StringVar(&w.Name, "helper-name", "", "`name` of the carrier or cthelper (default sane or ftp)")
	f.BoolVar(&s.KeepHelper, "keep-helper", false, "leave a cthelper registered at stop, so that rules which name it can be loaded")
	f.BoolVar(&w.Monitor, "monitor", false, "decide and log, and open and change nothing: no helper, no expectation, no rewritten line; with rules of its own, whatever --ruleset and --helper say")
	config.Group(f, "How the kernel is used")

	p := &s.Engine.Policy
	f.Uint16Var(&p.MinPort, "min-port", engine.DefaultMinPort, "lowest `port` that a client or server may announce")
	f.BoolVar(&p.Loose, "loose", false, "let clients and servers announce any address, not only their own (FXP; opens the way for bounce attacks)")
	f.Var(prefixesFlag{&p.Allowed}, "allow", "`addresses` that clients and servers may announce besides their own, such as 192.0.2.7,2001:db8::/64")
	f.IntVar(&p.Rate, "rate", engine.DefaultRate, "`number` of data connections that are expected for one client address within a second at most, in each queue")
	config.Group(f, "What is refused")

	a := &s.Engine.Advertise
	f.Var(advertiseFlag{a}, "advertise", "`address` that clients reach the servers at, where NAT happens elsewhere; one of each family at most, as in 203.0.113.55,2001:db8::55")
	f.Var(prefixesFlag{&a.Except}, "advertise-except", "`addresses` of clients that reach the servers directly, such as 10.0.0.0/8")
	config.Group(f, "Where NAT happens elsewhere")

	f.IntVar(&s.Engine.MaxFlows, "max-connections", engine.DefaultMaxFlows, "`number` of control connections that are tracked in each queue at most; beyond it the longest silent one is forgotten")
	f.DurationVar(&s.Engine.HoldTime, "hold-time", engine.DefaultHoldTime, "`duration` that a packet waits at most for the rest of a line")
	config.Group(f, "Limits")

	f.StringVar(&s.Control, "control", control.DefaultPath, "`path` of the control socket, through which status, flows, events and top ask the daemon; \"\" for none")
	f.BoolVar(&s.Outcomes, "outcomes", true, "report whether expected data connections come (events used, expired and closed); the kernel takes about 4 µs for each connection of this host")
	f.Var(addrPortFlag{&s.Metrics}, "metrics", "TCP `address` at which Prometheus can ask, such as 127.0.0.1:9921 (default none)")
	config.Group(f, "Who can ask the daemon")

	f.Var(&s.logFormat, "log-format", "log `format`: text or json, to standard error")
	f.Var(&s.logLevel, "log-level", "log `level`: debug, info, warn or error")
	f.BoolVar(&s.LogOpened, "log-opened", false, "log each data connection that is opened, at level info: client, server, verb, announced and advertised endpoint")
	config.Group(f, "The log")

	config.SetReloadable(f, "ports", "min-port", "loose", "allow", "rate", "advertise", "advertise-except", "max-connections", "hold-time", "log-level", "log-opened")
	return s
}

// ruleSettings are those that say what the rules look like, and what goes with them.
var ruleSettings = []string{"ports", "queue", "queues", "ruleset", "helper", "helper-name", "monitor"}

// outOfRange is about a number with which nothing could be helped.
type outOfRange struct{ name, text string }

func (e outOfRange) Error() string { return "--" + e.name + " " + e.text }

// numbersOutOfRange returns an outOfRange for each number with which nothing could be helped.
func (s *settings) numbersOutOfRange() (all []outOfRange) {
	c := s.Engine
	for _, check := range []struct {
		wrong bool
		is    outOfRange
	}{
		{s.Wish.Rules.Queues < 1, outOfRange{"queues", "must be 1 at least"}},
		{c.Policy.MinPort == 0, outOfRange{"min-port", "must be 1 at least; there is no port 0"}},
		{c.Policy.Rate < 1, outOfRange{"rate", "must be 1 at least"}},
		{c.MaxFlows < 1, outOfRange{"max-connections", "must be 1 at least"}},
		{c.HoldTime <= 0, outOfRange{"hold-time", "must be longer than nothing"}},
	} {
		if check.wrong {
			all = append(all, check.is)
		}
	}
	return all
}

// validate returns an error for settings with which nothing could be helped.
func (s *settings) validate() error {
	var err error
	for _, number := range s.numbersOutOfRange() {
		err = errors.Join(err, number)
	}
	if err != nil {
		return err
	}
	return s.Wish.Validate()
}

// loadFile sets what a configuration file has. It returns an error that says why the file can't be
// read, or config.Errors with all values that are wrong by themselves.
func (s *settings) loadFile(name string) (*config.File, error) {
	file, err := config.Load(name, s.flags)
	var faults config.Errors
	if err != nil && !errors.As(err, &faults) {
		return nil, err
	}
	for _, number := range s.numbersOutOfRange() {
		faults = append(faults, file.Errorf(number.name, "%s %s", number.name, number.text))
	}
	// On the command line, a path is relative to where the user is; the daemon is started anywhere.
	if path := s.Control; path != "" && !filepath.IsAbs(path) {
		faults = append(faults, file.Errorf("control", "control: %q is not an absolute path, such as %s", path, control.DefaultPath))
	}
	if len(faults) == 0 {
		return file, nil
	}
	slices.SortStableFunc(faults, func(a, b *config.Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return file, faults
}

// checkFile returns all that is wrong with a configuration file that the daemon has nothing but.
func (s *settings) checkFile(name string) (*config.File, error) {
	file, err := s.loadFile(name)
	var faults config.Errors
	if err != nil && !errors.As(err, &faults) {
		return nil, err
	}
	// A value that could not be read is its default here: what goes with it would be a guess.
	guess := slices.ContainsFunc(faults, func(e *config.Error) bool {
		return e.Key == "" || slices.Contains(ruleSettings, e.Key)
	})
	if err := s.Wish.Validate(); err != nil && !guess {
		faults = append(faults, file.Errorf("", "%w", err))
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return file, nil
}

// noFile is what --config takes for no file at all; a file of that name is ./none.
const noFile = "none"

// defaultFile is the configuration file that commands read where no other is named and it exists.
var defaultFile = usualFile

// source is where a command has its settings from: the command line, and the configuration file. It is
// the value of --config.
type source struct {
	file        string         // "" for none
	named       bool           // --config names it, or find has chosen it
	found       bool           // file is defaultFile
	notes       io.Writer      // for the note that defaultFile is read; nil for none
	commandLine *pflag.FlagSet // as it was parsed
}

// String implements pflag.Value.
func (src *source) String() string { return src.file }

// Type implements pflag.Value.
func (src *source) Type() string { return "file" }

// Set implements pflag.Value.
func (src *source) Set(file string) error {
	src.file, src.named = file, true
	if file == noFile {
		src.file = ""
	}
	return nil
}

// find looks for defaultFile if --config names no file. It does so once: a daemon that is to read its
// file again has the same one, or an error.
func (src *source) find() {
	if src.named {
		return
	}
	src.named = true
	// An error other than that it does not exist comes up again when it is read.
	if _, err := os.Stat(defaultFile); errors.Is(err, fs.ErrNotExist) {
		return
	}
	src.file, src.found = defaultFile, true
	if src.notes != nil {
		fmt.Fprintf(src.notes, "nfq-ftphelper: settings are read from %s (--config none ignores it)\n", src.file)
	}
}

// addSettings adds to the flags of a command --config, and those of the settings: all, or the named
// ones.
func addSettings(f *pflag.FlagSet, names ...string) *source {
	src := &source{commandLine: newSettings().flags}
	f.SortFlags = false
	f.Var(src, "config", "configuration `file`: YAML, with the names of the flags of run for keys; flags win over it; none for no file (default "+usualFile+", if it exists)")
	src.commandLine.VisitAll(func(flag *pflag.Flag) {
		if len(names) == 0 || slices.Contains(names, flag.Name) {
			f.AddFlag(flag)
		}
	})
	return src
}

// read returns the settings: the flags of the command line, else what the file says now, else the
// defaults.
func (src *source) read() (*settings, error) {
	src.find()
	s := newSettings()
	if src.file != "" {
		if _, err := s.loadFile(src.file); errors.Is(err, fs.ErrPermission) && src.found {
			return nil, fmt.Errorf("%w; --config none does without it", err)
		} else if err != nil {
			return nil, err
		}
	}
	var err error
	src.commandLine.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed {
			err = errors.Join(err, s.flags.Lookup(flag.Name).Value.Set(flag.Value.String()))
		}
	})
	if err == nil {
		err = s.validate()
	}
	if err != nil && src.file != "" {
		err = fmt.Errorf("with the configuration file %s: %w", src.file, err)
	}
	return s, err
}

// keepFixed gives the settings that can't change while the daemon runs the values that they had
// before. It returns the settings that differ after that, with the new values, and the names of those that it
// has reset.
func (s *settings) keepFixed(before *settings) (changed []slog.Attr, fixed []string) {
	s.flags.VisitAll(func(flag *pflag.Flag) {
		value, had := flag.Value.String(), before.flags.Lookup(flag.Name).Value.String()
		switch {
		case value == had:
		case config.Reloadable(flag):
			changed = append(changed, slog.String(flag.Name, value))
		default:
			fixed = append(fixed, flag.Name)
			if err := flag.Value.Set(had); err != nil {
				panic(err) // Set takes what String returns
			}
		}
	})
	return changed, fixed
}
