package nftread

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Packet describes the first packet of a TCP connection.
type Packet struct {
	State uint32 // bit of conntrack's state (expr.CtStateBit*); all bits before conntrack
	// Ports contain the destination port, Sources the source port; nil if unknown.
	Ports, Sources []rules.PortRange
	Helper         string // helper of the connection that expects this one, "" if none does
	In, Out        string // interfaces, "" if unknown
}

// certainty is whether a packet matches; a condition that cannot be interpreted gives perhaps.
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

// onInterface compares an interface, "" if unknown, with conditions, "" if there is none. No packet is on
// loopback: FTP there needs no helper.
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

// onPorts compares ports with a condition, nil if there is none. A range of ports, those of data connections,
// does not match a condition on a single port.
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

// Fate is what a base chain does to a packet.
type Fate struct {
	Dropped bool
	// By is the rule that drops it, nil for the chain's policy.
	By *Rule
	// Unless are rules that may accept it, under conditions that cannot be interpreted, and do not match its state.
	Unless []*Rule
	// Perhaps is the first rule that matches the packet's state and may drop it (or hide it from conntrack),
	// under conditions that cannot be interpreted.
	Perhaps *Rule
	// OtherHelper is a helper other than the packet's whose related connections are accepted.
	OtherHelper string
	// Untracked is the rule that hides the packet from conntrack.
	Untracked *Rule
}

// follower is the state of Ruleset.Follow.
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

// Follow returns what a base chain does to a packet. A rule that accepts under conditions that cannot be
// interpreted counts if it matches the packet's state, since it is written for such packets.
func (rs *Ruleset) Follow(c Chain, p Packet) Fate {
	f := follower{rs: rs, table: c.Table, packet: p, seen: make(map[visit]bool)}
	if f.follow(c.Name, anything, false) != decided {
		f.fate.Dropped = c.Drops
	}
	return f.fate
}

// Passes reports whether the packet may pass.
func (f Fate) Passes() bool { return !f.Dropped || len(f.Unless) > 0 }

// CoversData reports whether data connections pass wherever these control connections do: through the same
// rules, which match no port. Both are between the same two hosts.
func (f Fate) CoversData(data Fate) bool {
	return f.Dropped && len(f.Unless) > 0 &&
		!slices.ContainsFunc(f.Unless, func(r *Rule) bool { return !slices.Contains(data.Unless, r) })
}

// outcome is the end of the packet's way through a chain.
type outcome int

const (
	ended   outcome = iota // the packet returns to the calling chain
	decided                // accepted or dropped
)

// follow takes the packet through a chain that it enters under the conditions on. It is unsure that the packet
// enters if an earlier rule may have ended a chain; then no rule surely drops it.
func (f *follower) follow(name string, on Match, unsure bool) outcome {
	// A second visit under the same conditions has the same outcome.
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

// accepts reports whether the packet passes, or is queued to a program that decides.
func (a Action) accepts() bool {
	return a.Queue || a.Verdict != nil && a.Verdict.Code == VerdictAccept
}

func (a Action) drops() bool {
	return a.Reject || a.Verdict != nil && a.Verdict.Code == VerdictDrop
}

// RulesOf returns the rules of a chain, in order.
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

// HasChain reports whether a table has a chain of that name.
func (rs *Ruleset) HasChain(table Table, name string) bool {
	return slices.ContainsFunc(rs.Chains, func(c Chain) bool { return c.Table == table && c.Name == name })
}

// Walk calls visit for each action of the rules of a base chain and of all chains that they lead to. The
// action's match includes the conditions of the jumps.
func (rs *Ruleset) Walk(base Chain, visit func(r *Rule, a Action)) {
	seen := make(map[string]bool)
	var follow func(name string, on Match)
	follow = func(name string, on Match) {
		key := fmt.Sprintf("%s %#v", name, on)
		if seen[key] {
			return
		}
		seen[key] = true
		for _, r := range rs.RulesOf(Object{base.Table, name}) {
			for _, a := range rs.Actions(r) {
				a.Match = on.and(a.Match)
				visit(r, a)
				if v := a.Verdict; v != nil && (v.Code == VerdictJump || v.Code == VerdictGoto) {
					follow(v.Chain, a.Match)
				}
			}
		}
	}
	follow(base.Name, anything)
}
