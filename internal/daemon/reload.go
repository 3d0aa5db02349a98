package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Reload delivers new settings to a running daemon; the zero Reload delivers none.
type Reload struct {
	// Requests receives a value for each request to read the settings again. A request before the daemon
	// is ready waits; one after the stop is ignored.
	Requests <-chan os.Signal
	// Read returns the new settings. After an error, those in force stay.
	Read func() (Change, error)
}

// Change is the result of a Reload's Read.
type Change struct {
	// Settings are complete. Their Engine, LogOpened and the ports of their Request are applied; the rest is
	// ignored.
	Settings Settings
	// Changed are the settings that differ from those in force, with their new values, for the log.
	Changed []slog.Attr
	// NeedRestart are the names of changed settings that take effect at a restart only; Settings has the
	// values in force.
	NeedRestart []string
	// InForce is called once the settings are applied.
	InForce func()
}

// reloadTimeout is the longest time in which all queues take new settings.
const reloadTimeout = 5 * time.Second

// reload reads settings and applies all of them or none. No packet and no connection is lost.
func (d *daemon) reload(ctx context.Context, read func() (Change, error)) {
	c, err := read()
	if err == nil {
		err = d.change(ctx, c.Settings)
	}
	if err != nil {
		if ctx.Err() == nil { // the daemon does not stop
			d.log.Error("reload refused: settings unchanged", "why", err)
		}
		return
	}
	c.InForce()
	if len(c.Changed) == 0 {
		c.Changed = []slog.Attr{slog.String("changed", "nothing")}
	}
	level := slog.LevelInfo
	if len(c.NeedRestart) > 0 {
		level = slog.LevelWarn
		c.Changed = append(c.Changed, slog.String("needs_restart", strings.Join(c.NeedRestart, ",")))
	}
	d.log.LogAttrs(ctx, level, "reloaded", c.Changed...)
}

func (d *daemon) change(ctx context.Context, s Settings) error {
	err := d.configure(ctx, s.Engine)
	if err == nil {
		err = d.setPorts(s.Request.Rules.Ports)
	}
	if err != nil {
		return errors.Join(err, d.configure(context.WithoutCancel(ctx), d.settings.Engine))
	}
	d.settings.Engine = s.Engine
	d.eventLog.opened.Store(s.LogOpened)
	return nil
}

// configure applies the settings to all engines.
func (d *daemon) configure(ctx context.Context, c engine.Config) error {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	return d.do(ctx, func(w *worker) { w.engine.Configure(c) })
}

// setPorts changes the ports in the rules, if the daemon manages them. It restores rules that have been
// removed, such as with "nft flush ruleset".
func (d *daemon) setPorts(ports []rules.PortRange) error {
	before := d.choice.Rules
	after := before
	after.Ports = ports
	var err error
	switch missing := errors.Is(rules.Check(before), rules.ErrMissing); {
	case !d.settings.ApplyRules:
	case missing:
		d.log.Warn("rules restored")
		if _, err = rules.Apply(after); err == nil {
			d.ownPorts = ports
		}
	case !slices.Equal(before.Ports, after.Ports):
		var own []rules.PortRange
		if own, err = rules.SetPorts(d.ownPorts, ports); err == nil {
			d.ownPorts = own
		}
	}
	if err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	d.choice.Rules.Ports, d.settings.Request.Rules.Ports = ports, ports
	differs := rules.Check(after)
	d.warnOfRules(differs)
	d.server.state.Store(&ruleState{after, d.settings.ApplyRules || differs == nil})
	return nil
}
