package daemon

import (
	"errors"
	"fmt"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// fill makes packets come to the queues: it registers the helper, if that is one of ours, and
// applies the rules, if they are ours to apply. It says whose the rules are, and whether they are as
// the settings say.
func (d *daemon) fill() (whose string, checked bool, err error) {
	if d.choice.Helper == backend.CTHelper {
		if err := cthelper.Register(d.helper()); err != nil {
			return "", false, err
		}
	}
	if whose, checked, err = d.ensureRules(); err != nil {
		return "", false, errors.Join(err, d.disable(), d.unregister())
	}
	return whose, checked, nil
}

// unfill undoes fill. Removing rules or a helper drops all packets that wait in any queue: the
// queues have to be empty.
func (d *daemon) unfill() error {
	var err error
	if d.settings.ApplyRules {
		err = d.removeRules()
	}
	return errors.Join(err, d.unregister())
}

// unregister removes the helper, unless it is to stay, or rules that are not ours hold it.
func (d *daemon) unregister() error {
	if d.choice.Helper != backend.CTHelper || d.settings.KeepHelper {
		return nil
	}
	err := cthelper.Unregister(d.choice.Rules.Helper)
	if errors.Is(err, cthelper.ErrInUse) {
		d.log.Warn("the helper is left in place, disabled", "why", err)
		return nil
	}
	return err
}

// disable ends that the kernel queues for the helper, while the queue is still served: it does
// not adjust sequence numbers in packets that it queues for nobody (nf_confirm).
func (d *daemon) disable() error {
	if !d.choice.KernelQueues() {
		return nil
	}
	h := d.helper()
	h.Enabled = false
	return cthelper.Register(h)
}

// helper is the one that is registered.
func (d *daemon) helper() cthelper.Helper {
	c := d.choice
	return cthelper.Helper{Name: c.Rules.Helper, Queue: c.Rules.Queue, Enabled: c.KernelQueues()}
}

// ensureRules applies the rules if it is to.
func (d *daemon) ensureRules() (whose string, checked bool, err error) {
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

// warnOfRules says that the rules are not those that the daemon works with, if so: somebody else's, or
// its own that somebody has changed.
func (d *daemon) warnOfRules(err error) {
	d.watch.wrong = textOf(err)
	if err == nil {
		return
	}
	mend := "put them there with \"nfq-ftphelper rules apply\", or use --rules"
	if d.settings.Wish.Monitor {
		mend = "put them there with \"nfq-ftphelper rules apply --monitor\", or use --rules"
	}
	if d.settings.ApplyRules {
		mend = "somebody has changed them; delete the table and reload, or restart the daemon"
	}
	d.log.Warn("the rules are not as the settings say, the queue may stay empty: "+mend, "why", err)
}

// removeRules removes the rules that were applied, unless they are somebody else's by now.
func (d *daemon) removeRules() error {
	switch err := rules.Check(d.choice.Rules); {
	case errors.Is(err, rules.ErrMissing):
		return nil
	case err != nil:
		d.log.Warn("the rules are left in place: they are not those that were applied", "why", err)
		return nil
	}
	return rules.Remove()
}
