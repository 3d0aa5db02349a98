package doctor

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// A firewall is the program that owns a chain: it wrote the chain, saves it and restores it. A change
// by another program is lost at its next start, or makes it refuse its own table.
type firewall int

const (
	plainNft firewall = iota
	iptables
	firewalld
	ufw
	docker
	shorewall
)

// What firewalls call what is theirs. ufw's chains for IPv6 begin with ufw6.
const (
	firewalldTable    = "firewalld"
	firewalldIptables = "INPUT_ZONES" // firewalld with FirewallBackend=iptables
	dockerChain       = "DOCKER-USER"
	shorewallChain    = "shorewall"
)

// ufwChains are those to which ufw's base chains lead first.
var ufwChains = map[uint32]string{
	unix.NF_INET_LOCAL_IN: "before-input", unix.NF_INET_FORWARD: "before-forward", unix.NF_INET_LOCAL_OUT: "before-output",
}

func ufwChain(family byte, hook uint32) string {
	if family == familyIPv6 {
		return "ufw6-" + ufwChains[hook]
	}
	return "ufw-" + ufwChains[hook]
}

// owner finds the firewall of a base chain by what is in the ruleset. The rule is the one in the way,
// nil if there is none but the chain's policy: what stands in a base chain of iptables before the jump to
// another firewall's chains was written by hand.
func (rs *ruleset) owner(c chain, by *rule) firewall {
	if c.table.name == firewalldTable {
		return firewalld
	}
	if !rs.ofIptables(c.table) {
		return plainNft
	}
	filter := tableName{family: c.table.family, name: "filter", legacy: c.table.legacy}
	switch before := ufwChain(c.table.family, c.hook); {
	case rs.hasChain(filter, shorewallChain):
		return shorewall
	case rs.hasChain(filter, firewalldIptables):
		return firewalld
	case ufwChains[c.hook] != "" && rs.hasChain(c.table, before) && !rs.precedes(c, by, before):
		return ufw
	case c.hook == unix.NF_INET_FORWARD && rs.hasChain(c.table, dockerChain) && !rs.precedes(c, by, dockerChain):
		return docker
	}
	return iptables
}

// precedes tells whether a rule stands in a base chain before the jump to another chain, or that jump is
// not there.
func (rs *ruleset) precedes(c chain, r *rule, to string) bool {
	for _, x := range rs.chainRules(objectName{c.table, c.name}) {
		if x == r {
			return true
		}
		if slices.ContainsFunc(rs.actions(x), func(a action) bool { return a.verdict != nil && a.verdict.chain == to }) {
			return false
		}
	}
	return true
}

// iptablesChains are the base chains of iptables' tables, with the hook, the type and the priority that
// they have in nftables.
var iptablesChains = map[string]map[string]chain{
	"filter": {
		"INPUT":   {kind: "filter", hook: unix.NF_INET_LOCAL_IN},
		"FORWARD": {kind: "filter", hook: unix.NF_INET_FORWARD},
		"OUTPUT":  {kind: "filter", hook: unix.NF_INET_LOCAL_OUT},
	},
	"raw": {
		"PREROUTING": {kind: "filter", hook: unix.NF_INET_PRE_ROUTING, priority: -300},
		"OUTPUT":     {kind: "filter", hook: unix.NF_INET_LOCAL_OUT, priority: -300},
	},
	"mangle": {
		"PREROUTING":  {kind: "filter", hook: unix.NF_INET_PRE_ROUTING, priority: -150},
		"INPUT":       {kind: "filter", hook: unix.NF_INET_LOCAL_IN, priority: -150},
		"FORWARD":     {kind: "filter", hook: unix.NF_INET_FORWARD, priority: -150},
		"OUTPUT":      {kind: "route", hook: unix.NF_INET_LOCAL_OUT, priority: -150},
		"POSTROUTING": {kind: "filter", hook: unix.NF_INET_POST_ROUTING, priority: -150},
	},
	"security": {
		"INPUT":   {kind: "filter", hook: unix.NF_INET_LOCAL_IN, priority: 50},
		"FORWARD": {kind: "filter", hook: unix.NF_INET_FORWARD, priority: 50},
		"OUTPUT":  {kind: "filter", hook: unix.NF_INET_LOCAL_OUT, priority: 50},
	},
}

// iptablesExpressions are those that iptables-nft writes and can read back (iptables/nft.c). It gives every
// rule a counter.
var iptablesExpressions = []string{"bitwise", "cmp", "counter", "immediate", "limit", "log", "lookup", "match", "meta", "payload", "range", "target"}

// ofIptables tells whether iptables wrote a table and can read it: after one rule of nft's it refuses the table.
func (rs *ruleset) ofIptables(t tableName) bool {
	if t.legacy {
		return true
	}
	names := iptablesChains[t.name]
	if t.family == familyInet || names == nil {
		return false
	}
	for _, c := range rs.chains {
		if c.table != t || !c.base {
			continue
		}
		if is, ok := names[c.name]; !ok || is.kind != c.kind || is.hook != c.hook || is.priority != c.priority {
			return false
		}
	}
	for _, r := range rs.rules {
		if r.table != t {
			continue
		}
		if !slices.ContainsFunc(r.exprs, func(e expression) bool { return e.name == "counter" }) ||
			slices.ContainsFunc(r.exprs, func(e expression) bool { return !slices.Contains(iptablesExpressions, e.name) }) {
			return false
		}
	}
	return true
}

// A fix is a command for a shell, in the language of the firewall that owns the chain, and what makes it
// last until after the next start of the host.
type fix struct {
	command, keep string
}

