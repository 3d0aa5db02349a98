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

// settings are the daemon's settings, on the command line and in the configuration file.
type settings struct {
	daemon.Settings
	logFormat logFormat
	logLevel  logLevel

	// flags has a flag for each setting.
	flags *pflag.FlagSet
}

// newSettings returns the defaults. A new setting is one line here, and its name in SetLive if it can change while
// the daemon runs.
func newSettings() *settings {
	s := &settings{logFormat: "text"}
	s.Version = version
	f := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	f.SortFlags = false
	s.flags = f

	w, ports := &s.Request, portsFlag{&s.Request.Rules.Ports}
	if err := ports.Set(rules.DefaultPorts); err != nil {
		panic(err)
	}
	f.Var(ports, "ports", "FTP control `ports`, such as 21,2121,2200-2210")
	f.Uint16Var(&w.Rules.Queue, "queue", rules.DefaultQueue, "`number` of the first queue, 0 to 65535")
	f.Uint16Var(&w.Rules.Queues, "queues", 1, "`number` of consecutive queues, one worker each")
	f.BoolVar(&s.ApplyRules, "rules", false, "apply the rules at start and remove them at stop")
	f.Var(oneOf[rules.Ruleset]{&w.Ruleset, backend.Rulesets}, "ruleset", "what the rules queue: `full|lean`; full is every packet with payload, lean only packets that may have to be read, and needs a carrier (default full, or that of the rules in place)")
	config.Group(f, "Rules and queues")

	w.Helper = backend.Auto
	f.Var(oneOf[backend.Helper]{&w.Helper, backend.Helpers}, "helper", "conntrack helper `type`: carrier (a kernel helper that ignores FTP), cthelper (registered by the daemon), or auto (carrier)")
	f.StringVar(&w.Name, "helper-name", "", "`name` of the carrier or cthelper (default sane or ftp)")
	f.BoolVar(&s.KeepHelper, "keep-helper", false, "leave a cthelper registered at stop, so that rules that name it can be loaded")
	f.BoolVar(&w.Monitor, "monitor", false, "decide and log, but open and change nothing: no helper, no expectation, no rewritten line; --ruleset and --helper are ignored")
	config.Group(f, "How the kernel is used")

	p := &s.Engine.Policy
	f.Uint16Var(&p.MinPort, "min-port", engine.DefaultMinPort, "lowest `port` that a client or server may announce, 1 to 65535")
	f.BoolVar(&p.Loose, "loose", false, "allow clients and servers to announce any address, as for FXP; this permits bounce attacks")
	f.Var(prefixesFlag{&p.Allowed}, "allow", "`addresses` that clients and servers may announce besides their own, such as 192.0.2.7,2001:db8::/64 (default none)")
	f.IntVar(&p.Rate, "rate", engine.DefaultRate, "largest `number` of data connections per second for one client address, in each queue")
	config.Group(f, "Policy")

	a := &s.Engine.Advertise
	f.Var(advertiseFlag{a}, "advertise", "public `address` to announce in 227, where another device does the NAT; at most one of each family, such as 203.0.113.55,2001:db8::55 (default none)")
	f.Var(prefixesFlag{&a.Except}, "advertise-except", "`addresses` of clients that reach the servers without that NAT, such as 10.0.0.0/8 (default none)")
	config.Group(f, "NAT by another device")

	f.IntVar(&s.Engine.MaxFlows, "max-connections", engine.DefaultMaxFlows, "largest `number` of control connections in each queue; beyond it the least recently used is evicted")
	f.DurationVar(&s.Engine.HoldTime, "hold-time", engine.DefaultHoldTime, "longest `duration` for which a packet is held for the rest of a line")
	config.Group(f, "Limits")

	f.StringVar(&s.Control, "control", control.DefaultPath, "`path` of the control socket, which status, flows, events and top use; \"\" for none")
	f.BoolVar(&s.Outcomes, "outcomes", true, "report what becomes of expected data connections (events used, expired and closed); this costs about 4 µs for each connection of this host")
	f.Var(addrPortFlag{&s.Metrics}, "metrics", "TCP `address` for Prometheus, such as 127.0.0.1:9921 (default none)")
	config.Group(f, "Control socket and metrics")

	f.Var(&s.logFormat, "log-format", "log `format` on standard error: text or json")
	f.Var(&s.logLevel, "log-level", "log `level`: debug, info, warn or error")
	f.BoolVar(&s.LogOpened, "log-opened", false, "log each data connection that is opened, at level info: client, server, verb, announced and advertised endpoint")
	config.Group(f, "Log")

	config.SetReloadable(f, "ports", "min-port", "loose", "allow", "rate", "advertise", "advertise-except", "max-connections", "hold-time", "log-level", "log-opened")
	return s
}

// ruleSettings are the names of the settings that determine the rules.
var ruleSettings = []string{"ports", "queue", "queues", "ruleset", "helper", "helper-name", "monitor"}

// outOfRange is the error of a number with which no connection could be helped.
type outOfRange struct{ name, text string }

