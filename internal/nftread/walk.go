package nftread

import "fmt"

// walk visits what the rules of a base chain do, and those of the chains to which they lead,
// with all the conditions on the way.
func (rs *Ruleset) Walk(base Chain, visit func(r *Rule, a Action)) {
	seen := make(map[string]bool)
	var follow func(name string, on Match)
	follow = func(name string, on Match) {
		// Several ways lead to a chain; it need not be read twice for the same conditions.
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
