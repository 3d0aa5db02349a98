package nftread

import (
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// IptablesChains are the base chains of iptables' tables, with their type, hook and priority in nftables.
var IptablesChains = map[string]map[string]Chain{
	"filter": {
		"INPUT":   {Type: "filter", Hook: unix.NF_INET_LOCAL_IN},
		"FORWARD": {Type: "filter", Hook: unix.NF_INET_FORWARD},
		"OUTPUT":  {Type: "filter", Hook: unix.NF_INET_LOCAL_OUT},
	},
	"raw": {
		"PREROUTING": {Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: -300},
		"OUTPUT":     {Type: "filter", Hook: unix.NF_INET_LOCAL_OUT, Priority: -300},
	},
	"mangle": {
		"PREROUTING":  {Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: -150},
		"INPUT":       {Type: "filter", Hook: unix.NF_INET_LOCAL_IN, Priority: -150},
		"FORWARD":     {Type: "filter", Hook: unix.NF_INET_FORWARD, Priority: -150},
		"OUTPUT":      {Type: "route", Hook: unix.NF_INET_LOCAL_OUT, Priority: -150},
		"POSTROUTING": {Type: "filter", Hook: unix.NF_INET_POST_ROUTING, Priority: -150},
	},
	"security": {
		"INPUT":   {Type: "filter", Hook: unix.NF_INET_LOCAL_IN, Priority: 50},
		"FORWARD": {Type: "filter", Hook: unix.NF_INET_FORWARD, Priority: 50},
		"OUTPUT":  {Type: "filter", Hook: unix.NF_INET_LOCAL_OUT, Priority: 50},
	},
}

// iptablesExpressions are the expressions that iptables-nft can read (iptables/nft.c). Every rule that it writes
// has a counter.
var iptablesExpressions = []string{"bitwise", "cmp", "counter", "immediate", "limit", "log", "lookup", "match", "meta", "payload", "range", "target"}

// OwnedByIptables reports whether a table is one of iptables, even if nft has added rules to it.
func (rs *Ruleset) OwnedByIptables(t Table) bool {
	like, strange := rs.IptablesTable(t)
	return t.Legacy || like && (len(strange) == 0 || rs.WrittenByIptables(t))
}

// WrittenByIptables reports whether a table has expressions that only iptables-nft writes.
func (rs *Ruleset) WrittenByIptables(t Table) bool {
	return slices.ContainsFunc(rs.Rules, func(r Rule) bool { return r.Table == t && (r.has("match") || r.has("target")) })
}

// IptablesTable reports whether a table has the base chains of iptables-nft, and returns the rules in it that
// iptables-nft did not write.
func (rs *Ruleset) IptablesTable(t Table) (like bool, strange []*Rule) {
	names := IptablesChains[t.Name]
	if t.Legacy || t.Family == FamilyInet || names == nil {
		return false, nil
	}
	for _, c := range rs.Chains {
		if c.Table != t || !c.Base {
			continue
		}
		if is, ok := names[c.Name]; !ok || is.Type != c.Type || is.Hook != c.Hook || is.Priority != c.Priority {
			return false, nil
		}
	}
	for i := range rs.Rules {
		r := &rs.Rules[i]
		if r.Table == t && (!r.has("counter") || r.UnreadableByIptables()) {
			strange = append(strange, r)
		}
	}
	return true, strange
}

func (r *Rule) has(name string) bool {
	return slices.ContainsFunc(r.Exprs, func(e Expression) bool { return e.Name == name })
}

// UnreadableByIptables reports whether iptables-nft cannot read the rule. It then refuses the whole table.
func (r *Rule) UnreadableByIptables() bool {
	return slices.ContainsFunc(r.Exprs, func(e Expression) bool { return !slices.Contains(iptablesExpressions, e.Name) })
}

// AddSaved adds the tables that iptables-save prints, for FamilyIPv4 or FamilyIPv6 (iptables-extensions(8)).
func (rs *Ruleset) AddSaved(family byte, text string) {
	table := Table{Family: family, Legacy: true}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table.Name = line[1:]
		case strings.HasPrefix(line, ":"):
			name, policy, _ := strings.Cut(line[1:], " ")
			c, base := IptablesChains[table.Name][name]
			c.Table, c.Name, c.Base, c.Drops = table, name, base, strings.HasPrefix(policy, "DROP")
			rs.Chains = append(rs.Chains, c)
		case strings.HasPrefix(line, "-A "):
			name, spec, _ := strings.Cut(strings.TrimPrefix(line, "-A "), " ")
			rs.Rules = append(rs.Rules, Rule{Table: table, Chain: name, Spec: spec, actions: ParseSpec(spec)})
		}
	}
	rs.byChain = nil
}