func (e outOfRange) Error() string { return "--" + e.name + " " + e.text }

// numbersOutOfRange returns an outOfRange for each wrong number.
func (s *settings) numbersOutOfRange() (all []outOfRange) {
	c := s.Engine
	for _, check := range []struct {
		wrong bool
		is    outOfRange
	}{
		{s.Request.Rules.Queues < 1, outOfRange{"queues", "must be at least 1"}},
		{c.Policy.MinPort == 0, outOfRange{"min-port", "must be at least 1"}},
		{c.Policy.Rate < 1, outOfRange{"rate", "must be at least 1"}},
		{c.MaxFlows < 1, outOfRange{"max-connections", "must be at least 1"}},
		{c.HoldTime <= 0, outOfRange{"hold-time", "must be longer than 0"}},
	} {
		if check.wrong {
			all = append(all, check.is)
		}
	}
	return all
}

// validate returns an error for settings with which no connection could be helped.
func (s *settings) validate() error {
	var err error
	for _, number := range s.numbersOutOfRange() {
		err = errors.Join(err, number)
	}
	if err != nil {
		return err
	}
	return s.Request.Validate()
}

// loadFile applies a configuration file. It returns an error if the file cannot be read, or config.Errors with all
// wrong values.
func (s *settings) loadFile(name string) (*config.File, error) {
	file, err := config.Load(name, s.flags)
	var faults config.Errors
	if err != nil && !errors.As(err, &faults) {
		return nil, err
	}
	for _, number := range s.numbersOutOfRange() {
		faults = append(faults, file.Errorf(number.name, "%s %s", number.name, number.text))
	}
	// Only on the command line a path is relative to the user's folder.
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

// checkFile returns all faults of a configuration file that is used without flags.
func (s *settings) checkFile(name string) (*config.File, error) {
	file, err := s.loadFile(name)
	var faults config.Errors
	if err != nil && !errors.As(err, &faults) {
		return nil, err
	}
	// A malformed value has its default here, so faults of combinations would be guesses.
	guess := slices.ContainsFunc(faults, func(e *config.Error) bool {
		return e.Key == "" || slices.Contains(ruleSettings, e.Key)
	})
	if err := s.Request.Validate(); err != nil && !guess {
		faults = append(faults, file.Errorf("", "%w", err))
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return file, nil
}

// noFile is the value of --config for no file; a file of that name is ./none.
const noFile = "none"

// defaultFile is the configuration file that commands read if it exists and --config names no other.
var defaultFile = usualFile

// source is where a command's settings come from: the command line and the configuration file. It is the value of
// --config.
type source struct {
	file        string         // "" for none
	named       bool           // by --config or find
	found       bool           // file is defaultFile
	notes       io.Writer      // receives a note if defaultFile is read; nil for none
	commandLine *pflag.FlagSet // as parsed
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

// find chooses defaultFile if it exists and --config names no file. It does so once, so that a reload reads the same
// file.
func (src *source) find() {
	if src.named {
		return
	}
	src.named = true
	// Another error is reported when the file is read.
	if _, err := os.Stat(defaultFile); errors.Is(err, fs.ErrNotExist) {
		return
	}
	src.file, src.found = defaultFile, true
	if src.notes != nil {
		fmt.Fprintf(src.notes, "nfq-ftphelper: settings are read from %s (--config none ignores it)\n", src.file)
	}
}

// addSettings adds to the flags of a command --config and the settings: all, or the named ones.
func addSettings(f *pflag.FlagSet, names ...string) *source {
	src := &source{commandLine: newSettings().flags}
	f.SortFlags = false
	f.Var(src, "config", "configuration `file`: YAML with the names of run's flags as keys; flags take precedence; none for no file (default "+usualFile+", if it exists)")
	src.commandLine.VisitAll(func(flag *pflag.Flag) {
		if len(names) == 0 || slices.Contains(names, flag.Name) {
			f.AddFlag(flag)
		}
	})
	return src
}

// read returns the settings: flags of the command line take precedence over the file, and both over the defaults.
func (src *source) read() (*settings, error) {
	src.find()
	s := newSettings()
	if src.file != "" {
		if _, err := s.loadFile(src.file); errors.Is(err, fs.ErrPermission) && src.found {
			return nil, fmt.Errorf("%w; --config none ignores it", err)
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

// keepFixed restores the settings that cannot change while the daemon runs. It returns the settings that differ
// after that, with the new values, and the names of those that it has restored.
func (s *settings) keepFixed(before *settings) (changed []slog.Attr, fixed []string) {
	s.flags.VisitAll(func(flag *pflag.Flag) {
		value, old := flag.Value.String(), before.flags.Lookup(flag.Name).Value.String()
		switch {
		case value == old:
		case config.Reloadable(flag):
			changed = append(changed, slog.String(flag.Name, value))
		default:
			fixed = append(fixed, flag.Name)
			if err := flag.Value.Set(old); err != nil {
				panic(err) // Set takes what String returns
			}
		}
	})
	return changed, fixed
}
