package doctor

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
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
		return ok("table inet %s is in place, with port %s", ownTable, rules.FormatPorts(p.config.Ports, ","))
	}
	if errors.Is(err, rules.ErrMissing) {
		return problem(err.Error(), why, fmt.Sprintf("%s, or %s --rules", p.command("rules apply"), p.command("run")))
	}
	if p.noPorts() {
		return problem(fmt.Sprintf("set %s of table inet %s is empty", ownPorts, ownTable), "no connection is a control connection",
			fmt.Sprintf("nft add element inet %s %s '{ %s }'", ownTable, ownPorts, strings.ReplaceAll(rules.FormatPorts(p.config.Ports, ","), ",", ", ")))
	}
	return problem(err.Error(), why, p.command("rules apply"))
}

// noPorts tells whether our set of ports is there and empty.
func (p *patient) noPorts() bool {
	rs, err := p.rulesetOnce()
	if err != nil {
		return false
	}
	elements, err := rs.elements(tableName{familyInet, ownTable}, ownPorts)
	if err != nil {
		return false
	}
	for _, e := range elements {
		if !e.end {
			return false
		}
	}
	return true
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
	return line
}
