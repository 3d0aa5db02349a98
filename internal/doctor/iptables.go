package doctor

import (
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"golang.org/x/sys/unix"
)

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

// ofIptables reports whether iptables owns a table, though nft may have added rules to it.
func (rs *ruleset) ofIptables(t tableName) bool {
	like, strange := rs.iptablesTable(t)
	return t.legacy || like && (len(strange) == 0 || rs.wroteIptables(t))
}

// wroteIptables reports whether there are expressions in a table that only iptables-nft writes.
func (rs *ruleset) wroteIptables(t tableName) bool {
	return slices.ContainsFunc(rs.rules, func(r rule) bool { return r.table == t && (r.has("match") || r.has("target")) })
}

// iptablesTable reports whether a table has the base chains that iptables-nft makes, and which rules in it are
// not iptables'. With one that it can't read, iptables refuses the whole table.
func (rs *ruleset) iptablesTable(t tableName) (like bool, strange []*rule) {
	names := iptablesChains[t.name]
	if t.legacy || t.family == familyInet || names == nil {
		return false, nil
	}
	for _, c := range rs.chains {
		if c.table != t || !c.base {
			continue
		}
		if is, ok := names[c.name]; !ok || is.kind != c.kind || is.hook != c.hook || is.priority != c.priority {
			return false, nil
		}
	}
	for i := range rs.rules {
		r := &rs.rules[i]
		if r.table == t && (!r.has("counter") || r.unreadable()) {
			strange = append(strange, r)
		}
	}
	return true, strange
}

func (r *rule) has(name string) bool {
	return slices.ContainsFunc(r.exprs, func(e expression) bool { return e.name == name })
}

// unreadable reports whether iptables-nft can't read the rule.
func (r *rule) unreadable() bool {
	return slices.ContainsFunc(r.exprs, func(e expression) bool { return !slices.Contains(iptablesExpressions, e.name) })
}

// addSaved adds what iptables-save prints to the ruleset.
func (rs *ruleset) addSaved(family byte, text string) {
	table := tableName{family: family, legacy: true}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table.name = line[1:]
		case strings.HasPrefix(line, ":"):
			name, policy, _ := strings.Cut(line[1:], " ")
			c, base := iptablesChains[table.name][name]
			c.table, c.name, c.base, c.drops = table, name, base, strings.HasPrefix(policy, "DROP")
			rs.chains = append(rs.chains, c)
		case strings.HasPrefix(line, "-A "):
			name, spec, _ := strings.Cut(strings.TrimPrefix(line, "-A "), " ")
			rs.rules = append(rs.rules, rule{table: table, chain: name, spec: spec, known: savedActions(spec)})
		}
	}
	rs.byChain = nil
}

// savedWords splits a rule into words; only comments and log prefixes are quoted.
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

// savedActions reads a rule as iptables-save prints it. An option that is not known is a condition that
// can't be judged. It is never nil.
func savedActions(spec string) []action {
	m := anything
	actions := []action{}
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
			// An option may have no value; if it has one that is read as an option, that is one more unknown condition.
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

func savedCondition(m *match, option, value string, not bool) {
	switch option {
	case "-p":
		m.notTCP = (value == "tcp" || value == "6") == not
	case "-i":
		m.onInterface(inInterface, savedInterface(value), not)
	case "-o":
		m.onInterface(outInterface, savedInterface(value), not)
	case "--ctstate", "--state":
		states := savedStates(value)
		if not {
			states = ^states
		}
		*m = m.and(match{states: states, stated: true})
	case "--dport", "--dports", "--destination-port", "--destination-ports":
		if ports := savedPorts(value); ports != nil && !not {
			m.ports = ports
		} else {
			m.other = true
		}
	case "--sport", "--sports", "--source-port", "--source-ports":
		if ports := savedPorts(value); ports != nil && !not {
			m.sources = ports
		} else {
			m.other = true
		}
	case "--helper":
		if m.helper = value; not {
			m.helper, m.other = "", true
		}
	default:
		m.other = true
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

// savedPorts reads "21", "1024:65535" and lists of these; nil is something else.
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

// savedTarget reads the target, with the options after it.
func savedTarget(m match, option, target string, options []string) []action {
	to := func(code int32, chain string) []action {
		return []action{{match: m, verdict: &verdict{code: code, chain: chain}}}
	}
	switch target {
	case "ACCEPT":
		return to(verdictAccept, "")
	case "DROP":
		return to(verdictDrop, "")
	case "RETURN":
		return to(verdictReturn, "")
	case "REJECT":
		return []action{{match: m, reject: true}}
	case "NFQUEUE":
		return []action{{match: m, queue: true}}
	case "NOTRACK":
		return []action{{match: m, notrack: true}}
	case "CT":
		var actions []action
		if slices.Contains(options, "--notrack") {
			actions = append(actions, action{match: m, notrack: true})
		}
		if i := slices.Index(options, "--helper"); i >= 0 && i+1 < len(options) {
			actions = append(actions, action{match: m, helper: &ctHelper{kind: options[i+1], tcp: true, template: true}})
		}
		return actions
	}
	if option == "-g" {
		return to(verdictGoto, target)
	}
	return to(verdictJump, target) // or a target that changes nothing here, to which no chain belongs
}
