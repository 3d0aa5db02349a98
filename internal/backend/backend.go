// Package backend chooses how control connections get a conntrack helper, from what was asked for and
// what the kernel has.
//
// The kernel takes expectations only for a connection that has a helper. A carrier is one of the
// kernel's own, which does nothing with FTP; a cthelper is one that the daemon registers
// (nfnetlink_cthelper), so that rules can call it "ftp", and whose packets the kernel queues by
// itself.
package backend

import (
	"errors"
	"fmt"
	"slices"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Helper is a way for control connections to get a helper.
type Helper string

// The ways. Auto is Carrier: a cthelper has to be asked for, since FTP stands still when its daemon dies.
const (
	Auto     Helper = "auto"
	Carrier  Helper = "carrier"
	CTHelper Helper = "cthelper"
	// None is that of a daemon which only monitors; it cannot be asked for.
	None Helper = "none"
)

// Helpers lists them.
var Helpers = []Helper{Auto, Carrier, CTHelper}

// Rulesets are those that can be asked for.
var Rulesets = []rules.Ruleset{rules.Full, rules.Lean}

// DefaultCTHelper is the name of a cthelper where no other is asked for: that of the kernel's own,
// which rules of the classic howtos match.
const DefaultCTHelper = "ftp"

// Wish is what was asked for.
type Wish struct {
	// Rules are the ports and queues; the ruleset and its helper are for Choose to fill in.
	Rules rules.Config
	// Ruleset is rules.Lean, or rules.Full for the one that goes with Helper; "" is rules.Full,
	// unless the lean rules are in place.
	Ruleset rules.Ruleset
	// Installed says that the rules are not the daemon's to apply: those that are there count.
	Installed bool
	Helper    Helper // "" is Auto
	// Name is that of the helper to attach; "" for the first carrier that the kernel has, or
	// DefaultCTHelper.
	Name string
	// Monitor is for a daemon that opens and changes nothing: Ruleset, Helper and Name are not used.
	Monitor bool
}

// Choice is what is to be done.
type Choice struct {
	// Rules are complete.
	Rules rules.Config
	// Helper is Carrier, CTHelper or None; Why says in a few words why.
	Helper Helper
	Why    string
}

// Enabled reports whether the kernel queues the packets of the cthelper by itself.
func (c Choice) Enabled() bool { return c.Rules.Ruleset == rules.CTHelper }

// Kernel is what Choose asks the kernel.
type Kernel interface {
	// Carrier returns an error if there is no helper of that name.
	Carrier(name string) error
	// CTHelper returns an error if none can be registered.
	CTHelper() error
	// Installed returns an error if these are not the rules that are there.
	Installed(rules.Config) error
}

// Host is the kernel that the program runs on, in the network namespace of the calling thread.
type Host struct{}

// Carrier implements Kernel.
func (Host) Carrier(name string) error { return rules.ProbeCarrier(name) }

// CTHelper implements Kernel.
func (Host) CTHelper() error { return cthelper.Probe() }

// Installed implements Kernel.
func (Host) Installed(c rules.Config) error { return rules.Check(c) }

// Validate returns an error if no kernel could do what is asked for.
func (w Wish) Validate() error {
	switch {
	case w.Helper != "" && !slices.Contains(Helpers, w.Helper):
		return fmt.Errorf("the helper is to be %q, and can be auto, carrier or cthelper", w.Helper)
	case w.Name != "" && (w.Helper == Auto || w.Helper == ""):
		return fmt.Errorf("a helper has the name %q, and nothing says whether it is a carrier or a cthelper", w.Name)
	case !slices.Contains(Rulesets, w.ruleset()):
		return fmt.Errorf("the ruleset is to be %q, and can be full or lean", w.Ruleset)
	case w.Ruleset == rules.Lean && w.Helper == CTHelper:
		return errors.New("the ruleset lean does not go with a cthelper, for which the kernel queues every packet; use a carrier")
	}
	return w.candidates()[0].Rules.Validate()
}

// candidates are the choices that there are, the best one first.
func (w Wish) candidates() []Choice {
	if w.Monitor {
		return []Choice{w.choice(None, "", rules.Monitor)}
	}
	if w.Helper == CTHelper {
		return []Choice{w.choice(CTHelper, w.names(DefaultCTHelper)[0], rules.CTHelper)}
	}
	var all []Choice
	for _, name := range w.names(rules.Carriers...) {
		all = append(all, w.choice(Carrier, name, w.ruleset()))
	}
	return all
}

func (w Wish) ruleset() rules.Ruleset {
	if w.Ruleset == "" {
		return rules.Full
	}
	return w.Ruleset
}

func (w Wish) names(usual ...string) []string {
	if w.Name != "" {
		return []string{w.Name}
	}
	return usual
}

func (w Wish) choice(h Helper, name string, ruleset rules.Ruleset) Choice {
	c := Choice{Rules: w.Rules, Helper: h}
	c.Rules.Helper, c.Rules.Ruleset = name, ruleset
	return c
}

// Choose returns the best choice that the kernel can do, or an error that says, of each one, why
// it can't. The wish has to be valid.
func Choose(w Wish, k Kernel) (Choice, error) {
	candidates := w.candidates()
	if c, ok := w.installed(k); ok {
		return c, nil
	}
	var missing []error
	for _, c := range candidates {
		err := c.Rules.Validate()
		if err == nil {
			err = c.possible(k)
		}
		if err != nil {
			missing = append(missing, err)
			continue
		}
		switch {
		case w.Monitor:
			c.Why = "as --monitor asks for"
		case len(missing) > 0:
			c.Why = fmt.Sprintf("%s is not there", candidates[0].Rules.Helper)
		case w.Helper == Carrier || w.Helper == CTHelper:
			c.Why = "as asked for"
		default:
			c.Why = "the kernel has it"
		}
		return c, nil
	}
	if w.Helper != Carrier && w.Helper != CTHelper && w.Ruleset != rules.Lean && k.CTHelper() == nil {
		missing = append(missing, errors.New("the kernel can have a helper in user space instead: --helper cthelper"))
	}
	return Choice{}, errors.Join(missing...)
}

func (c Choice) possible(k Kernel) error {
	switch c.Helper {
	case None:
		return nil
	case Carrier:
		return k.Carrier(c.Rules.Helper)
	}
	return k.CTHelper()
}

// installed returns the choice to which the rules belong that are in place, if they are what
// counts.
func (w Wish) installed(k Kernel) (Choice, bool) {
	if !w.Installed {
		return Choice{}, false
	}
	if w.Monitor {
		return Choice{}, false // there is one choice only
	}
	wishes := []Wish{w}
	lean := w
	lean.Ruleset = rules.Lean
	if w.Ruleset == "" && lean.Validate() == nil {
		wishes = append(wishes, lean)
	}
	for _, as := range wishes {
		for _, c := range as.candidates() {
			if k.Installed(c.Rules) == nil {
				c.Why = "the rules that are in place attach it"
				return c, true
			}
		}
	}
	return Choice{}, false
}
