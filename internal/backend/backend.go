// Package backend plans how control connections get a conntrack helper, from the user's request and the kernel's
// features.
//
// The kernel takes expectations only for a connection that has a helper. A carrier is a helper of the kernel that
// ignores FTP. A cthelper is a helper in user space that the daemon registers (nfnetlink_cthelper), so that its name
// can be "ftp"; the kernel queues the packets of its connections.
package backend

import (
	"errors"
	"fmt"
	"slices"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Helper is a kind of conntrack helper.
type Helper string

// The kinds. Auto is Carrier: a cthelper has to be requested, since FTP stalls without its daemon.
const (
	Auto     Helper = "auto"
	Carrier  Helper = "carrier"
	CTHelper Helper = "cthelper"
	// None is the kind of a daemon that only monitors; it cannot be requested.
	None Helper = "none"
)

// Helpers lists the kinds that can be requested.
var Helpers = []Helper{Auto, Carrier, CTHelper}

// Rulesets lists the rulesets that can be requested.
var Rulesets = []rules.Ruleset{rules.Full, rules.Lean}

// DefaultCTHelper is the default name of a cthelper: that of the kernel's helper, which users' rules match.
const DefaultCTHelper = "ftp"

// Request is the user's request.
type Request struct {
	// Rules are the ports and queues; Choose sets the ruleset and the helper.
	Rules rules.Config
	// Ruleset is rules.Lean or rules.Full; "" is rules.Full, or rules.Lean where that is installed.
	Ruleset rules.Ruleset
	// Installed selects the plan of the installed rules: the daemon does not apply rules.
	Installed bool
	Helper    Helper // "" is Auto
	// Name is the helper's name; "" is the first carrier that the kernel has, or DefaultCTHelper.
	Name string
	// Monitor is for a daemon that opens and changes nothing: Ruleset, Helper and Name are ignored.
	Monitor bool
}

// Plan is what the daemon is to do.
type Plan struct {
	Rules  rules.Config // complete
	Helper Helper       // Carrier, CTHelper or None
	Why    string       // reason for Helper, a few words
}

// KernelQueues reports whether the kernel queues packets without rules, for a cthelper.
func (p Plan) KernelQueues() bool { return p.Rules.Ruleset == rules.CTHelper }

// Kernel is the kernel, as Choose needs it.
type Kernel interface {
	// Carrier returns an error if there is no helper of that name.
	Carrier(name string) error
	// CTHelper returns an error if none can be registered.
	CTHelper() error
	// Installed returns an error if other rules, or none, are installed.
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

// Validate returns an error if no kernel can fulfil the request.
func (r Request) Validate() error {
	switch {
	case r.Helper != "" && !slices.Contains(Helpers, r.Helper):
		return fmt.Errorf("there is no helper %q; use auto, carrier or cthelper", r.Helper)
	case r.Name != "" && (r.Helper == Auto || r.Helper == ""):
		return fmt.Errorf("the helper %q has a name, so say whether it is a carrier or a cthelper", r.Name)
	case !slices.Contains(Rulesets, r.ruleset()):
		return fmt.Errorf("there is no ruleset %q; use full or lean", r.Ruleset)
	case r.Ruleset == rules.Lean && r.Helper == CTHelper:
		return errors.New("the ruleset lean does not go with a cthelper, for which the kernel queues every packet; use a carrier")
	}
	return r.candidates()[0].Rules.Validate()
}

// candidates returns the plans to try, the best one first.
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

// Choose returns the best plan that the kernel can do, or an error with the reason against each plan. The request
// has to be valid.
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
			p.Why = "because of --monitor"
		case len(missing) > 0:
			p.Why = fmt.Sprintf("the kernel lacks %s", candidates[0].Rules.Helper)
		case r.Helper == Carrier || r.Helper == CTHelper:
			p.Why = "as requested"
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

// installed returns the plan of the installed rules.
func (r Request) installed(k Kernel) (Plan, bool) {
	if !r.Installed || r.Monitor { // Monitor has one plan only
		return Plan{}, false
	}
	requests := []Request{r}
	lean := r
	lean.Ruleset = rules.Lean
	if r.Ruleset == "" && lean.Validate() == nil {
		requests = append(requests, lean)
	}
	for _, as := range requests {
		for _, p := range as.candidates() {
			if k.Installed(p.Rules) == nil {
				p.Why = "the installed rules assign it"
				return p, true
			}
		}
	}
	return Plan{}, false
}
