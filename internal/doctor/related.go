package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// checkRelated looks for chains that drop what no rule accepts, and that have no rule for
// related connections. There may be other rules that let data connections through, so it
// is a warning.
func checkRelated(p *patient) []Finding {
	rs, err := p.rulesetOnce()
	if err != nil {
		return unread("the ruleset", err)
	}
	var found []Finding
	var fine []string
	for _, c := range rs.chains {
		filters := c.hook == unix.NF_INET_LOCAL_IN || c.hook == unix.NF_INET_FORWARD || c.hook == unix.NF_INET_LOCAL_OUT
		if !c.base || c.kind != "filter" || !filters || !rs.refuses(c) {
			continue
		}
		accepted, onlyHelper := rs.acceptsRelated(c, p.config.Helper)
		if accepted {
			fine = append(fine, c.name)
			continue
		}
		what := fmt.Sprintf("table %s, chain %s drops, and has no rule that accepts related connections", c.table, c.name)
		if onlyHelper != "" {
			what = fmt.Sprintf("table %s, chain %s accepts related connections of the helper %q only; ours is %q", c.table, c.name, onlyHelper, p.config.Helper)
		}
		found = append(found, Finding{Level: Warning, What: what, Why: "data connections that are expected are dropped all the same",
			Mend: fmt.Sprintf("nft insert rule %s %s ct state established,related accept", c.table, c.name)})
	}
	switch {
	case len(found) > 0:
		return found
	case len(fine) == 0:
		return ok("no chain of nftables drops all that is not accepted")
	}
	return ok("accepted where all else is dropped: %s", strings.Join(fine, ", "))
}

// refuses tells whether a base chain drops what none of its rules accepts: by its policy, or
// by a rule without a condition.
func (rs *ruleset) refuses(c chain) bool {
	return c.drops || slices.ContainsFunc(rs.rules, func(r rule) bool {
		return r.table == c.table && r.chain == c.name && slices.ContainsFunc(rs.actions(&r), func(a action) bool {
			return (a.reject || a.verdict != nil && a.verdict.code == verdictDrop) && a.match.unconditional()
		})
	})
}

func (m match) unconditional() bool {
	return !m.other && !m.stated && !m.notTCP && m.helper == "" && m.ports == nil
}

// forData tells whether the match is for data connections: these are not on single ports.
func (m match) forData() bool {
	return m.ports == nil || slices.ContainsFunc(m.ports, func(r rules.PortRange) bool { return r.First < r.Last })
}

// acceptsRelated tells whether a rule accepts related connections of TCP. If it does so for
// another helper than ours only, that is onlyHelper.
func (rs *ruleset) acceptsRelated(c chain, ours string) (accepted bool, onlyHelper string) {
	rs.walk(c, func(_ *rule, a action) {
		m := a.match
		switch {
		case a.verdict == nil || a.verdict.code != verdictAccept, m.notTCP, m.states&expr.CtStateBitRELATED == 0:
		case !m.stated && !m.unconditional(), !m.forData():
		case m.helper != "" && m.helper != ours:
			onlyHelper = m.helper
		default:
			accepted = true
		}
	})
	return accepted, onlyHelper
}

// checkLegacy says when there are rules of the old iptables, which nobody can read but it.
func checkLegacy(p *patient) []Finding {
	var tables []string
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		text, err := p.readFile("/proc/thread-self/net/" + file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the kernel has not got it, or has not loaded it
		}
		if err != nil {
			return unread("the list of iptables' tables", err)
		}
		for _, name := range strings.Fields(string(text)) {
			if (name == "filter" || name == "raw") && !slices.Contains(tables, name) {
				tables = append(tables, name)
			}
		}
	}
	if len(tables) == 0 {
		return nil
	}
	return warning("there may be rules of iptables-legacy, which can't be read, in table "+strings.Join(tables, " and "),
		"see for yourself that they accept RELATED, and attach no helper to FTP", "iptables-legacy-save; ip6tables-legacy-save")
}
