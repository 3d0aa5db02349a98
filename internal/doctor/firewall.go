package doctor

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// firewall is the program that writes, saves and restores a chain. A change by another program is lost when the
// firewall starts again, or makes it refuse its table.
type firewall int

const (
	plainNft firewall = iota
	iptables
	firewalld
	ufw
	docker
	shorewall
)

// Names by which firewalls are recognised.
const (
	firewalldTable    = "firewalld"
	firewalldIptables = "INPUT_ZONES" // firewalld with FirewallBackend=iptables
	dockerChain       = "DOCKER-USER"
	shorewallChain    = "shorewall"
)

// ufwChains are the chains that ufw's base chains call first, after "ufw-" or "ufw6-".
var ufwChains = map[uint32]string{
	unix.NF_INET_LOCAL_IN: "before-input", unix.NF_INET_FORWARD: "before-forward", unix.NF_INET_LOCAL_OUT: "before-output",
}

func ufwChain(family byte, hook uint32) string {
	if family == nftread.FamilyIPv6 {
		return "ufw6-" + ufwChains[hook]
	}
	return "ufw-" + ufwChains[hook]
}

// firewallOf returns the firewall of a rule in a base chain, nil for the chain's policy. Rules of iptables before
// the jump to another firewall's chains were written by hand.
func firewallOf(rs *nftread.Ruleset, c nftread.Chain, by *nftread.Rule) firewall {
	if c.Table.Name == firewalldTable {
		return firewalld
	}
	if !rs.OwnedByIptables(c.Table) {
		return plainNft
	}
	filter := nftread.Table{Family: c.Table.Family, Name: "filter", Legacy: c.Table.Legacy}
	switch before := ufwChain(c.Table.Family, c.Hook); {
	case rs.HasChain(filter, shorewallChain):
		return shorewall
	case rs.HasChain(filter, firewalldIptables):
		return firewalld
	case ufwChains[c.Hook] != "" && rs.HasChain(c.Table, before) && !precedes(rs, c, by, before):
		return ufw
	case c.Hook == unix.NF_INET_FORWARD && rs.HasChain(c.Table, dockerChain) && !precedes(rs, c, by, dockerChain):
		return docker
	}
	return iptables
}

// precedes reports whether a rule of a base chain is before the jump to another chain, or the chain has no such
// jump.
func precedes(rs *nftread.Ruleset, c nftread.Chain, r *nftread.Rule, to string) bool {
	for _, x := range rs.RulesOf(nftread.Object{Table: c.Table, Name: c.Name}) {
		if x == r {
			return true
		}
		if slices.ContainsFunc(rs.Actions(x), func(a nftread.Action) bool { return a.Verdict != nil && a.Verdict.Chain == to }) {
			return false
		}
	}
	return true
}

// fix is a shell command for the firewall of a chain, and what a reboot does to its effect.
type fix struct {
	command, afterReboot string
}

const (
	savedByNft       = "lost, unless you change the file that nft loads at boot in the same way (/etc/nftables.conf, /etc/sysconfig/nftables.conf)"
	savedByAdmin     = "lost, unless you save the rules (netfilter-persistent save, or service iptables save) or change the file from which they are restored"
	savedByFirewalld = "kept, --permanent has saved it"
)

func saved(program, file string) string { return fmt.Sprintf("kept, %s loads %s", program, file) }

