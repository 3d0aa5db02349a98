package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// The rules of iptables-legacy are in kernel tables of their own, which only its programs read: what they
// save is read here (iptables-extensions(8)).

// legacyFamilies have the files that list the tables in use.
var legacyFamilies = []struct {
	family byte
	names  string
}{
	{familyIPv4, "/proc/thread-self/net/ip_tables_names"},
	{familyIPv6, "/proc/thread-self/net/ip6_tables_names"},
}

// addLegacy adds the rules of iptables-legacy to a ruleset. It returns the tables that are in use and why
// they could not be read.
func (p *patient) addLegacy(rs *ruleset) (tables []string, err error) {
	for _, f := range legacyFamilies {
		text, readErr := p.readFile(f.names)
		if errors.Is(readErr, fs.ErrNotExist) {
			continue // the kernel has not got it, or has not loaded it
		}
		if readErr != nil {
			return tables, readErr
		}
		names := strings.Fields(string(text))
		for _, name := range names {
			if (name == "filter" || name == "raw") && !slices.Contains(tables, name) {
				tables = append(tables, name)
			}
		}
		if len(names) == 0 {
			continue
		}
		program := p.iptablesProgram(tableName{family: f.family, legacy: true}) + "-save"
		saved, runErr := p.run(program)
		if runErr == nil && !strings.Contains(saved, "*") {
			runErr = fmt.Errorf("%s lists no table", program)
		}
		if runErr != nil {
			err = errors.Join(err, runErr)
			continue
		}
		rs.addSaved(f.family, saved)
	}
	return tables, err
}

// checkLegacy says whether the rules of iptables-legacy could be read, if there are any.
func checkLegacy(p *patient) []Finding {
	_, _ = p.rulesetOnce()
	tables, err := p.asked.legacy, p.asked.legacyErr
	switch {
	case err != nil && len(tables) == 0:
		return unread("the list of iptables' tables", err)
	case len(tables) == 0:
		return checkIptables(p)
	case err != nil:
		return append(checkIptables(p), warning(fmt.Sprintf("the rules of iptables-legacy are not read, in table %s: %v", strings.Join(tables, " and "), err),
			"they may drop related connections, or attach a helper to FTP", "iptables-legacy-save; ip6tables-legacy-save")...)
	}
	return append(checkIptables(p), ok("the rules of iptables-legacy are read, too: table %s", strings.Join(tables, ", "))...)
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
