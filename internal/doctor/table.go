package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// The table that rules.Apply installs.
const (
	ownTable = "nfq_ftphelper"
	ownPorts = "ports"
)

func checkRules(p *patient) []Finding {
	const why = "packets of control connections don't reach the daemon"
	err := p.checkRules(p.config)
	if err == nil {
		if added := p.addedPorts(); len(added) > 0 {
			return ok("table inet %s is in place, with %s, and with %s that the settings don't have", ownTable, portsText(p.config.Ports), portsText(added))
		}
		return ok("table inet %s is in place, with %s", ownTable, portsText(p.config.Ports))
	}
	if errors.Is(err, rules.ErrMissing) {
		return problem(err.Error(), why, fmt.Sprintf("%s, or %s --rules", p.command("rules apply"), p.command("run")))
	}
	if monitor := p.monitorRules(); !p.wish.Monitor && p.checkRules(monitor) == nil {
		return problem(fmt.Sprintf("table inet %s is that of --monitor", ownTable),
			"connections get no helper, so no data connection can be opened", p.command("rules apply"))
	}
	if p.noPorts() {
		return problem(fmt.Sprintf("set %s of table inet %s is empty", ownPorts, ownTable), "no connection is a control connection",
			fmt.Sprintf("nft add element inet %s %s '{ %s }'", ownTable, ownPorts, strings.ReplaceAll(rules.FormatPorts(p.config.Ports, ","), ",", ", ")))
	}
	return problem(err.Error(), why, p.command("rules apply"))
}

// monitorRules are those of a daemon that only monitors, with the same ports and queues.
func (p *patient) monitorRules() rules.Config {
	c := p.config
	c.Ruleset, c.Helper = rules.Monitor, ""
	return c
}

// noPorts tells whether our set of ports is there and empty.
func (p *patient) noPorts() bool {
	ports, ok := p.portsInSet()
	return ok && len(ports) == 0
}

// portsInSet reads our set of ports.
func (p *patient) portsInSet() (ports []rules.PortRange, ok bool) {
	rs, err := p.rulesetOnce()
	if err != nil {
		return nil, false
	}
	return rs.PortsInSet(nftread.Table{Family: nftread.FamilyInet, Name: ownTable}, ownPorts)
}

// addedPorts are those in our set that the settings don't have: they were added by hand.
func (p *patient) addedPorts() []rules.PortRange {
	if p.asked.added == nil {
		ports, _ := p.portsInSet()
		ports = slices.DeleteFunc(ports, func(r rules.PortRange) bool {
			return slices.ContainsFunc(p.config.Ports, func(s rules.PortRange) bool { return s.First <= r.First && r.Last <= s.Last })
		})
		p.asked.added = &ports
	}
	return *p.asked.added
}

// controlPorts are those of control connections: of the settings, and added to our set.
func (p *patient) controlPorts() []rules.PortRange {
	return slices.Concat(p.config.Ports, p.addedPorts())
}

// command is a command line of this program with the flags that say what rules are meant.
func (p *patient) command(words string) string {
	c := p.config
	line := program + " " + words
	if p.file != "" {
		line += " --config " + p.file
		if c.Queues != p.wish.Rules.Queues {
			line += fmt.Sprintf(" --queues %d", c.Queues)
		}
		return line
	}
	if list := rules.FormatPorts(c.Ports, ","); list != rules.DefaultPorts {
		line += " --ports " + list
	}
	if c.Queue != rules.DefaultQueue {
		line += fmt.Sprintf(" --queue %d", c.Queue)
	}
	if c.Queues > 1 {
		line += fmt.Sprintf(" --queues %d", c.Queues)
	}
	if r := p.wish.Ruleset; r != "" && r != rules.Full {
		line += " --ruleset " + string(r)
	}
	if w := p.wish; w.Helper != "" && w.Helper != backend.Auto {
		line += " --helper " + string(w.Helper)
	}
	if p.wish.Name != "" {
		line += " --helper-name " + p.wish.Name
	}
	if p.wish.Monitor {
		line += " --monitor"
	}
	return line
}
