package daemon

import (
	"errors"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

const (
	// calmTime is how long no table may change before rules that were removed are applied again. A
	// firewall that is restarted removes all rules first, and loads its own after that.
	calmTime = time.Second
	// maxCalmTime is how long that is waited for at most.
	maxCalmTime = 10 * time.Second
	// restoreTime is the least time between two times that removed rules are applied again: a program that
	// keeps removing them is not fought.
	restoreTime = time.Minute
)

// ruleWatch notices that the rules change while the daemon runs.
type ruleWatch struct {
	*rules.Watch             // nil: changes cannot be noticed
	calm         *time.Timer // of the period without changes that is waited for
	waits        time.Time   // since when; zero if it is not waited for
	restored     time.Time   // when rules were applied again
	wrong        string      // what was wrong with them when they were last looked at
}

// watchRules begins to watch the rules.
func (d *daemon) watchRules() {
	d.watch.calm = time.NewTimer(0)
	<-d.watch.calm.C
	w, err := rules.NewWatch()
	if err != nil {
		d.log.Warn("the daemon will not notice that the rules are removed or changed", "why", err)
		return
	}
	d.watch.Watch = w
	go func() {
		if err := w.Run(); err != nil {
			d.log.Warn("the daemon will not notice any more that the rules are removed or changed", "why", err)
		}
	}()
}

func (d *daemon) closeWatch() error {
	if d.watch.Watch == nil {
		return nil
	}
	return d.watch.Close()
}

// ownChanged and anyChanged have a value when the rules or those of any table have changed.
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

// wait begins to wait for calm, or does so anew.
func (w *ruleWatch) wait() {
	now := time.Now()
	if w.waits.IsZero() {
		w.waits = now
	}
	w.calm.Reset(min(calmTime, time.Until(w.waits.Add(maxCalmTime))))
}

// rulesChanged looks at the rules after a change, and warns at once if they are not those that the daemon
// works with any more.
func (d *daemon) rulesChanged() {
	w := &d.watch
	if !w.waits.IsZero() {
		w.wait()
		return // settleRules looks
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

// checkRules is rules.Check, which reads part by part: if the rules change meanwhile, it reads some of the
// old and some of the new ones. So what it returns counts if it does so twice.
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

// warnOfChange says what is wrong with the rules.
func (d *daemon) warnOfChange(err error) {
	if errors.Is(err, rules.ErrMissing) {
		d.watch.wrong = textOf(err)
		d.log.Warn("the rules have been removed: new FTP connections are not helped", "why", err)
		return
	}
	d.warnOfRules(err)
}

// tablesChanged has settleRules wait for longer.
func (d *daemon) tablesChanged() {
	if !d.watch.waits.IsZero() {
		d.watch.wait()
	}
}

// settleRules looks again when no table changes any more, and applies rules that were removed, if they are
// the daemon's.
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
		d.log.Warn("the rules have been removed again, and stay so: something keeps removing them; stop that, then reload or restart the daemon", "why", err)
		return
	}
	w.restored = time.Now()
	if _, err := rules.Apply(d.choice.Rules); err != nil {
		w.wrong = textOf(err)
		d.log.Error("the rules cannot be applied again: reload or restart the daemon", "why", err)
		return
	}
	w.wrong = ""
	d.ownPorts = d.choice.Rules.Ports
	d.log.Warn("the rules had been removed, and are applied again; connections that were opened meanwhile are not helped", "ports", rules.FormatPorts(d.ownPorts, ","))
}

// rulesRight says that the rules are as they should be again.
func (d *daemon) rulesRight() {
	d.watch.wrong = ""
	d.log.Info("the rules are in place again")
	d.server.state.Store(&ruleState{d.choice.Rules, true})
}

// textOf is the text of an error, "" for none.
func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
