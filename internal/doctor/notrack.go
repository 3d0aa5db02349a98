package doctor

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// checkNotrack looks for rules that hide packets of FTP from conntrack.
func checkNotrack(p *patient) []Finding {
	rs, err := p.rulesetOnce()
	if err != nil {
		return unread("the ruleset", err)
	}
	all := ^uint32(0)
	ports := p.controlPorts()
	var found []Finding
	for _, c := range rs.chains {
		early := c.base && (c.hook == unix.NF_INET_PRE_ROUTING || c.hook == unix.NF_INET_LOCAL_OUT) && c.priority < conntrackPriority
		if !early {
			continue
		}
		for _, k := range []struct {
			what   func(match) string
			packet packet
		}{
			{func(m match) string { return "connections to " + portsText(either(m.ports, ports)) }, packet{state: all, ports: ports, sources: highPorts}},
			{func(m match) string { return "packets from " + portsText(either(m.sources, ports)) }, packet{state: all, ports: highPorts, sources: ports}},
			{func(match) string { return "data connections" }, packet{state: all, ports: highPorts, sources: highPorts}},
		} {
			fate := rs.fate(c, k.packet)
			level, r, why := Problem, fate.untracked, "FTP is not helped: a helper needs the connection's entry in conntrack"
			if r == nil {
				level, r, why = Warning, fate.perhaps, "if that is for FTP, it is not helped: a helper needs the connection's entry in conntrack"
			}
			if r == nil || slices.ContainsFunc(found, func(f Finding) bool { return f.rule == r }) {
				continue
			}
			i := slices.IndexFunc(rs.actions(r), func(a action) bool { return a.notrack })
			if i < 0 {
				continue
			}
			action := rs.actions(r)[i]
			fix := p.removing(c, r, action)
			found = append(found, Finding{Level: level, rule: r,
				What: fmt.Sprintf("table %s, chain %s hides %s from conntrack (notrack)", r.table, r.chain, k.what(action.match)),
				Why:  why, Mend: fix.command, AfterReboot: fix.afterReboot})
		}
	}
	if len(found) == 0 {
		return ok("no rule hides FTP from conntrack")
	}
	return found
}

// either returns the ports that a rule names, or else others.
func either(named, others []rules.PortRange) []rules.PortRange {
	if named != nil {
		return named
	}
	return others
}
