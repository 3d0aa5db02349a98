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

// Reload is how a daemon gets other settings while it runs; with the zero Reload it gets none.
type Reload struct {
	// Asked has a value when settings are to be read again. What comes before the daemon is ready
	// waits; from the stop on, nobody looks.
	Asked <-chan os.Signal
	// Read returns the settings as they are to be, or an error that says why they can't be read: those
	// in force stay then.
	Read func() (Change, error)
}

// Change is what Reload reads.
type Change struct {
	// Settings are all of them. Their Engine, LogOpened and the ports of their Wish are put in force; the rest
	// stays as it was.
	Settings Settings
	// Changed are the settings that differ from those in force, with their new values, for the log.
	Changed []slog.Attr
	// NeedRestart are the names of settings that have changed, too, but can't while the daemon runs:
	// Settings has the values in force.
	NeedRestart []string
	// InForce is called once they are in force.
	InForce func()
}

// reloadTimeout is how long the queues may take to get new settings.
const reloadTimeout = 5 * time.Second

// reload reads settings and puts them in force, all or none. No packet is lost, and no connection.
func (d *daemon) reload(ctx context.Context, read func() (Change, error)) {
	c, err := read()
	if err == nil {
		err = d.change(ctx, c.Settings)
	}
	if err != nil {
		if ctx.Err() == nil { // or it makes no difference any more
			d.log.Error("reload refused, the settings stay as they are", "why", err)
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
		err = d.setPorts(s.Wish.Rules.Ports)
	}
	if err != nil {
		return errors.Join(err, d.configure(context.WithoutCancel(ctx), d.settings.Engine))
	}
	d.settings.Engine = s.Engine
	d.eventLog.opened.Store(s.LogOpened)
	return nil
}

// configure has all engines use the settings.
func (d *daemon) configure(ctx context.Context, c engine.Config) error {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	return d.do(ctx, func(w *worker) { w.engine.Configure(c) })
}

// setPorts has the rules queue other ports, if they are the daemon's. It applies them again if
// somebody has removed them, such as with "nft flush ruleset".
func (d *daemon) setPorts(ports []rules.PortRange) error {
	before := d.choice.Rules
	after := before
	after.Ports = ports
	var err error
	switch missing := errors.Is(rules.Check(before), rules.ErrMissing); {
	case !d.settings.ApplyRules:
	case missing:
		d.log.Warn("the rules had been removed, and are applied again")
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
	d.choice.Rules.Ports, d.settings.Wish.Rules.Ports = ports, ports
	differs := rules.Check(after)
	d.warnOfRules(differs)
	d.server.state.Store(&ruleState{after, d.settings.ApplyRules || differs == nil})
	return nil
}
