package doctor

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// checkNotrack finds rules that hide packets of FTP from conntrack.
func checkNotrack(x *examination) []Finding {
	rs, err := x.cachedRuleset()
	if err != nil {
		return unread("the ruleset", err)
	}
	all := ^uint32(0)
	ports := x.controlPorts()
	var found []Finding
	for _, c := range rs.Chains {
		early := c.Base && (c.Hook == unix.NF_INET_PRE_ROUTING || c.Hook == unix.NF_INET_LOCAL_OUT) && c.Priority < conntrackPriority
		if !early {
			continue
		}
		for _, k := range []struct {
			what   func(nftread.Match) string
			packet nftread.Packet
		}{
			{func(m nftread.Match) string { return "connections to " + portsText(either(m.Ports, ports)) }, nftread.Packet{State: all, Ports: ports, Sources: highPorts}},
			{func(m nftread.Match) string { return "packets from " + portsText(either(m.Sources, ports)) }, nftread.Packet{State: all, Ports: highPorts, Sources: ports}},
			{func(nftread.Match) string { return "data connections" }, nftread.Packet{State: all, Ports: highPorts, Sources: highPorts}},
		} {
			fate := rs.Follow(c, k.packet)
			level, r, why := Problem, fate.Untracked, "FTP is not helped: a helper needs the connection's entry in conntrack"
			if r == nil {
				level, r, why = Warning, fate.Perhaps, "if the rule matches FTP, it is not helped: a helper needs the connection's entry in conntrack"
			}
			if r == nil || slices.ContainsFunc(found, func(f Finding) bool { return f.rule == r }) {
				continue
			}
			i := slices.IndexFunc(rs.Actions(r), func(a nftread.Action) bool { return a.Notrack })
			if i < 0 {
				continue
			}
			action := rs.Actions(r)[i]
			fix := x.removalFix(c, r, action)
			found = append(found, Finding{Level: level, rule: r,
				What: fmt.Sprintf("table %s, chain %s hides %s from conntrack (notrack)", r.Table, r.Chain, k.what(action.Match)),
				Why:  why, Fix: fix.command, AfterReboot: fix.afterReboot})
		}
	}
	if len(found) == 0 {
		return ok("no rule hides FTP from conntrack")
	}
	return found
}

// either returns the ports that a rule matches, or else others.
func either(named, others []rules.PortRange) []rules.PortRange {
	if named != nil {
		return named
	}
	return others
}