// savedWords splits a rule into words. Comments and log prefixes are quoted.
func savedWords(spec string) []string {
	var words []string
	var word strings.Builder
	quoted, begun := false, false
	for i := 0; i < len(spec); i++ {
		switch c := spec[i]; {
		case c == '"':
			quoted, begun = !quoted, true
		case c == '\\' && quoted && i+1 < len(spec):
			i++
			word.WriteByte(spec[i])
		case c == ' ' && !quoted:
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if begun {
		words = append(words, word.String())
	}
	return words
}

// ParseSpec interprets a rule as iptables-save prints it after "-A CHAIN", never nil. An unknown option is a
// condition that cannot be interpreted.
func ParseSpec(spec string) []Action {
	m := anything
	actions := []Action{}
	words := savedWords(spec)
	next := func() (value string) {
		if len(words) > 0 {
			value, words = words[0], words[1:]
		}
		return value
	}
	not := false
	for len(words) > 0 {
		option := next()
		if option == "!" {
			not = true
			continue
		}
		switch option {
		case "-j", "-g":
			return append(actions, savedTarget(m, option, next(), words)...)
		case "-m":
			next()
			continue
		case "--comment":
			next()
		default:
			// A value that looks like an option counts as one more unknown condition.
			value := ""
			if len(words) > 0 && !strings.HasPrefix(words[0], "-") && words[0] != "!" {
				value = next()
			}
			savedCondition(&m, option, value, not)
		}
		not = false
	}
	return actions
}

func savedCondition(m *Match, option, value string, not bool) {
	switch option {
	case "-p":
		m.NotTCP = (value == "tcp" || value == "6") == not
	case "-i":
		m.onInterface(inInterface, savedInterface(value), not)
	case "-o":
		m.onInterface(outInterface, savedInterface(value), not)
	case "--ctstate", "--state":
		states := savedStates(value)
		if not {
			states = ^states
		}
		*m = m.and(Match{States: states, Stated: true})
	case "--dport", "--dports", "--destination-port", "--destination-ports":
		if ports := savedPorts(value); ports != nil && !not {
			m.Ports = ports
		} else {
			m.Other = true
		}
	case "--sport", "--sports", "--source-port", "--source-ports":
		if ports := savedPorts(value); ports != nil && !not {
			m.Sources = ports
		} else {
			m.Other = true
		}
	case "--helper":
		if m.Helper = value; not {
			m.Helper, m.Other = "", true
		}
	default:
		m.Other = true
	}
}

func savedInterface(name string) string {
	if prefix, ok := strings.CutSuffix(name, "+"); ok {
		return prefix + "*"
	}
	return name
}

func savedStates(list string) uint32 {
	bits := map[string]uint32{
		"INVALID": expr.CtStateBitINVALID, "ESTABLISHED": expr.CtStateBitESTABLISHED,
		"RELATED": expr.CtStateBitRELATED, "NEW": expr.CtStateBitNEW, "UNTRACKED": expr.CtStateBitUNTRACKED,
	}
	var states uint32
	for name := range strings.SplitSeq(list, ",") {
		states |= bits[name]
	}
	return states
}

// savedPorts parses "21", "1024:65535" and lists of these, nil if it cannot.
func savedPorts(list string) []rules.PortRange {
	var ports []rules.PortRange
	for item := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(item, ":")
		if !isRange {
			last = first
		}
		low, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return nil
		}
		high, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return nil
		}
		ports = append(ports, rules.PortRange{First: uint16(low), Last: uint16(high)})
	}
	return ports
}

// savedTarget returns the actions of a target and its options.
func savedTarget(m Match, option, target string, options []string) []Action {
	to := func(code int32, chain string) []Action {
		return []Action{{Match: m, Verdict: &Verdict{Code: code, Chain: chain}}}
	}
	switch target {
	case "ACCEPT":
		return to(VerdictAccept, "")
	case "DROP":
		return to(VerdictDrop, "")
	case "RETURN":
		return to(VerdictReturn, "")
	case "REJECT":
		return []Action{{Match: m, Reject: true}}
	case "NFQUEUE":
		return []Action{{Match: m, Queue: true}}
	case "NOTRACK":
		return []Action{{Match: m, Notrack: true}}
	case "CT":
		var actions []Action
		if slices.Contains(options, "--notrack") {
			actions = append(actions, Action{Match: m, Notrack: true})
		}
		if i := slices.Index(options, "--helper"); i >= 0 && i+1 < len(options) {
			actions = append(actions, Action{Match: m, Helper: &Helper{Type: options[i+1], TCP: true, Template: true}})
		}
		return actions
	}
	if option == "-g" {
		return to(VerdictGoto, target)
	}
	return to(VerdictJump, target) // a target such as LOG is a jump to no chain
}
