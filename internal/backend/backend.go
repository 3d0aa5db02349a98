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
type Request struct {
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
type Plan struct {
	// Rules are complete.
	Rules rules.Config
	// Helper is Carrier, CTHelper or None; Why says in a few words why.
	Helper Helper
	Why    string
}

// Enabled reports whether the kernel queues the packets of the cthelper by itself.
func (p Plan) KernelQueues() bool { return p.Rules.Ruleset == rules.CTHelper }

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
func (r Request) Validate() error {
	switch {
	case r.Helper != "" && !slices.Contains(Helpers, r.Helper):
		return fmt.Errorf("the helper is to be %q, and can be auto, carrier or cthelper", r.Helper)
	case r.Name != "" && (r.Helper == Auto || r.Helper == ""):
		return fmt.Errorf("a helper has the name %q, and nothing says whether it is a carrier or a cthelper", r.Name)
	case !slices.Contains(Rulesets, r.ruleset()):
		return fmt.Errorf("the ruleset is to be %q, and can be full or lean", r.Ruleset)
	case r.Ruleset == rules.Lean && r.Helper == CTHelper:
		return errors.New("the ruleset lean does not go with a cthelper, for which the kernel queues every packet; use a carrier")
	}
	return r.candidates()[0].Rules.Validate()
}

// candidates are the choices that there are, the best one first.
func (r Request) candidates() []Plan {
	if r.Monitor {
		return []Plan{r.plan(None, "", rules.Monitor)}
	}
	if r.Helper == CTHelper {
		return []Plan{r.plan(CTHelper, r.names(DefaultCTHelper)[0], rules.CTHelper)}
	}
	var all []Plan
	for _, name := range r.names(rules.Carriers...) {
		all = append(all, r.plan(Carrier, name, r.ruleset()))
	}
	return all
}

func (r Request) ruleset() rules.Ruleset {
	if r.Ruleset == "" {
		return rules.Full
	}
	return r.Ruleset
}

func (r Request) names(usual ...string) []string {
	if r.Name != "" {
		return []string{r.Name}
	}
	return usual
}

func (r Request) plan(h Helper, name string, ruleset rules.Ruleset) Plan {
	p := Plan{Rules: r.Rules, Helper: h}
	p.Rules.Helper, p.Rules.Ruleset = name, ruleset
	return p
}

// Choose returns the best choice that the kernel can do, or an error that says, of each one, why
// it can't. The wish has to be valid.
func Choose(r Request, k Kernel) (Plan, error) {
	candidates := r.candidates()
	if p, ok := r.installed(k); ok {
		return p, nil
	}
	var missing []error
	for _, p := range candidates {
		err := p.Rules.Validate()
		if err == nil {
			err = p.possible(k)
		}
		if err != nil {
			missing = append(missing, err)
			continue
		}
		switch {
		case r.Monitor:
			p.Why = "as --monitor asks for"
		case len(missing) > 0:
			p.Why = fmt.Sprintf("%s is not there", candidates[0].Rules.Helper)
		case r.Helper == Carrier || r.Helper == CTHelper:
			p.Why = "as asked for"
		default:
			p.Why = "the kernel has it"
		}
		return p, nil
	}
	if r.Helper != Carrier && r.Helper != CTHelper && r.Ruleset != rules.Lean && k.CTHelper() == nil {
		missing = append(missing, errors.New("the kernel can have a helper in user space instead: --helper cthelper"))
	}
	return Plan{}, errors.Join(missing...)
}

func (p Plan) possible(k Kernel) error {
	switch p.Helper {
	case None:
		return nil
	case Carrier:
		return k.Carrier(p.Rules.Helper)
	}
	return k.CTHelper()
}

// installed returns the choice to which the rules belong that are in place, if they are what
// counts.
func (r Request) installed(k Kernel) (Plan, bool) {
	if !r.Installed {
		return Plan{}, false
	}
	if r.Monitor {
		return Plan{}, false // there is one choice only
	}
	wishes := []Request{r}
	lean := r
	lean.Ruleset = rules.Lean
	if r.Ruleset == "" && lean.Validate() == nil {
		wishes = append(wishes, lean)
	}
	for _, as := range wishes {
		for _, p := range as.candidates() {
			if k.Installed(p.Rules) == nil {
				p.Why = "the rules that are in place attach it"
				return p, true
			}
		}
	}
	return Plan{}, false
}
