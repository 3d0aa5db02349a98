package doctor

import "fmt"

// walk visits what the rules of a base chain do, and those of the chains to which they lead,
// with all the conditions on the way.
func (rs *ruleset) walk(base chain, visit func(r *rule, a action)) {
	byChain := make(map[objectName][]*rule)
	for i := range rs.rules {
		r := &rs.rules[i]
		at := objectName{r.table, r.chain}
		byChain[at] = append(byChain[at], r)
	}
	known := make(map[*rule][]action)
	seen := make(map[string]bool)
	var follow func(name string, on match)
	follow = func(name string, on match) {
		// Several ways lead to a chain; it need not be read twice for the same conditions.
		key := fmt.Sprintf("%s %#v", name, on)
		if seen[key] {
			return
		}
		seen[key] = true
		for _, r := range byChain[objectName{base.table, name}] {
			if _, ok := known[r]; !ok {
				known[r] = rs.actions(r)
			}
			for _, a := range known[r] {
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
