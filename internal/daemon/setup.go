package daemon

import (
	"errors"
	"fmt"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// setUp makes the kernel queue packets: it registers the cthelper if there is one, applies the rules if the
// daemon manages them, and starts to serve the status.
func (d *daemon) setUp() error {
	if d.choice.Helper == backend.CTHelper {
		if err := cthelper.Register(d.helper()); err != nil {
			return err
		}
	}
	source, checked, err := d.ensureRules()
	if err != nil {
		return errors.Join(err, d.disable(), d.unregister())
	}
	d.server.serve(ruleState{d.choice.Rules, checked})
	d.log.Info("ready", "queue", d.choice.Rules.Queue, "queues", d.choice.Rules.Queues, "rules", source)
	return nil
}

// tearDown undoes setUp. Removing rules or a helper drops all packets that wait in any queue, so the
// queues must be empty.
func (d *daemon) tearDown() error {
	var err error
	if d.settings.ApplyRules {
		err = d.removeRules()
	}
	return errors.Join(err, d.unregister())
}

// unregister removes the helper, unless KeepHelper is set or rules of others use it.
func (d *daemon) unregister() error {
	if d.choice.Helper != backend.CTHelper || d.settings.KeepHelper {
		return nil
	}
	err := cthelper.Unregister(d.choice.Rules.Helper)
	if errors.Is(err, cthelper.ErrInUse) {
		d.log.Warn("helper left in place, disabled", "why", err)
		return nil
	}
	return err
}

// disable stops the kernel from queueing packets for the helper. It must be called while the queue is
// served: without a program that serves it, the kernel does not adjust sequence numbers in packets that it
// queues (nf_confirm).
func (d *daemon) disable() error {
	if !d.choice.KernelQueues() {
		return nil
	}
	h := d.helper()
	h.Enabled = false
	return cthelper.Register(h)
}

// helper returns the helper to register.
func (d *daemon) helper() cthelper.Helper {
	c := d.choice
	return cthelper.Helper{Name: c.Rules.Helper, Queue: c.Rules.Queue, Enabled: c.KernelQueues()}
}

// ensureRules applies the rules, if the daemon manages them. It returns where the rules come from, and
// whether they are as the settings require.
func (d *daemon) ensureRules() (source string, checked bool, err error) {
	c := d.choice.Rules
	err = rules.Check(c)
	switch {
	case err == nil:
		return "in place", true, nil
	case !d.settings.ApplyRules:
		d.warnOfRules(err)
		return "not as the settings say", false, nil
	}
	statement, err := rules.Apply(c)
	if statement == "" {
		return "own", true, err
	}
	return fmt.Sprintf("own (%s)", statement), true, err
}

// warnOfRules logs a fault of the rules, as rules.Check returns it; nil is no fault.
func (d *daemon) warnOfRules(err error) {
	d.watch.wrong = textOf(err)
	if err == nil {
		return
	}
	apply := "nfq-ftphelper rules apply"
	if d.settings.Request.Monitor {
		apply += " --monitor"
	}
	switch {
	case errors.Is(err, rules.ErrMissing):
		d.log.Warn(fmt.Sprintf("no FTP will be helped: table inet nfq_ftphelper is missing: run %q, or use --rules", apply))
	case d.settings.ApplyRules:
		d.log.Warn("FTP may not be helped: another program has changed the rules: delete the table and reload, or restart the daemon", "why", err)
	default:
		d.log.Warn(fmt.Sprintf("FTP may not be helped: the rules differ from the settings: run %q, or use --rules", apply), "why", err)
	}
}

// removeRules removes the rules that were applied, unless they have been changed since.
func (d *daemon) removeRules() error {
	switch err := rules.Check(d.choice.Rules); {
	case errors.Is(err, rules.ErrMissing):
		return nil
	case err != nil:
		d.log.Warn("rules left in place: they differ from those that were applied", "why", err)
		return nil
	}
	return rules.Remove()
}
