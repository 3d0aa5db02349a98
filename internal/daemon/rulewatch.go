package daemon

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

const (
	// calmTime is the period without a change of any table after which removed rules are applied again. A
	// firewall that restarts removes all rules first, and then loads its own.
	calmTime = time.Second
	// maxCalmTime is the longest wait for such a period.
	maxCalmTime = 10 * time.Second
	// restoreTime is the shortest time between two restorations of removed rules: a program that keeps
	// removing them is not fought.
	restoreTime = time.Minute
)

// ruleWatch notices that the rules change while the daemon runs.
type ruleWatch struct {
	readyAtOnce
	*rules.Watch // nil: changes cannot be noticed
	log          *slog.Logger
	calm         *time.Timer // fires after a period without changes
	waits        time.Time   // when the wait for that period began; zero for no wait
	restored     time.Time   // when rules were applied again
	wrong        string      // what was wrong with the rules at the last check
}

// newRuleWatch subscribes to changes of the rules.
func newRuleWatch(log *slog.Logger) ruleWatch {
	w := ruleWatch{log: log, calm: time.NewTimer(0)}
	<-w.calm.C
	var err error
	if w.Watch, err = rules.NewWatch(); err != nil {
		log.Warn("removed or changed rules will not be noticed", "why", err)
	}
	return w
}

// String implements task.
func (w *ruleWatch) String() string { return "rule watch" }

// Run receives changes until ctx is done. An error ends that, but not the daemon.
func (w *ruleWatch) Run(ctx context.Context) error {
	if w.Watch == nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { _ = w.Close() })()
	if err := w.Watch.Run(); err != nil {
		w.log.Warn("removed or changed rules are not noticed any more", "why", err)
	}
	return nil
}

// ownChanged and anyChanged receive a value when the own table, or any table, has changed.
func (w *ruleWatch) ownChanged() <-chan struct{} {
	if w.Watch == nil {
		return nil
	}
	return w.Own()
}

func (w *ruleWatch) anyChanged() <-chan struct{} {
	if w.Watch == nil {
		return nil
	}
	return w.Any()
}

// wait starts or restarts the wait for a period without changes.
func (w *ruleWatch) wait() {
	now := time.Now()
	if w.waits.IsZero() {
		w.waits = now
	}
	w.calm.Reset(min(calmTime, time.Until(w.waits.Add(maxCalmTime))))
}

// rulesChanged checks the rules after a change, and warns at once of a new fault.
func (d *daemon) rulesChanged() {
	w := &d.watch
	if !w.waits.IsZero() {
		w.wait()
		return // settleRules checks
	}
	err := d.checkRules()
	switch {
	case textOf(err) == w.wrong:
		return
	case err == nil:
		d.rulesRight()
		return
	}
	d.warnOfChange(err)
	w.wait()
}

// checkRules calls rules.Check until two results in succession agree: Check reads part by part, and mixes
// old and new rules if they change meanwhile.
func (d *daemon) checkRules() error {
	const most = 5
	err := rules.Check(d.choice.Rules)
	for range most {
		before := textOf(err)
		if err = rules.Check(d.choice.Rules); textOf(err) == before {
			break
		}
	}
	return err
}

// warnOfChange logs what is wrong with the rules after a change.
func (d *daemon) warnOfChange(err error) {
	if errors.Is(err, rules.ErrMissing) {
		d.watch.wrong = textOf(err)
		d.log.Warn("rules removed: new FTP connections are not helped", "why", err)
		return
	}
	d.warnOfRules(err)
}

// tablesChanged postpones settleRules.
func (d *daemon) tablesChanged() {
	if !d.watch.waits.IsZero() {
		d.watch.wait()
	}
}

// settleRules checks again when no table changes any more, and restores removed rules, if the daemon
// manages them.
func (d *daemon) settleRules() {
	w := &d.watch
	w.waits = time.Time{}
	err := d.checkRules()
	switch {
	case err == nil:
		if w.wrong != "" {
			d.rulesRight()
		}
		return
	case !d.settings.ApplyRules, !errors.Is(err, rules.ErrMissing):
		if w.wrong != textOf(err) {
			d.warnOfChange(err)
		}
		return
	case !w.restored.IsZero() && time.Since(w.restored) < restoreTime:
		w.wrong = textOf(err)
		d.log.Warn("rules removed again, not restored: find the program that removes them, then reload or restart the daemon", "why", err)
		return
	}
	w.restored = time.Now()
	if _, err := rules.Apply(d.choice.Rules); err != nil {
		w.wrong = textOf(err)
		d.log.Error("rules not restored: reload or restart the daemon", "why", err)
		return
	}
	w.wrong = ""
	d.ownPorts = d.choice.Rules.Ports
	d.log.Warn("rules restored: connections that were opened meanwhile are not helped", "ports", rules.FormatPorts(d.ownPorts, ","))
}

// rulesRight logs that the fault of the rules is fixed.
func (d *daemon) rulesRight() {
	d.watch.wrong = ""
	d.log.Info("rules in place again")
	d.server.state.Store(&ruleState{d.choice.Rules, true})
}

// textOf returns the text of an error, "" for nil.
func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
