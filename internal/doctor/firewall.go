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
	if family == nftread.FamilyIPv6 {
		return "ufw6-" + ufwChains[hook]
	}
	return "ufw-" + ufwChains[hook]
}

// firewallOf finds the firewall of a base chain by what is in the ruleset. The rule is the one in the way,
// nil if there is none but the chain's policy: what stands in a base chain of iptables before the jump to
// another firewall's chains was written by hand.
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

// precedes reports whether a rule stands in a base chain before the jump to another chain, or that jump is
// not there.
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

// A fix is a command for a shell, in the language of the firewall that owns the chain, and what becomes of
// it when the host starts again.
type fix struct {
	command, afterReboot string
}

const (
	savedByNft       = "lost, unless you change the file that nft loads at boot in the same way (/etc/nftables.conf, /etc/sysconfig/nftables.conf)"
	savedByAdmin     = "lost, unless you save the rules (netfilter-persistent save, or service iptables save) or change the file from which they are restored"
	savedByFirewalld = "kept, --permanent has saved it"
)

func saved(program, file string) string { return fmt.Sprintf("kept, %s loads %s", program, file) }

// accepting is how a base chain is made to accept related connections, in front of what drops them.
func (x *examination) acceptFix(c nftread.Chain, by *nftread.Rule) fix {
	const related = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
	program := x.iptablesProgram(c.Table)
	if c.Table.Name != "filter" {
		program += " -t " + c.Table.Name
	}
	switch firewallOf(x.cache.ruleset, c, by) {
	case firewalld:
		return fix{"firewall-cmd --reload", "kept, firewalld itself writes a rule that accepts them; another program has removed it, or has put one in front of it"}
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
			saved(program, file) + "; its file rules may drop them, too, in SECTION RELATED"}
	case iptables:
		if direct, ok := x.directRule(by); ok {
			return direct
		}
		if rs := x.cache.ruleset; by != nil && by.Chain == c.Name && (hasUfw(rs, c.Table) || rs.HasChain(c.Table, dockerChain)) {
			// To save all rules of the host would be to save those of ufw or Docker a second time.
			return fix{fmt.Sprintf("%s -D %s %s", program, c.Name, x.spec(by)), "kept, unless something sets the rule again: it is neither ufw's nor Docker's"}
		}
		return fix{fmt.Sprintf("%s -I %s %s", program, c.Name, related), savedByAdmin}
	}
	return fix{fmt.Sprintf("nft insert rule %s %s ct state established,related accept", c.Table, c.Name), savedByNft}
}

// removing is how a rule is removed that attaches a helper to control connections, or hides packets from
// conntrack.
func (x *examination) removalFix(c nftread.Chain, r *nftread.Rule, a nftread.Action) fix {
	rs := x.cache.ruleset
	switch firewallOf(rs, c, r) {
	case firewalld:
		if a.Helper != nil {
			return fix{fmt.Sprintf("firewall-cmd --permanent --service=ftp --remove-helper=%s && firewall-cmd --reload", a.Helper.Type),
				savedByFirewalld + "; a service of your own that has this helper is changed in the same way"}
		}
		return fix{"firewall-cmd --reload", "kept, firewalld itself writes no such rule"}
	case shorewall:
		program := shorewallProgram(c.Table)
		file := fmt.Sprintf("/etc/%s/conntrack", program)
		pattern := `^(NOTRACK|CT:notrack)`
		if a.Helper != nil {
			pattern = "^CT:helper:" + a.Helper.Type + "[:[:space:]]"
		}
		if a.Match.Ports != nil { // a column of its own
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
		return fix{remove, "kept, if it was ufw that set the rule: no line of " + file + " must be left that sets it"}
	}
	return fix{fmt.Sprintf("nft delete rule %s %s handle %d", r.Table, r.Chain, r.Handle), savedByNft}
}

// directRule removes a rule of iptables that is one of firewalld's direct rules.
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

// ufwFile is what ufw loads before its own rules.
func ufwFile(family byte) string {
	if family == nftread.FamilyIPv6 {
		return "/etc/ufw/before6.rules"
	}
	return "/etc/ufw/before.rules"
}

// iptablesPorts writes ports as iptables does: 21,1024:65535.
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

// iptablesProgram is the one that writes a table. "iptables" alone is one of two programs, as the host's
// alternatives say.
func (x *examination) iptablesProgram(t nftread.Table) string {
	name := "iptables"
	if t.Family == nftread.FamilyIPv6 {
		name = "ip6tables"
	}
	variant := "nft"
	if t.Legacy {
		variant = "legacy"
	}
	is := "nft" // where it can't be asked
	if version, err := x.run(name, "--version"); err == nil && !strings.Contains(version, "nf_tables") {
		is = "legacy" // versions before 1.8 say nothing
	}
	if is == variant {
		return name
	}
	return name + "-" + variant
}

// spec is how iptables writes a rule, or else the rule's number in its chain: -D takes both.
func (x *examination) spec(r *nftread.Rule) string {
	all := x.cache.ruleset.RulesOf(nftread.Object{Table: r.Table, Name: r.Chain})
	number := slices.Index(all, r)
	spec := r.Spec
	if spec == "" {
		spec = x.savedSpec(r, number, len(all))
	}
	if spec == "" || strings.ContainsAny(spec, "$`") { // a shell would read more than iptables in a comment
		return fmt.Sprint(number + 1)
	}
	return spec
}

// savedSpec asks iptables-save for one rule of so many in a chain. It is "" if there are not as many.
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

// portsText lists ports for people.
func portsText(ports []rules.PortRange) string {
	if len(ports) == 1 && ports[0].First == ports[0].Last {
		return "port " + rules.FormatPorts(ports, ",")
	}
	return "ports " + strings.ReplaceAll(rules.FormatPorts(ports, ","), ",", ", ")
}
