package doctor

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Where a helper has to be attached: after conntrack, before NAT.
const (
	conntrackPriority = -200
	natPriority       = -100
	helperPriority    = -150
)

// checkHelpers looks for rules that attach a helper to control connections, besides ours, and
// for one that is attached too early or too late.
func checkHelpers(x *examination) []Finding {
	if x.request.Monitor {
		return ok("another one may work beside a daemon that only monitors")
	}
	var found []Finding
	// Kernels before 6.0: helpers attached by port, without a rule.
	if value, err := x.readFile("/proc/sys/net/netfilter/nf_conntrack_helper"); err == nil && strings.TrimSpace(string(value)) != "0" {
		found = append(found, problem("the kernel attaches its own helper to port 21", oneHelper,
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
		return ok("no other rule attaches one to port %s", rules.FormatPorts(x.controlPorts(), ","))
	}
	return found
}

const oneHelper = "a connection has one helper; the kernel's own does the daemon's work again, or instead"

// judgeHelper says what is wrong with a rule that attaches a helper to a control connection.
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
			f.Why += ", and attached after NAT it breaks connections"
		}
		if a.Match.Ports == nil {
			f.Level, f.Why = Warning, "if that is for FTP: "+f.Why
		}
	case late:
		f.Check = "helper priority"
		f.Why = "attached after NAT, a connection has no room for sequence adjustment, and breaks at the first rewrite"
	case early && !a.Helper.Template:
		f.Check = "helper priority"
		f.Why = "before conntrack there is no connection to attach it to"
	default:
		return Finding{}, false
	}
	return f, true
}

// late tells whether a connection's first packet has been through DNAT in the chain.
func afterNAT(c nftread.Chain) bool {
	return c.Hook != unix.NF_INET_PRE_ROUTING && c.Hook != unix.NF_INET_LOCAL_OUT || c.Priority >= natPriority
}

// early reports whether conntrack does not know the connection yet.
func beforeConntrack(c nftread.Chain) bool { return !afterNAT(c) && c.Priority <= conntrackPriority }

func hookName(hook uint32) string {
	names := []string{"prerouting", "input", "forward", "output", "postrouting"}
	if int(hook) < len(names) {
		return names[hook]
	}
	return fmt.Sprintf("hook %d", hook)
}

// overlap tells whether a port may be in both; nil is any port.
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