// acceptFix makes a base chain accept related connections, before the rule that drops them.
func (x *examination) acceptFix(c nftread.Chain, by *nftread.Rule) fix {
	const related = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
	program := x.iptablesProgram(c.Table)
	if c.Table.Name != "filter" {
		program += " -t " + c.Table.Name
	}
	switch firewallOf(x.cache.ruleset, c, by) {
	case firewalld:
		return fix{"firewall-cmd --reload", "kept, firewalld writes a rule that accepts them; another program has removed it, or added one before it"}
	case ufw:
		chain, file := ufwChain(c.Table.Family, c.Hook), ufwFile(c.Table.Family)
		return fix{fmt.Sprintf("sed -i '/^:%s /a -A %s %s' %s && ufw reload", chain, chain, related, file), saved("ufw", file)}
	case docker:
		insert := fmt.Sprintf("%s -I %s %s", program, dockerChain, related)
		return fix{insert, "lost, unless Docker's service does it: systemctl edit docker, [Service], ExecStartPost=/usr/sbin/" + insert}
	case shorewall:
		program := shorewallProgram(c.Table)
		file := fmt.Sprintf("/etc/%s/%s.conf", program, program)
		return fix{fmt.Sprintf("sed -i 's/^RELATED_DISPOSITION=.*/RELATED_DISPOSITION=ACCEPT/' %s && %s reload", file, program),
			saved(program, file) + "; SECTION RELATED of its file rules may drop them too"}
	case iptables:
		if direct, ok := x.directRule(by); ok {
			return direct
		}
		if rs := x.cache.ruleset; by != nil && by.Chain == c.Name && (hasUfw(rs, c.Table) || rs.HasChain(c.Table, dockerChain)) {
			// Saving all rules would save those of ufw or Docker a second time.
			return fix{fmt.Sprintf("%s -D %s %s", program, c.Name, x.spec(by)), "kept, unless a program adds the rule again: it is not a rule of ufw or Docker"}
		}
		return fix{fmt.Sprintf("%s -I %s %s", program, c.Name, related), savedByAdmin}
	}
	return fix{fmt.Sprintf("nft insert rule %s %s ct state established,related accept", c.Table, c.Name), savedByNft}
}

// removalFix removes a rule that assigns a helper to control connections, or hides packets from conntrack.
func (x *examination) removalFix(c nftread.Chain, r *nftread.Rule, a nftread.Action) fix {
	rs := x.cache.ruleset
	switch firewallOf(rs, c, r) {
	case firewalld:
		if a.Helper != nil {
			return fix{fmt.Sprintf("firewall-cmd --permanent --service=ftp --remove-helper=%s && firewall-cmd --reload", a.Helper.Type),
				savedByFirewalld + "; change your own services with this helper in the same way"}
		}
		return fix{"firewall-cmd --reload", "kept, firewalld writes no such rule"}
	case shorewall:
		program := shorewallProgram(c.Table)
		file := fmt.Sprintf("/etc/%s/conntrack", program)
		pattern := `^(NOTRACK|CT:notrack)`
		if a.Helper != nil {
			pattern = "^CT:helper:" + a.Helper.Type + "[:[:space:]]"
		}
		if a.Match.Ports != nil { // in a separate column
			pattern += `.*[[:space:]]` + iptablesPorts(a.Match.Ports) + `([[:space:]]|$)`
		}
		return fix{fmt.Sprintf("sed -i -E '/%s/d' %s && %s reload", pattern, file, program), saved(program, file)}
	case iptables, ufw, docker:
		if direct, ok := x.directRule(r); ok {
			return direct
		}
		remove := fmt.Sprintf("%s -t %s -D %s %s", x.iptablesProgram(r.Table), r.Table.Name, r.Chain, x.spec(r))
		if !hasUfw(rs, r.Table) {
			return fix{remove, savedByAdmin}
		}
		file := ufwFile(r.Table.Family)
		if ports := a.Match.Ports; len(ports) == 1 {
			pattern := fmt.Sprintf("^-A %s .*--dport %s .*(--notrack|NOTRACK)", r.Chain, iptablesPorts(ports))
			if a.Helper != nil {
				pattern = fmt.Sprintf("^-A %s .*--dport %s .*--helper %s", r.Chain, iptablesPorts(ports), a.Helper.Type)
			}
			remove += fmt.Sprintf(" && sed -i -E '/%s/d' %s", pattern, file)
		}
		return fix{remove, "kept, if ufw added the rule and no line of " + file + " adds it any more"}
	}
	return fix{fmt.Sprintf("nft delete rule %s %s handle %d", r.Table, r.Chain, r.Handle), savedByNft}
}

