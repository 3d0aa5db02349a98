package daemon

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"
)

// reloadTimeout is how long a queue may take to get new settings.
const reloadTimeout = 10 * time.Second

// reload puts new settings in force, all or none. No packet and no connection is lost.
func (d *daemon) reload(ctx context.Context, s Settings) {
	if err := d.settings.changeable(s); err != nil {
		d.log.Error("reload refused, the settings stay as they are", "reason", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	if err := d.do(ctx, func(w *worker) { w.engine.Configure(s.Engine) }); err != nil {
		d.log.Error("reload failed", "reason", err)
		return
	}
	d.settings = s
	d.log.Info("reloaded")
}

// changeable returns an error if s differs from the settings in what takes a new start.
func (s Settings) changeable(to Settings) error {
	to.Wish.Installed = s.Wish.Installed
	switch {
	case !reflect.DeepEqual(s.Wish, to.Wish):
		return fmt.Errorf("ports, queue, queues, ruleset, helper, helper-name and sequence can't change while the daemon runs: restart it")
	case s.ApplyRules != to.ApplyRules, s.KeepHelper != to.KeepHelper:
		return errors.New("rules and keep-helper can't change while the daemon runs: restart it")
	}
	return nil
}