const (
	keepNft       = "change the file that nft loads at boot in the same way (/etc/nftables.conf, /etc/sysconfig/nftables.conf)"
	keepIptables  = "save the rules (netfilter-persistent save; service iptables save), or change the file from which they are restored"
	keepFirewalld = "done: --permanent has saved it"
	keepUfw       = "done: ufw loads %s at boot"
	keepShorewall = "done: Shorewall compiles its rules from %s"
)

// accepting is how a base chain is made to accept related connections, in front of what drops them.
func (p *patient) accepting(c chain, by *rule) fix {
	const related = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
	program := p.iptablesProgram(c.table)
	switch p.asked.ruleset.owner(c, by) {
	case firewalld:
		return fix{"firewall-cmd --reload", "done: firewalld writes that rule by itself; find out what has removed it or stands in front of it"}
	case ufw:
		chain, file := ufwChain(c.table.family, c.hook), "/etc/ufw/before.rules"
		if c.table.family == familyIPv6 {
			file = "/etc/ufw/before6.rules"
		}
		return fix{fmt.Sprintf("sed -i '/^:%s /a -A %s %s' %s && ufw reload", chain, chain, related, file), fmt.Sprintf(keepUfw, file)}
	case docker:
		insert := fmt.Sprintf("%s -I %s %s", program, dockerChain, related)
		return fix{insert, "Docker keeps this chain until the host starts again; for then: systemctl edit docker, [Service], ExecStartPost=/usr/sbin/" + insert}
	case shorewall:
		program := shorewallProgram(c.table)
		file := fmt.Sprintf("/etc/%s/%s.conf", program, program)
		return fix{fmt.Sprintf("sed -i 's/^RELATED_DISPOSITION=.*/RELATED_DISPOSITION=ACCEPT/' %s && %s reload", file, program),
			fmt.Sprintf(keepShorewall, file) + ", and from SECTION RELATED of its file rules"}
	case iptables:
		return fix{fmt.Sprintf("%s -I %s %s", program, c.name, related), keepIptables}
	}
	return fix{fmt.Sprintf("nft insert rule %s %s ct state established,related accept", c.table, c.name), keepNft}
}

// removing is how a rule is removed that attaches a helper to control connections, or hides packets from
// conntrack.
func (p *patient) removing(c chain, r *rule, a action) fix {
	rs := p.asked.ruleset
	switch rs.owner(c, r) {
	case firewalld:
		if a.helper != nil {
			return fix{fmt.Sprintf("firewall-cmd --permanent --service=ftp --remove-helper=%s && firewall-cmd --reload", a.helper.kind),
				keepFirewalld + "; a service of your own with that helper is changed in the same way"}
		}
		return fix{"firewall-cmd --reload", "done: firewalld writes no such rule"}
	case shorewall:
		program := shorewallProgram(c.table)
		file := fmt.Sprintf("/etc/%s/conntrack", program)
		pattern := `^(NOTRACK|CT:notrack)`
		if a.helper != nil {
			pattern = "^CT:helper:" + a.helper.kind + "[:[:space:]]"
		}
		return fix{fmt.Sprintf("sed -i -E '/%s/d' %s && %s reload", pattern, file, program), fmt.Sprintf(keepShorewall, file)}
	case iptables, ufw, docker:
		keep := keepIptables
		if rs.hasUfw(r.table) {
			keep = "delete the line of that rule in /etc/ufw/before.rules or before6.rules, too"
		}
		return fix{fmt.Sprintf("%s -t %s -D %s %s", p.iptablesProgram(r.table), r.table.name, r.chain, p.spec(r)), keep}
	}
	return fix{fmt.Sprintf("nft delete rule %s %s handle %d", r.table, r.chain, r.handle), keepNft}
}

func (rs *ruleset) hasUfw(of tableName) bool {
	of.name = "filter"
	return rs.hasChain(of, ufwChain(of.family, unix.NF_INET_FORWARD))
}

func shorewallProgram(t tableName) string {
	if t.family == familyIPv6 {
		return "shorewall6"
	}
	return "shorewall"
}

// iptablesProgram is the one that writes a table. "iptables" alone is one of two programs, as the host's
// alternatives say.
func (p *patient) iptablesProgram(t tableName) string {
	name := "iptables"
	if t.family == familyIPv6 {
		name = "ip6tables"
	}
	variant := "nft"
	if t.legacy {
		variant = "legacy"
	}
	is := "nft" // where it can't be asked
	if version, err := p.run(name, "--version"); err == nil && !strings.Contains(version, "nf_tables") {
		is = "legacy" // versions before 1.8 say nothing
	}
	if is == variant {
		return name
	}
	return name + "-" + variant
}

// spec is how iptables writes a rule, or else the rule's number in its chain: -D takes both.
func (p *patient) spec(r *rule) string {
	if r.spec != "" {
		return r.spec
	}
	all := p.asked.ruleset.chainRules(objectName{r.table, r.chain})
	number := slices.Index(all, r)
	if text, err := p.run(p.iptablesProgram(r.table)+"-save", "-t", r.table.name); err == nil {
		var specs []string
		for line := range strings.Lines(text) {
			if spec, ok := strings.CutPrefix(line, "-A "+r.chain+" "); ok {
				specs = append(specs, strings.TrimSpace(spec))
			}
		}
		if len(specs) == len(all) {
			return specs[number]
		}
	}
	return fmt.Sprint(number + 1)
}

// portsText lists ports for people.
func portsText(ports []rules.PortRange) string {
	if len(ports) == 1 && ports[0].First == ports[0].Last {
		return "port " + rules.FormatPorts(ports, ",")
	}
	return "ports " + strings.ReplaceAll(rules.FormatPorts(ports, ","), ",", ", ")
}