// directRule removes one of firewalld's direct rules; ok is false for other rules.
func (x *examination) directRule(r *nftread.Rule) (f fix, ok bool) {
	rs := x.cache.ruleset
	if r == nil || !slices.ContainsFunc(rs.Chains, func(c nftread.Chain) bool { return c.Table.Name == firewalldTable }) {
		return fix{}, false
	}
	list, err := x.run("firewall-cmd", "--direct", "--get-all-rules")
	if err != nil {
		return fix{}, false // not running
	}
	family := "ipv4"
	if r.Table.Family == nftread.FamilyIPv6 {
		family = "ipv6"
	}
	place := fmt.Sprintf("%s %s %s ", family, r.Table.Name, strings.TrimSuffix(r.Chain, "_direct"))
	for line := range strings.Lines(list) { // family table chain priority rule
		line = strings.TrimSpace(line)
		_, spec, _ := strings.Cut(strings.TrimPrefix(line, place), " ")
		if strings.HasPrefix(line, place) && reflect.DeepEqual(nftread.ParseSpec(spec), rs.Actions(r)) {
			return fix{fmt.Sprintf("firewall-cmd --permanent --direct --remove-rule %s && firewall-cmd --reload", line), savedByFirewalld}, true
		}
	}
	return fix{}, false
}

// ufwFile is the file that ufw loads before its own rules.
func ufwFile(family byte) string {
	if family == nftread.FamilyIPv6 {
		return "/etc/ufw/before6.rules"
	}
	return "/etc/ufw/before.rules"
}

// iptablesPorts formats ports as iptables does: 21,1024:65535.
func iptablesPorts(ports []rules.PortRange) string {
	return strings.ReplaceAll(rules.FormatPorts(ports, ","), "-", ":")
}

func hasUfw(rs *nftread.Ruleset, of nftread.Table) bool {
	of.Name = "filter"
	return rs.HasChain(of, ufwChain(of.Family, unix.NF_INET_FORWARD))
}

func shorewallProgram(t nftread.Table) string {
	if t.Family == nftread.FamilyIPv6 {
		return "shorewall6"
	}
	return "shorewall"
}

// iptablesProgram returns the program of a table. "iptables" alone is one of two, by the host's alternatives.
func (x *examination) iptablesProgram(t nftread.Table) string {
	name := "iptables"
	if t.Family == nftread.FamilyIPv6 {
		name = "ip6tables"
	}
	variant := "nft"
	if t.Legacy {
		variant = "legacy"
	}
	is := "nft" // if the version is unknown
	if version, err := x.run(name, "--version"); err == nil && !strings.Contains(version, "nf_tables") {
		is = "legacy" // versions before 1.8 say nothing
	}
	if is == variant {
		return name
	}
	return name + "-" + variant
}

// spec returns a rule in the syntax of iptables, or else its number in the chain: -D takes both.
func (x *examination) spec(r *nftread.Rule) string {
	all := x.cache.ruleset.RulesOf(nftread.Object{Table: r.Table, Name: r.Chain})
	number := slices.Index(all, r)
	spec := r.Spec
	if spec == "" {
		spec = x.savedSpec(r, number, len(all))
	}
	if spec == "" || strings.ContainsAny(spec, "$`") { // a shell would expand it
		return fmt.Sprint(number + 1)
	}
	return spec
}

// savedSpec returns a rule of a chain from iptables-save, "" if the chain does not have count rules there.
func (x *examination) savedSpec(r *nftread.Rule, number, count int) string {
	text, err := x.run(x.iptablesProgram(r.Table)+"-save", "-t", r.Table.Name)
	if err != nil {
		return ""
	}
	var specs []string
	for line := range strings.Lines(text) {
		if spec, ok := strings.CutPrefix(line, "-A "+r.Chain+" "); ok {
			specs = append(specs, strings.TrimSpace(spec))
		}
	}
	if len(specs) != count {
		return ""
	}
	return specs[number]
}

// portsText returns "port 21" or "ports 20, 21".
func portsText(ports []rules.PortRange) string {
	if len(ports) == 1 && ports[0].First == ports[0].Last {
		return "port " + rules.FormatPorts(ports, ",")
	}
	return "ports " + strings.ReplaceAll(rules.FormatPorts(ports, ","), ",", ", ")
}
