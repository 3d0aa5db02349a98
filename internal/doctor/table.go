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

func checkRules(x *examination) []Finding {
	const why = "packets of control connections do not reach the daemon"
	err := x.checkRules(x.config)
	if err == nil {
		if added := x.addedPorts(); len(added) > 0 {
			return ok("table inet %s is installed for %s, and for %s that the settings do not list", ownTable, portsText(x.config.Ports), portsText(added))
		}
		return ok("table inet %s is installed for %s", ownTable, portsText(x.config.Ports))
	}
	if errors.Is(err, rules.ErrMissing) {
		return problem(err.Error(), why, fmt.Sprintf("%s, or %s --rules", x.command("rules apply"), x.command("run")))
	}
	if monitor := x.monitorRules(); !x.request.Monitor && x.checkRules(monitor) == nil {
		return problem(fmt.Sprintf("table inet %s is that of --monitor", ownTable),
			"connections get no helper, so no data connection can be opened", x.command("rules apply"))
	}
	if x.portSetEmpty() {
		return problem(fmt.Sprintf("set %s of table inet %s is empty", ownPorts, ownTable), "no connection is a control connection",
			fmt.Sprintf("nft add element inet %s %s '{ %s }'", ownTable, ownPorts, strings.ReplaceAll(rules.FormatPorts(x.config.Ports, ","), ",", ", ")))
	}
	return problem(err.Error(), why, x.command("rules apply"))
}

// monitorRules are the rules of --monitor for the same ports and queues.
func (x *examination) monitorRules() rules.Config {
	c := x.config
	c.Ruleset, c.Helper = rules.Monitor, ""
	return c
}

// portSetEmpty reports whether our set of ports exists and is empty.
func (x *examination) portSetEmpty() bool {
	ports, ok := x.portsInSet()
	return ok && len(ports) == 0
}

// portsInSet returns our set of ports.
func (x *examination) portsInSet() (ports []rules.PortRange, ok bool) {
	rs, err := x.cachedRuleset()
	if err != nil {
		return nil, false
	}
	return rs.PortsInSet(nftread.Table{Family: nftread.FamilyInet, Name: ownTable}, ownPorts)
}

// addedPorts are those in our set that the settings do not list: they were added by hand.
func (x *examination) addedPorts() []rules.PortRange {
	if x.cache.added == nil {
		ports, _ := x.portsInSet()
		ports = slices.DeleteFunc(ports, func(r rules.PortRange) bool {
			return slices.ContainsFunc(x.config.Ports, func(s rules.PortRange) bool { return s.First <= r.First && r.Last <= s.Last })
		})
		x.cache.added = &ports
	}
	return *x.cache.added
}

// controlPorts are those of the settings and those added by hand.
func (x *examination) controlPorts() []rules.PortRange {
	return slices.Concat(x.config.Ports, x.addedPorts())
}

// command returns a command line of this program, with the flags of the rules.
func (x *examination) command(words string) string {
	c := x.config
	line := program + " " + words
	if x.file != "" {
		line += " --config " + x.file
		if c.Queues != x.request.Rules.Queues {
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
	if r := x.request.Ruleset; r != "" && r != rules.Full {
		line += " --ruleset " + string(r)
	}
	if r := x.request; r.Helper != "" && r.Helper != backend.Auto {
		line += " --helper " + string(r.Helper)
	}
	if x.request.Name != "" {
		line += " --helper-name " + x.request.Name
	}
	if x.request.Monitor {
		line += " --monitor"
	}
	return line
}
