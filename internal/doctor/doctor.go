// Package doctor examines a host for causes why FTP is not helped: features that the kernel lacks, rules that
// are missing or drop data connections, a queue without a program. It changes nothing; experiments run in a
// network namespace that is removed afterwards.
//
// A check reads the host through the interface system alone, so that tests can present any host.
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
	OK      Level = iota
	Warning       // FTP may fail, or this could not be examined
	Problem       // connections are not helped, or break
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

// Finding is a result of one check.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	What  string `json:"what"`
	// Why it matters; empty for OK.
	Why string `json:"why,omitempty"`
	// Fix is the command, or the line of a file, that fixes it, "" if there is none.
	Fix string `json:"fix,omitempty"`
	// AfterReboot says whether the fix survives a reboot, and how to keep it.
	AfterReboot string `json:"after_reboot,omitempty"`

	rule *nftread.Rule  // that causes it, nil if none does
	base *nftread.Chain // that drops connections, nil if none does
}

// Examine examines the network namespace of the calling thread, to which the goroutine must be locked unless
// all threads share one. The request is that of the daemon, file its configuration file, "" if it has none.
func Examine(r backend.Request, file string) []Finding {
	r.Installed = true
	x := newExamination(host{}, r)
	x.file = file
	return examine(x, checks)
}

// Ready returns the daemon's plan, or an error that joins the findings if the daemon could help no connection on
// this host. It only reads.
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

// examination is the state of examining a host.
type examination struct {
	system
	request backend.Request
	file    string // configuration file of the request, "" for the command line
	plan    backend.Plan
	noPlan  error
	config  rules.Config // of the plan, or else of the request

	cache struct {
		ruleset   *nftread.Ruleset
		err       error
		read      bool
		legacy    []string // tables of iptables-legacy
		legacyErr error
		added     *[]rules.PortRange // by hand, to our set of ports; nil if not read yet
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

type check struct {
	name       string
	privileged bool // needs CAP_NET_ADMIN
	find       func(*examination) []Finding
}

// needed are the checks that Ready does.
var needed = []check{
	{"kernel", false, checkKernel},
	{"privileges", false, checkPrivileges},
	{"helper", true, checkPlan},
	{"conntrack look-up", true, checkLookup},
}

// checks are those that Examine does.
var checks = append(needed[:len(needed):len(needed)],
	check{"probe", true, checkProbe},
	check{"conntrack table", false, checkConntrackFill},
	check{"expectation table", true, checkExpectationFill},
	check{"rules", true, checkRules},
	check{"queue", false, checkQueues},
	check{"iptables", true, checkLegacy}, // first: iptables cannot change a table that it cannot read
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
			Why: "these checks need CAP_NET_ADMIN: run it as root"})
	}
	return found
}

// cachedRuleset returns the host's ruleset, with that of iptables-legacy.
func (x *examination) cachedRuleset() (*nftread.Ruleset, error) {
	if a := &x.cache; !a.read {
		a.ruleset, a.err = x.ruleset()
		a.read = true
		if a.err != nil {
			_, a.legacyErr = x.addLegacy(&nftread.Ruleset{})
		} else {
			a.legacy, a.legacyErr = x.addLegacy(a.ruleset)
		}
	}
	return x.cache.ruleset, x.cache.err
}

// ok, warning and problem return the only finding of a check.

func ok(format string, args ...any) []Finding {
	return []Finding{{What: fmt.Sprintf(format, args...)}}
}

func warning(what, why, fix string) []Finding {
	return []Finding{{Level: Warning, What: what, Why: why, Fix: fix}}
}

func problem(what, why, fix string) []Finding {
	return []Finding{{Level: Problem, What: what, Why: why, Fix: fix}}
}

// unread is the finding about something that could not be read.
func unread(what string, err error) []Finding {
	return warning(fmt.Sprintf("%s cannot be read: %v", what, err), "its faults stay unknown", "")
}
