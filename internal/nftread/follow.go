package nftread

import (
	"slices"
	"strings"

	"github.com/google/nftables/expr"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// A packet is the first one of a TCP connection, as far as rules are read.
type Packet struct {
	State uint32 // the bit of conntrack's state; all of them before conntrack
	// ports are those of which the destination port is one; sources the same of the source port,
	// nil if unknown.
	Ports, Sources []rules.PortRange
	// helper is the helper of the connection that expects this one, "" if none does.
	Helper string
	// in and out are the interfaces, "" if unknown.
	In, Out string
}

// certainty says whether a packet matches.
type certainty int

const (
	no certainty = iota
	perhaps
	yes
)

// on compares a packet with conditions.
func (p Packet) on(m Match) certainty {
	if m.NotTCP || m.States&p.State == 0 || m.Helper != "" && m.Helper != p.Helper {
		return no
	}
	sure := yes
	if m.Other {
		sure = perhaps
	}
	for _, c := range []certainty{
		onInterface(p.In, m.In, m.NotIn), onInterface(p.Out, m.Out, m.NotOut),
		onPorts(p.Ports, m.Ports), onPorts(p.Sources, m.Sources),
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
type Fate struct {
	Dropped bool
	// by is the rule that drops it, nil for the chain's policy.
	By *Rule
	// unless are rules that accept it under conditions that can't be judged, and don't name its state.
	Unless []*Rule
	// perhaps is a rule that names the packet's state and drops it under conditions that can't be judged.
	Perhaps *Rule
	// otherHelper is the one whose related connections are accepted instead.
	OtherHelper string
	// untracked is the rule that hides the packet from conntrack.
	Untracked *Rule
}

// reader follows a packet through chains.
type follower struct {
	rs     *Ruleset
	table  Table
	packet Packet
	seen   map[visit]bool
	fate   Fate
}

type visit struct {
	chain  string
	sure   certainty
	stated bool
	unsure bool
}

// fate follows a packet through a base chain. A rule that accepts it under conditions that can't
// be judged counts if it names the packet's state, since it is written for such packets.
func (rs *Ruleset) Follow(c Chain, p Packet) Fate {
	f := follower{rs: rs, table: c.Table, packet: p, seen: make(map[visit]bool)}
	if f.follow(c.Name, anything, false) != decided {
		f.fate.Dropped = c.Drops
	}
	return f.fate
}

// passes reports whether the packet may pass.
func (f Fate) Passes() bool { return !f.Dropped || len(f.Unless) > 0 }

// asWell reports whether data connections pass wherever their control connections do: by the same rules, which
// name no port. Both are between the same two hosts.
func (f Fate) CoversData(data Fate) bool {
	return f.Dropped && len(f.Unless) > 0 &&
		!slices.ContainsFunc(f.Unless, func(r *Rule) bool { return !slices.Contains(data.Unless, r) })
}

// outcome is what became of the packet in a chain.
type outcome int

const (
	ended   outcome = iota // the packet has come to the chain's end, or returned
	decided                // accepted or dropped
)

// follow reads a chain to which conditions lead. It is unsure whether the packet comes that far if a rule may
// have ended a chain before; then no rule surely drops it.
func (f *follower) follow(name string, on Match, unsure bool) outcome {
	// Under the same conditions the same chain decides nothing a second time.
	at := visit{name, f.packet.on(on), on.Stated, unsure}
	if f.seen[at] {
		return ended
	}
	f.seen[at] = true
	for _, r := range f.rs.RulesOf(Object{f.table, name}) {
		for _, a := range f.rs.Actions(r) {
			m := on.and(a.Match)
			sure := f.packet.on(m)
			if sure == no {
				if a.accepts() && m.Helper != "" && m.Helper != f.packet.Helper && m.States&f.packet.State != 0 && f.packet.Helper != "" {
					f.fate.OtherHelper = m.Helper
				}
				continue
			}
			switch v := a.Verdict; {
			case a.Notrack:
				if sure == yes || m.Ports != nil || m.Sources != nil {
					f.fate.Untracked = r
					return decided
				}
				if f.fate.Perhaps == nil {
					f.fate.Perhaps = r
				}
			case a.accepts():
				if sure == yes || m.Stated && f.packet.State != expr.CtStateBitNEW {
					return decided
				}
				f.fate.Unless = append(f.fate.Unless, r)
			case a.drops():
				if sure == yes && !unsure {
					f.fate.Dropped, f.fate.By = true, r
					return decided
				}
				if m.Stated && f.fate.Perhaps == nil {
					f.fate.Perhaps = r
				}
			case v == nil:
			case v.Code == VerdictReturn:
				if sure == yes {
					return ended
				}
				unsure = true
			case v.Code == VerdictJump || v.Code == VerdictGoto:
				if f.follow(v.Chain, m, unsure) == decided {
					return decided
				}
				if v.Code == VerdictGoto && sure == yes {
					return ended
				}
				unsure = unsure || v.Code == VerdictGoto
			}
		}
	}
	return ended
}

// accepts reports whether the packet passes, or goes to another program that decides.
func (a Action) accepts() bool {
	return a.Queue || a.Verdict != nil && a.Verdict.Code == VerdictAccept
}

func (a Action) drops() bool {
	return a.Reject || a.Verdict != nil && a.Verdict.Code == VerdictDrop
}

// chainRules are the rules of a chain, in order.
func (rs *Ruleset) RulesOf(at Object) []*Rule {
	if rs.byChain == nil {
		rs.byChain = make(map[Object][]*Rule)
		for i := range rs.Rules {
			r := &rs.Rules[i]
			in := Object{r.Table, r.Chain}
			rs.byChain[in] = append(rs.byChain[in], r)
		}
	}
	return rs.byChain[at]
}

// hasChain reports whether there is a chain of such a name.
func (rs *Ruleset) HasChain(table Table, name string) bool {
	return slices.ContainsFunc(rs.Chains, func(c Chain) bool { return c.Table == table && c.Name == name })
}
