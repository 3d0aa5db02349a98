package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// mostInterfaces is the number of interfaces up to which rules are read for each pair of them; beyond it, a
// condition on an interface counts as one that cannot be interpreted.
const mostInterfaces = 16

// checkRelated finds chains that drop related connections: the data connections that the helper opens.
func checkRelated(x *examination) []Finding {
	rs, err := x.cachedRuleset()
	if err != nil {
		return unread("the ruleset", err)
	}
	interfaces := []string{""}
	if found, err := x.addresses(); err == nil && len(found) > 0 && len(found) <= mostInterfaces {
		interfaces = slices.Sorted(maps.Keys(found))
	}
	filters := &filters{examination: x, rs: rs, interfaces: interfaces, passes: make(map[hookPath]bool)}
	for _, c := range rs.Chains {
		if c.Base && (c.Type == "filter" || c.Type == "route") && filtersTCP[c.Hook] && c.Table.Name != ownTable {
			filters.chains = append(filters.chains, c)
		}
	}
	var found []Finding
	var accepting []string
	for _, c := range filters.chains {
		f, dropping := filters.examine(c)
		switch {
		case f.Level != OK:
			found = append(found, f)
		case dropping:
			accepting = append(accepting, fmt.Sprintf("%s/%s", c.Table, c.Name))
		}
	}
	switch {
	case len(found) > 0:
		return found
	case len(accepting) == 0:
		return ok("no chain drops data connections")
	}
	return ok("related connections are accepted in %s", strings.Join(accepting, ", "))
}

// highPorts are the ports of data connections.
var highPorts = []rules.PortRange{{First: 1024, Last: 65535}}

// dataPacket returns the first packet of a data connection.
func dataPacket(helper, in, out string) nftread.Packet {
	return nftread.Packet{State: expr.CtStateBitRELATED, Ports: highPorts, Helper: helper, In: in, Out: out}
}

// controlPacket returns the first packet of a control connection.
func controlPacket(ports []rules.PortRange, in, out string) nftread.Packet {
	return nftread.Packet{State: expr.CtStateBitNEW, Ports: ports, In: in, Out: out}
}

var filtersTCP = map[uint32]bool{unix.NF_INET_LOCAL_IN: true, unix.NF_INET_FORWARD: true, unix.NF_INET_LOCAL_OUT: true}

// noState is a bit that no rule matches.
const noState = 1 << 31

// filters are the base chains that filter TCP.
type filters struct {
	*examination
	rs         *nftread.Ruleset
	chains     []nftread.Chain
	interfaces []string          // "" if unknown
	passes     map[hookPath]bool // of controlPasses
}

// hookPath is a path of a family through a hook.
type hookPath struct {
	hook   uint32
	family byte
	path   path
}

// path is the interfaces of a packet; "" is none, or unknown.
type path struct{ in, out string }

// String returns "eth0 to eth1", say, "" if the interfaces are unknown.
func (w path) String() string {
	switch {
	case w.in != "" && w.out != "":
		return w.in + " to " + w.out
	case w.in != "":
		return "from " + w.in
	case w.out != "":
		return "to " + w.out
	}
	return ""
}

func (f *filters) paths(hook uint32) []path {
	var all []path
	for _, in := range f.interfaces {
		switch hook {
		case unix.NF_INET_LOCAL_IN:
			all = append(all, path{in: in})
		case unix.NF_INET_LOCAL_OUT:
			all = append(all, path{out: in})
		default:
			for _, out := range f.interfaces {
				if in != out || in == "" {
					all = append(all, path{in, out})
				}
			}
		}
	}
	if len(all) == 0 { // forwarded by the only interface
		all = append(all, path{f.interfaces[0], f.interfaces[0]})
	}
	return all
}

// controlPasses reports whether control connections may pass all chains of a hook, for FamilyInet over IPv4 or
// IPv6.
func (f *filters) controlPasses(hook uint32, family byte, w path) bool {
	if family == nftread.FamilyInet {
		return f.controlPasses(hook, nftread.FamilyIPv4, w) || f.controlPasses(hook, nftread.FamilyIPv6, w)
	}
	at := hookPath{hook, family, w}
	passes, known := f.passes[at]
	if !known {
		passes = !slices.ContainsFunc(f.chains, func(c nftread.Chain) bool {
			return c.Hook == hook && (c.Table.Family == family || c.Table.Family == nftread.FamilyInet) &&
				!f.rs.Follow(c, controlPacket(f.controlPorts(), w.in, w.out)).Passes()
		})
		f.passes[at] = passes
	}
	return passes
}

// closed reports whether control connections pass neither to this host nor through it.
func (f *filters) closed(family byte) bool {
	for _, hook := range []uint32{unix.NF_INET_LOCAL_IN, unix.NF_INET_FORWARD} {
		if slices.ContainsFunc(f.paths(hook), func(w path) bool { return f.controlPasses(hook, family, w) }) {
			return false
		}
	}
	return true
}

