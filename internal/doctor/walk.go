package doctor

import "fmt"

// walk visits what the rules of a base chain do, and those of the chains to which they lead,
// with all the conditions on the way.
func (rs *ruleset) walk(base chain, visit func(r *rule, a action)) {
	seen := make(map[string]bool)
	var follow func(name string, on match)
	follow = func(name string, on match) {
		// Several ways lead to a chain; it need not be read twice for the same conditions.
		key := fmt.Sprintf("%s %#v", name, on)
		if seen[key] {
			return
		}
		seen[key] = true
		for _, r := range rs.chainRules(objectName{base.table, name}) {
			for _, a := range rs.actions(r) {
				a.match = on.and(a.match)
				visit(r, a)
				if v := a.verdict; v != nil && (v.code == verdictJump || v.code == verdictGoto) {
					follow(v.chain, a.match)
				}
			}
		}
	}
	follow(base.name, anything)
}
