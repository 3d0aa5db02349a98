package doctor

import (
	"slices"
	"strings"

	"github.com/google/nftables/expr"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// A packet is the first one of a TCP connection, as far as rules are read.
type packet struct {
	state uint32 // the bit of conntrack's state; all of them before conntrack
	// ports are those of which the destination port is one; sources the same of the source port,
	// nil if unknown.
	ports, sources []rules.PortRange
	// helper is the helper of the connection that expects this one, "" if none does.
	helper string
	// in and out are the interfaces, "" if unknown.
	in, out string
}

// certainty says whether a packet matches.
type certainty int

const (
	no certainty = iota
	perhaps
	yes
)

// on compares a packet with conditions.
func (p packet) on(m match) certainty {
	if m.notTCP || m.states&p.state == 0 || m.helper != "" && m.helper != p.helper {
		return no
	}
	sure := yes
	if m.other {
		sure = perhaps
	}
	for _, c := range []certainty{
		onInterface(p.in, m.in, m.notIn), onInterface(p.out, m.out, m.notOut),
		onPorts(p.ports, m.ports), onPorts(p.sources, m.sources),
	} {
		sure = min(sure, c)
	}
	return sure
}

// onInterface compares an interface, "" if unknown, with conditions, "" if there is none. FTP over
// loopback takes no helper.
func onInterface(name, is, not string) certainty {
	switch {
	case is == loopback:
		return no
	case name == "" && (is != "" || not != "" && not != loopback):
		return perhaps
	case is != "" && !sameInterface(name, is), not != "" && sameInterface(name, not):
		return no
	}
	return yes
}

func sameInterface(name, pattern string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return name == pattern
}

// onPorts compares ports with a condition, nil if there is none. Data connections are not on single
// ports, so a condition on these is not for them.
func onPorts(ports, condition []rules.PortRange) certainty {
	if condition == nil {
		return yes
	}
	if ports == nil {
		return perhaps
	}
	found := no
	for _, p := range ports {
		for _, c := range condition {
			switch {
			case c.First > p.Last || p.First > c.Last || p.First < p.Last && c.First == c.Last:
			case p.First == p.Last || c.First <= p.First && p.Last <= c.Last:
				return yes
			default:
				found = perhaps
			}
		}
	}
	return found
}

// A fate is what a base chain does to a packet.
type fate struct {
	dropped bool
	// by is the rule that drops it, nil for the chain's policy.
	by *rule
	// unless are rules that accept it under conditions that can't be judged, and don't name its state.
	unless []*rule
	// perhaps is a rule that names the packet's state and drops it under conditions that can't be judged.
	perhaps *rule
	// otherHelper is the one whose related connections are accepted instead.
	otherHelper string
	// untracked is the rule that hides the packet from conntrack.
	untracked *rule
}

// reader follows a packet through chains.
type reader struct {
	rs     *ruleset
	table  tableName
	packet packet
	seen   map[visit]bool
	fate   fate
}

type visit struct {
	chain  string
	sure   certainty
	stated bool
	unsure bool
}

// fate follows a packet through a base chain. A rule that accepts it under conditions that can't
// be judged counts if it names the packet's state, since it is written for such packets.
func (rs *ruleset) fate(c chain, p packet) fate {
	f := reader{rs: rs, table: c.table, packet: p, seen: make(map[visit]bool)}
	if f.follow(c.name, anything, false) != decided {
		f.fate.dropped = c.drops
	}
	return f.fate
}

// passes reports whether the packet may pass.
func (f fate) passes() bool { return !f.dropped || len(f.unless) > 0 }

// asWell reports whether data connections pass wherever their control connections do: by the same rules, which
// name no port. Both are between the same two hosts.
func (f fate) asWell(data fate) bool {
	return f.dropped && len(f.unless) > 0 &&
		!slices.ContainsFunc(f.unless, func(r *rule) bool { return !slices.Contains(data.unless, r) })
}

// outcome is what became of the packet in a chain.
type outcome int

const (
	ended   outcome = iota // the packet has come to the chain's end, or returned
	decided                // accepted or dropped
)

// follow reads a chain to which conditions lead. It is unsure whether the packet comes that far if a rule may
// have ended a chain before; then no rule surely drops it.
func (f *reader) follow(name string, on match, unsure bool) outcome {
	// Under the same conditions the same chain decides nothing a second time.
	at := visit{name, f.packet.on(on), on.stated, unsure}
	if f.seen[at] {
		return ended
	}
	f.seen[at] = true
	for _, r := range f.rs.chainRules(objectName{f.table, name}) {
		for _, a := range f.rs.actions(r) {
			m := on.and(a.match)
			sure := f.packet.on(m)
			if sure == no {
				if a.accepts() && m.helper != "" && m.helper != f.packet.helper && m.states&f.packet.state != 0 && f.packet.helper != "" {
					f.fate.otherHelper = m.helper
				}
				continue
			}
			switch v := a.verdict; {
			case a.notrack:
				if sure == yes || m.ports != nil || m.sources != nil {
					f.fate.untracked = r
					return decided
				}
				if f.fate.perhaps == nil {
					f.fate.perhaps = r
				}
			case a.accepts():
				if sure == yes || m.stated && f.packet.state != expr.CtStateBitNEW {
					return decided
				}
				f.fate.unless = append(f.fate.unless, r)
			case a.drops():
				if sure == yes && !unsure {
					f.fate.dropped, f.fate.by = true, r
					return decided
				}
				if m.stated && f.fate.perhaps == nil {
					f.fate.perhaps = r
				}
			case v == nil:
			case v.code == verdictReturn:
				if sure == yes {
					return ended
				}
				unsure = true
			case v.code == verdictJump || v.code == verdictGoto:
				if f.follow(v.chain, m, unsure) == decided {
					return decided
				}
				if v.code == verdictGoto && sure == yes {
					return ended
				}
				unsure = unsure || v.code == verdictGoto
			}
		}
	}
	return ended
}

// accepts reports whether the packet passes, or goes to another program that decides.
func (a action) accepts() bool {
	return a.queue || a.verdict != nil && a.verdict.code == verdictAccept
}

func (a action) drops() bool {
	return a.reject || a.verdict != nil && a.verdict.code == verdictDrop
}

// chainRules are the rules of a chain, in order.
func (rs *ruleset) chainRules(at objectName) []*rule {
	if rs.byChain == nil {
		rs.byChain = make(map[objectName][]*rule)
		for i := range rs.rules {
			r := &rs.rules[i]
			in := objectName{r.table, r.chain}
			rs.byChain[in] = append(rs.byChain[in], r)
		}
	}
	return rs.byChain[at]
}

// hasChain reports whether there is a chain of such a name.
func (rs *ruleset) hasChain(table tableName, name string) bool {
	return slices.ContainsFunc(rs.chains, func(c chain) bool { return c.table == table && c.name == name })
}
