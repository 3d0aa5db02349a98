package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
)

// legacyFamilies are the files that list the tables of iptables-legacy in use.
var legacyFamilies = []struct {
	family byte
	names  string
}{
	{nftread.FamilyIPv4, "/proc/thread-self/net/ip_tables_names"},
	{nftread.FamilyIPv6, "/proc/thread-self/net/ip6_tables_names"},
}

// addLegacy adds the rules of iptables-legacy, which nftables does not list, to a ruleset. It returns the filter
// and raw tables in use, and why they could not be read.
func (x *examination) addLegacy(rs *nftread.Ruleset) (tables []string, err error) {
	for _, f := range legacyFamilies {
		text, readErr := x.readFile(f.names)
		if errors.Is(readErr, fs.ErrNotExist) {
			continue // the module is missing or not loaded
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
		program := x.iptablesProgram(nftread.Table{Family: f.family, Legacy: true}) + "-save"
		saved, runErr := x.run(program)
		if runErr == nil && !strings.Contains(saved, "*") {
			runErr = fmt.Errorf("%s lists no table", program)
		}
		if runErr != nil {
			err = errors.Join(err, runErr)
			continue
		}
		rs.AddSaved(f.family, saved)
	}
	return tables, err
}

// checkLegacy reports whether the rules of iptables-legacy could be read, if there are any.
func checkLegacy(x *examination) []Finding {
	_, _ = x.cachedRuleset()
	tables, err := x.cache.legacy, x.cache.legacyErr
	switch {
	case err != nil && len(tables) == 0:
		return unread("the list of iptables' tables", err)
	case len(tables) == 0:
		return checkIptables(x)
	case err != nil:
		return append(checkIptables(x), warning(fmt.Sprintf("the rules of iptables-legacy could not be read, in table %s: %v", strings.Join(tables, " and "), err),
			"they may drop related connections, or assign a helper to FTP", "iptables-legacy-save; ip6tables-legacy-save")...)
	}
	return append(checkIptables(x), ok("the rules of iptables-legacy were read too: table %s", strings.Join(tables, ", "))...)
}

// checkIptables finds rules in tables of iptables-nft that it cannot read.
func checkIptables(x *examination) []Finding {
	rs, err := x.cachedRuleset()
	if err != nil {
		return nil // other checks report it
	}
	var found []Finding
	for _, name := range slices.Sorted(maps.Keys(nftread.IptablesChains)) {
		for _, family := range []byte{nftread.FamilyIPv4, nftread.FamilyIPv6} {
			t := nftread.Table{Family: family, Name: name}
			like, strange := rs.IptablesTable(t)
			if !like || !rs.WrittenByIptables(t) {
				continue
			}
			for _, r := range strange {
				if r.UnreadableByIptables() {
					found = append(found, Finding{Level: Warning, rule: r,
						What:        fmt.Sprintf("table %s is one of iptables, which cannot read the rule with handle %d of chain %s: nft has added it", t, r.Handle, r.Chain),
						Why:         "iptables refuses the whole table, and iptables-save omits it: restoring that file removes these rules",
						Fix:         fmt.Sprintf("nft delete rule %s %s handle %d", t, r.Chain, r.Handle),
						AfterReboot: "kept if nothing adds the rule again; add its equivalent with " + x.iptablesProgram(t)})
				}
			}
		}
	}
	return found
}
