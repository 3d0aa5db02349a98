package doctor

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// A helper has to be assigned after conntrack and before NAT.
const (
	conntrackPriority = -200
	natPriority       = -100
	helperPriority    = -150
)

// checkHelpers finds rules other than ours that assign a helper to control connections, and helpers that are
// assigned too early or too late.
func checkHelpers(x *examination) []Finding {
	if x.request.Monitor {
		return ok("other helpers do not disturb a daemon that only monitors")
	}
	var found []Finding
	// Kernels before 6.0 assign helpers by port, without a rule.
	if value, err := x.readFile("/proc/sys/net/netfilter/nf_conntrack_helper"); err == nil && strings.TrimSpace(string(value)) != "0" {
		found = append(found, problem("the kernel assigns its own helper to port 21", oneHelper,
			"sysctl -w net.netfilter.nf_conntrack_helper=0")...)
	}
	rs, err := x.cachedRuleset()
	if err != nil {
		return append(found, unread("the ruleset", err)...)
	}
	for _, c := range rs.Chains {
		if !c.Base || c.Table == (nftread.Table{Family: nftread.FamilyInet, Name: ownTable}) {
			continue
		}
		rs.Walk(c, func(r *nftread.Rule, a nftread.Action) {
			if a.Helper == nil || !a.Helper.TCP || a.Match.NotTCP || !overlap(a.Match.Ports, x.controlPorts()) {
				return
			}
			f, bad := x.helperFinding(c, r, a)
			if bad && !slices.Contains(found, f) {
				found = append(found, f)
			}
		})
	}
	if len(found) == 0 {
		return ok("no other rule assigns a conntrack helper to %s", portsText(x.controlPorts()))
	}
	return found
}

const oneHelper = "a connection has one helper: this one works instead of the daemon, or in addition to it"

// helperFinding is the finding about a rule that assigns a helper to a control connection.
func (x *examination) helperFinding(c nftread.Chain, r *nftread.Rule, a nftread.Action) (f Finding, bad bool) {
	ports := "any port"
	if a.Match.Ports != nil {
		ports = "port " + rules.FormatPorts(a.Match.Ports, ",")
	}
	early, late := beforeConntrack(c), afterNAT(c)
	when := fmt.Sprintf("%s priority %d", hookName(c.Hook), c.Priority)
	switch {
	case late:
		when += ", after NAT"
	case early:
		when += ", before conntrack"
	}
	f = Finding{Level: Problem, What: fmt.Sprintf("table %s, chain %s (%s): helper %q for %s", r.Table, r.Chain, when, a.Helper.Type, ports)}
	fix := x.removalFix(c, r, a)
	f.Fix, f.AfterReboot = fix.command, fix.afterReboot
	switch {
	case a.Helper.Type != x.config.Helper && !slices.Contains(rules.Carriers, a.Helper.Type):
		f.Why = oneHelper
		if late {
			f.Why += ", and assigned after NAT it breaks connections"
		}
		if a.Match.Ports == nil {
			f.Level, f.Why = Warning, "if the rule is for FTP: "+f.Why
		}
	case late:
		f.Check = "helper priority"
		f.Why = "assigned after NAT, the connection has no sequence adjustment and breaks at the first rewrite"
	case early && !a.Helper.Template:
		f.Check = "helper priority"
		f.Why = "before conntrack there is no connection to assign it to"
	default:
		return Finding{}, false
	}
	return f, true
}

// afterNAT reports whether the chain sees a connection's first packet after DNAT.
func afterNAT(c nftread.Chain) bool {
	return c.Hook != unix.NF_INET_PRE_ROUTING && c.Hook != unix.NF_INET_LOCAL_OUT || c.Priority >= natPriority
}

// beforeConntrack reports whether the chain sees packets before conntrack.
func beforeConntrack(c nftread.Chain) bool { return !afterNAT(c) && c.Priority <= conntrackPriority }

func hookName(hook uint32) string {
	names := []string{"prerouting", "input", "forward", "output", "postrouting"}
	if int(hook) < len(names) {
		return names[hook]
	}
	return fmt.Sprintf("hook %d", hook)
}

// overlap reports whether a port may be in both lists; nil is any port.
func overlap(a, b []rules.PortRange) bool {
	if a == nil {
		return true
	}
	for _, r := range a {
		for _, s := range b {
			if r.First <= s.Last && s.First <= r.Last {
				return true
			}
		}
	}
	return false
}
