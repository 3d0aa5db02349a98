// Package doctor examines a host for everything that keeps FTP connections from being
// helped: what the kernel lacks, rules that are missing or in the way, a queue that nobody
// serves. It changes nothing; what it tries, it tries in a network namespace that
// is thrown away.
//
// A check asks the host through the interface system and turns the answers into findings,
// without a look at anything else, so that tests can ask for any host.
package doctor

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Level says how bad a Finding is.
type Level int

// The levels.
const (
	OK      Level = iota // as it should be
	Warning              // may be in the way, or could not be examined
	Problem              // connections are not helped, or break
)

// String returns "ok", "warning" or "problem".
func (l Level) String() string {
	switch l {
	case OK:
		return "ok"
	case Warning:
		return "warning"
	case Problem:
		return "problem"
	}
	return fmt.Sprintf("Level(%d)", int(l))
}

// MarshalText implements encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is what one check has to say.
type Finding struct {
	// Check names what was examined.
	Check string `json:"check"`
	Level Level  `json:"level"`
	// What is there.
	What string `json:"what"`
	// Why it matters; empty if all is well.
	Why string `json:"why,omitempty"`
	// Mend is the command, or the line of a file, that mends it, if there is one.
	Fix string `json:"fix,omitempty"`
	// AfterReboot says what becomes of the fix when the host starts again, and what keeps it.
	AfterReboot string `json:"after_reboot,omitempty"`

	rule *nftread.Rule  // the rule at fault, if there is one
	base *nftread.Chain // the base chain that drops connections, if one does
}

// Examine examines the network namespace of the calling thread, to which the goroutine must
// be locked unless all threads are in one. The wish is what the daemon is asked for, and file the
// configuration file in which it is, if there is one.
func Examine(r backend.Request, file string) []Finding {
	r.Installed = true
	x := newExamination(host{}, r)
	x.file = file
	return examine(x, checks)
}

// Ready returns what the daemon is to do, or an error in the words of the findings if it could
// help no connection on this host. It looks, and tries nothing.
func Ready(r backend.Request) (backend.Plan, error) {
	x := newExamination(host{}, r)
	var errs []error
	for _, f := range examine(x, needed) {
		if f.Level == Problem {
			errs = append(errs, fmt.Errorf("%s: %s (%s)", f.Check, f.What, f.Why))
		}
	}
	return x.plan, errors.Join(errs...)
}

// patient is a host under examination.
type examination struct {
	system
	request backend.Request
	file    string // where the wish is from, "" for the command line
	plan    backend.Plan
	noPlan  error
	config  rules.Config // of the choice, or else of the wish

	cache struct { // for what has been asked already
		ruleset   *nftread.Ruleset
		err       error
		answered  bool
		legacy    []string // tables of iptables-legacy
		legacyErr error
		added     *[]rules.PortRange // to our set of ports
		tested    *testResults
	}
}

func newExamination(s system, r backend.Request) *examination {
	x := &examination{system: s, request: r, config: r.Rules}
	if x.plan, x.noPlan = s.choose(r); x.noPlan == nil {
		x.config = x.plan.Rules
	}
	return x
}

// A check is one subject, and what finds out about it.
type check struct {
	name       string
	privileged bool // nothing can be said without CAP_NET_ADMIN
	find       func(*examination) []Finding
}

// needed are the checks without which nothing can be helped.
var needed = []check{
	{"kernel", false, checkKernel},
	{"privileges", false, checkPrivileges},
	{"helper", true, checkPlan},
	{"conntrack look-up", true, checkLookup},
}

// checks are all of them.
var checks = append(needed[:len(needed):len(needed)],
	check{"probe", true, checkProbe},
	check{"conntrack table", false, checkConntrackFill},
	check{"expectation table", true, checkExpectationFill},
	check{"rules", true, checkRules},
	check{"queue", false, checkQueues},
	check{"iptables", true, checkLegacy}, // first: iptables can't change a table that it can't read
	check{"other helpers", true, checkHelpers},
	check{"notrack", true, checkNotrack},
	check{"related", true, func(x *examination) []Finding { return x.confirm(checkRelated(x)) }},
	check{"transfer", true, checkTransfers},
	check{"forwarding", false, checkForwarding},
)

const savedBySysctl = "lost, unless a file in /etc/sysctl.d sets it, or the firewall (ufw: /etc/ufw/sysctl.conf; Shorewall: shorewall.conf)"

func examine(x *examination, checks []check) []Finding {
	admin, _ := x.netAdmin()
	var found []Finding
	var skipped []string
	for _, c := range checks {
		if c.privileged && !admin {
			skipped = append(skipped, c.name)
			continue
		}
		for _, f := range c.find(x) {
			if f.Check == "" {
				f.Check = c.name
			}
			if strings.HasPrefix(f.Fix, "sysctl -w ") {
				f.AfterReboot = savedBySysctl
			}
			found = append(found, f)
		}
	}
	if len(skipped) > 0 {
		found = append(found, Finding{Check: "not examined", Level: Warning, What: strings.Join(skipped, ", "),
			Why: "these can't be read without CAP_NET_ADMIN"})
	}
	return found
}

// rulesetOnce reads the rules of the host's own tables once, those of iptables-legacy among them.
func (x *examination) cachedRuleset() (*nftread.Ruleset, error) {
	if a := &x.cache; !a.answered {
		a.ruleset, a.err = x.ruleset()
		a.answered = true
		if a.err != nil {
			_, a.legacyErr = x.addLegacy(&nftread.Ruleset{})
		} else {
			a.legacy, a.legacyErr = x.addLegacy(a.ruleset)
		}
	}
	return x.cache.ruleset, x.cache.err
}

// ok, warning and problem make the one finding of a check.

func ok(format string, args ...any) []Finding {
	return []Finding{{What: fmt.Sprintf(format, args...)}}
}

func warning(what, why, fix string) []Finding {
	return []Finding{{Level: Warning, What: what, Why: why, Fix: fix}}
}

func problem(what, why, fix string) []Finding {
	return []Finding{{Level: Problem, What: what, Why: why, Fix: fix}}
}

// unread is for what could not be examined.
func unread(what string, err error) []Finding {
	return warning(fmt.Sprintf("%s can't be read: %v", what, err), "so nothing can be said about it", "")
}