// examine returns the finding about a chain that drops data connections. It is dropping if it drops what no rule
// accepts.
func (f *filters) examine(c nftread.Chain) (found Finding, dropping bool) {
	var lost, maybe, passive []path // on which control connections pass
	var worst, perhaps, closed, active nftread.Fate
	for _, w := range f.paths(c.Hook) {
		data := f.rs.Follow(c, dataPacket(f.config.Helper, w.in, w.out))
		dropping = dropping || f.rs.Follow(c, nftread.Packet{State: noState, Ports: highPorts, In: w.in, Out: w.out}).Dropped
		if !data.Dropped && data.Perhaps == nil {
			continue
		}
		// A passive data connection has the direction of the control connection, an active one the opposite.
		back := path{w.out, w.in}
		controlMayPass := f.controlPasses(c.Hook, c.Table.Family, w) || c.Hook == unix.NF_INET_FORWARD && f.controlPasses(c.Hook, c.Table.Family, back) ||
			c.Hook == unix.NF_INET_LOCAL_OUT && f.controlPasses(unix.NF_INET_LOCAL_IN, c.Table.Family, path{in: w.out})
		switch {
		case data.Dropped && f.rs.Follow(c, controlPacket(f.controlPorts(), w.in, w.out)).CoversData(data):
			if other := f.rs.Follow(c, dataPacket(f.config.Helper, back.in, back.out)); c.Hook == unix.NF_INET_FORWARD && other.Dropped {
				passive, active = append(passive, w), other
			}
		case data.Dropped && controlMayPass:
			lost, worst = append(lost, w), data
		case data.Dropped:
			closed.Dropped, closed.By, closed.OtherHelper = true, data.By, data.OtherHelper
		case controlMayPass:
			maybe, perhaps = append(maybe, w), data
		}
	}
	switch {
	case len(lost) > 0:
		return f.relatedFinding(c, worst, lost), dropping
	case len(passive) > 0:
		found := f.relatedFinding(c, active, passive)
		found.Level = Warning
		found.Why = "active FTP fails: the chain accepts connections from some addresses, but not the data connections in the other direction"
		return found, dropping
	case len(maybe) > 0:
		fix := f.acceptFix(c, perhaps.Perhaps)
		return Finding{Level: Warning,
			What: fmt.Sprintf("table %s, chain %s may drop related connections, by a condition that cannot be interpreted: %s", c.Table, c.Name, f.text(perhaps.Perhaps)),
			Why:  "FTP transfers that meet the condition fail",
			Fix:  fix.command, AfterReboot: fix.afterReboot, rule: perhaps.Perhaps, base: &c}, dropping
	case closed.Dropped:
		found := f.relatedFinding(c, closed, nil)
		if !f.closed(c.Table.Family) {
			found.Level = Warning
		}
		found.Why = fmt.Sprintf("no FTP passes this chain: it drops new connections to %s as well. If FTP is to pass, accept both", portsText(f.controlPorts()))
		return found, dropping
	}
	return Finding{}, dropping
}

// relatedFinding is the finding about a chain that drops the data connections of the lost paths, nil for all.
func (f *filters) relatedFinding(c nftread.Chain, by nftread.Fate, lost []path) Finding {
	what := fmt.Sprintf("table %s, chain %s drops", c.Table, c.Name)
	const most = 3
	if names := pathNames(lost); len(names) > 0 && len(lost) < len(f.paths(c.Hook)) {
		more := ""
		if len(names) > most {
			names, more = names[:most], fmt.Sprintf(" and %d more", len(names)-most)
		}
		what = fmt.Sprintf("table %s, chain %s (%s%s) drops", c.Table, c.Name, strings.Join(names, ", "), more)
	}
	switch {
	case by.OtherHelper != "":
		what = fmt.Sprintf("table %s, chain %s accepts related connections of the helper %q only; ours is %q", c.Table, c.Name, by.OtherHelper, f.config.Helper)
	case by.By != nil && f.matchesState(by.By):
		what += " related connections: " + f.text(by.By)
	default:
		what += ", and has no rule that accepts related connections"
	}
	fix := f.acceptFix(c, by.By)
	return Finding{Level: Problem, What: what,
		Why: "FTP transfers will fail: this chain drops the data connections that the helper opens",
		Fix: fix.command, AfterReboot: fix.afterReboot, rule: by.By, base: &c}
}

func pathNames(paths []path) []string {
	var names []string
	for _, w := range paths {
		if s := w.String(); s != "" {
			names = append(names, s)
		}
	}
	return names
}

// matchesState reports whether a rule matches states, and so drops related connections on purpose.
func (f *filters) matchesState(r *nftread.Rule) bool {
	return slices.ContainsFunc(f.rs.Actions(r), func(a nftread.Action) bool { return a.Match.Stated })
}

// text identifies a rule in the syntax of its firewall.
func (f *filters) text(r *nftread.Rule) string {
	if f.rs.OwnedByIptables(r.Table) {
		spec := f.spec(r)
		if strings.HasPrefix(spec, "-") || strings.HasPrefix(spec, "!") {
			return fmt.Sprintf("-A %s %s", r.Chain, spec)
		}
		return fmt.Sprintf("rule %s of chain %s", spec, r.Chain)
	}
	return fmt.Sprintf("the rule with handle %d of chain %s", r.Handle, r.Chain)
}
