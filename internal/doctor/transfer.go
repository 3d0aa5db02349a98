package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// transfers are the test transfers in a replica of the host.
type transfers struct {
	paths   []transferPath
	refused []place  // that dropped control connections where none passed
	omitted []string // what was not tried, and what the replica does not have
}

// transferPath is a path through the host on which a control connection passes.
type transferPath struct {
	from, to string // interfaces, or thisHost
	ipv6     bool
	reply    *place // that dropped the server's SYN-ACK of the control connection
	helper   error  // why no expectation could be installed
	// passive and active are the data connections that did not pass.
	passive, active *loss
	explicit        bool // the filter accepts FTP to this host, and not every port
}

// loss is a data connection that did not pass.
type loss struct{ at *place } // that dropped it, nil if unknown

const thisHost = "this host"

// String returns "eth0 to eth1, IPv4", say.
func (p transferPath) String() string {
	family := "IPv4"
	if p.ipv6 {
		family = "IPv6"
	}
	return fmt.Sprintf("%s to %s, %s", p.from, p.to, family)
}

// rank is 0 for paths through the host, 1 for those to it, 2 for those from it.
func (p transferPath) rank() int {
	switch thisHost {
	case p.to:
		return 1
	case p.from:
		return 2
	}
	return 0
}

// maxAttempts limits the number of control connections.
const maxAttempts = 1000

var errNoInterface = errors.New("no interface is up but loopback")

// transfers implements system.
func (host) transfers(c backend.Plan) (t transfers, err error) {
	s, err := takeSnapshot()
	if err != nil {
		return transfers{}, err
	}
	if len(s.links) == 0 {
		return transfers{}, errNoInterface
	}
	if c.Helper == backend.CTHelper {
		if s.matchesHelper() {
			return transfers{}, fmt.Errorf("its rules match the helper %s, which a copy cannot have", c.Rules.Helper)
		}
		var standIn probe
		if err := standIn.standInCarrier(&c); err != nil {
			return transfers{}, err
		}
		if standIn.noHelper != "" {
			return transfers{}, errors.New(standIn.noHelper)
		}
	}
	err = inReplica(s, c.Rules, func(r *replica) error { return r.transfers(c.Rules.Ports, &t) })
	t.omitted = s.omitted
	return t, err
}

// transfers finds the paths on which a control connection passes, and tries the data connections of one control
// connection on each.
func (r *replica) transfers(ports []rules.PortRange, t *transfers) error {
	ends := r.endpoints()
	attempts := 0
	for _, client := range ends {
		for _, server := range ends {
			if client.addr.Is6() != server.addr.Is6() || client.via == server.via {
				continue
			}
			for _, p := range ports {
				// NAT may translate an address of this host.
				if server.via != thisHost && t.has(client.via, server.via, client.addr.Is6()) {
					break
				}
				if attempts++; attempts > maxAttempts {
					return nil
				}
				if err := r.transfer(client, netip.AddrPortFrom(server.addr, p.First), t); err != nil {
					return fmt.Errorf("from %s to %s: %w", client.addr, server.addr, err)
				}
			}
		}
	}
	return nil
}

// has reports whether a control connection has passed on a path.
func (t *transfers) has(from, to string, ipv6 bool) bool {
	return slices.ContainsFunc(t.paths, func(p transferPath) bool { return p.from == from && p.to == to && p.ipv6 == ipv6 })
}

// transfer tries one control connection and, if it passes on a new path, its data connections.
func (r *replica) transfer(client endpoint, server netip.AddrPort, t *transfers) error {
	if _, local, err := r.interfaceTo(server.Addr()); err == nil && local {
		if err := r.listen(server); err != nil {
			return err
		}
	}
	control, err := r.connect(netip.AddrPortFrom(client.addr, r.port()), server)
	if err != nil {
		return err
	}
	m := control.master
	if m == nil {
		if control.at != nil && !slices.Contains(t.refused, *control.at) {
			t.refused = append(t.refused, *control.at)
		}
		return nil
	}
	p := transferPath{from: client.via, to: thisHost, ipv6: client.addr.Is6()}
	out, serverHere, err := r.interfaceTo(m.Server().Addr())
	if err != nil {
		return nil // NAT to an address that has no route
	}
	if !serverHere {
		p.to = out.name
	}
	if p.from == p.to || t.has(p.from, p.to, p.ipv6) {
		return nil
	}
	if err := r.data(m, control, &p); err != nil {
		return err
	}
	if serverHere {
		other, err := r.connect(netip.AddrPortFrom(client.addr, r.port()), netip.AddrPortFrom(server.Addr(), r.port()))
		if err != nil {
			return err
		}
		p.explicit = other.master == nil
	}
	t.paths = append(t.paths, p)
	return nil
}

// data does what server and daemon do after the client's SYN: the SYN-ACK, then for a passive and for an active
// transfer an expectation and its data connection.
func (r *replica) data(m *expect.Master, control segmentResult, p *transferPath) error {
	reply := m.Tuples[expect.Reply]
	answer, err := r.accept(reply.Src, reply.Dst, control.seq)
	if err != nil {
		return err
	}
	p.reply = answer.at
	if p.reply == nil {
		p.reply = control.answer
	}
	if p.reply != nil {
		return nil
	}
	const serverData = 20 // RFC 959 section 5.2
	for _, try := range []struct {
		announcedBy expect.Direction
		source      uint16
		lost        **loss
	}{{expect.Reply, r.port(), &p.passive}, {expect.Original, serverData, &p.active}} {
		e := expect.For(m, try.announcedBy, r.port())
		if p.helper = r.ct.Announce(m, e, expect.Update{}); p.helper != nil {
			return nil
		}
		o, err := r.connect(netip.AddrPortFrom(e.Src, try.source), e.Dst)
		if err != nil {
			return err
		}
		if o.master == nil {
			*try.lost = &loss{o.at}
		}
	}
	return nil
}

// outside are addresses for paths by a default route: root name server a, which no list of bogus addresses has.
// No packet leaves the replica.
var outside = []netip.Addr{netip.MustParseAddr("198.41.0.4"), netip.MustParseAddr("2001:503:ba3e::2:30")}

// endpoint is an address of a client or a server.
type endpoint struct {
	addr netip.Addr
	via  string // interface to it, or thisHost
}

// maxEndpoints limits the number of addresses of each kind and family.
const maxEndpoints = 16

// endpoints returns addresses that have a route: first those in rules, as a filter may accept FTP for one server
// only, then a neighbour in each network, one outside, and the replica's own.
func (r *replica) endpoints() []endpoint {
	own, near := r.addrs()
	var all []endpoint
	untried := 0
	for _, kind := range [][]netip.Addr{r.constants(), near, outside, own} {
		tried := make(map[bool]int)
		for _, a := range kind {
			if slices.ContainsFunc(all, func(e endpoint) bool { return e.addr == a }) {
				continue
			}
			if tried[a.Is6()]++; tried[a.Is6()] > maxEndpoints {
				untried++
				continue
			}
			l, local, err := r.interfaceTo(a)
			switch {
			case err != nil: // no route
			case local:
				all = append(all, endpoint{a, thisHost})
			default:
				all = append(all, endpoint{a, l.name})
			}
		}
	}
	if untried > 0 {
		r.omitted = append(r.omitted, fmt.Sprintf("%d addresses", untried))
	}
	return all
}

// addrs returns the replica's own addresses, and a neighbour in each of its networks.
func (r *replica) addrs() (own, near []netip.Addr) {
	for _, a := range r.addresses {
		addr, ok := netip.AddrFromSlice(a.attributes.Find(unix.IFA_LOCAL))
		if !ok {
			addr, ok = netip.AddrFromSlice(a.attributes.Find(unix.IFA_ADDRESS))
		}
		if !ok || addr.IsLoopback() || addr.IsLinkLocalUnicast() || !r.has(a.index()) {
			continue
		}
		own = append(own, addr)
		near = append(near, neighbour(netip.PrefixFrom(addr, int(a.header[1]))))
	}
	for _, route := range r.routes {
		to, ok := netip.AddrFromSlice(route.attributes.Find(unix.RTA_DST))
		if ok && r.rebuildable(route) && !to.IsLinkLocalUnicast() && !to.IsMulticast() {
			near = append(near, neighbour(netip.PrefixFrom(to, int(route.header[1]))))
		}
	}
	return own, near
}

// neighbour returns another address of a network, or the address itself if there is no other.
func neighbour(p netip.Prefix) netip.Addr {
	first := p.Masked().Addr()
	for a := first.Next().Next(); a.IsValid() && p.Contains(a); a = a.Next() {
		if a != p.Addr() {
			return a
		}
	}
	return p.Addr()
}

// constants returns addresses in rules, some of each set.
func (r *replica) constants() []netip.Addr {
	const perSet = 4
	var compared, inSets []netip.Addr
	for _, m := range r.nft {
		if m.typ != unix.NFT_MSG_NEWRULE {
			continue
		}
		length, masked := 0, false // of the address in the register
		for _, e := range nftread.ParseRule(m.family, m.attrs).Exprs {
			switch e.Name {
			case "payload":
				length, masked = addressLength(e), false
			case "bitwise":
				masked = true
			case "cmp":
				data := e.Attrs.Nested(unix.NFTA_CMP_DATA).Find(unix.NFTA_DATA_VALUE)
				if length > 0 && len(data) <= length {
					compared = appendAddr(compared, within(data, length, masked))
				}
			case "lookup":
				if length == 0 {
					continue
				}
				set := e.Attrs.Text(unix.NFTA_LOOKUP_SET)
				for _, key := range r.keys(nftread.Table{Family: m.family, Name: m.attrs.Text(unix.NFTA_RULE_TABLE)}, set, perSet) {
					if len(key) == length {
						inSets = appendAddr(inSets, key)
					}
				}
			}
		}
	}
	for _, t := range r.legacy {
		for _, a := range t.addresses() {
			compared = appendAddr(compared, a)
		}
	}
	return slices.Concat(compared, inSets)
}

// appendAddr appends an address that a client or server can have, up to maxEndpoints of each family.
func appendAddr(all []netip.Addr, data []byte) []netip.Addr {
	a, ok := netip.AddrFromSlice(data)
	if !ok || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return all
	}
	count := 0
	for _, b := range all {
		if a == b {
			return all
		}
		if a.Is6() == b.Is6() {
			count++
		}
	}
	if count == maxEndpoints {
		return all
	}
	return append(all, a)
}

// addressLength returns 4 or 16 if a payload expression loads an address of IPv4 or IPv6, or a prefix of one, and
// 0 otherwise.
func addressLength(e nftread.Expression) int {
	if e.Attrs.Uint32(unix.NFTA_PAYLOAD_BASE) != unix.NFT_PAYLOAD_NETWORK_HEADER {
		return 0
	}
	length := e.Attrs.Uint32(unix.NFTA_PAYLOAD_LEN)
	switch e.Attrs.Uint32(unix.NFTA_PAYLOAD_OFFSET) {
	case 12, 16:
		if length <= 4 {
			return 4
		}
	case 8, 24:
		if length <= 16 {
			return 16
		}
	}
	return 0
}

// within returns an address of the network with this prefix.
func within(prefix []byte, length int, masked bool) []byte {
	a := make([]byte, length)
	copy(a, prefix)
	if masked || len(prefix) < length {
		a[length-1] |= 5
	}
	return a
}

// keys returns the first keys of a set, without ends of intervals.
func (s *snapshot) keys(table nftread.Table, set string, most int) [][]byte {
	var all [][]byte
	for _, m := range s.nft {
		if m.typ != unix.NFT_MSG_NEWSETELEM || m.family != table.Family ||
			m.attrs.Text(unix.NFTA_SET_ELEM_LIST_TABLE) != table.Name || m.attrs.Text(unix.NFTA_SET_ELEM_LIST_SET) != set {
			continue
		}
		for _, x := range m.attrs.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS).All() {
			if e := nftread.ParseElement(x); !e.End && len(all) < most {
				all = append(all, e.Key)
			}
		}
	}
	return all
}

// matchesHelper reports whether a rule has a condition on the name of a connection's helper.
func (s *snapshot) matchesHelper() bool {
	for _, m := range s.nft {
		if m.typ != unix.NFT_MSG_NEWRULE {
			continue
		}
		for _, e := range nftread.ParseRule(m.family, m.attrs).Exprs {
			if e.Name == "ct" && expr.CtKey(e.Attrs.Uint32(unix.NFTA_CT_KEY)) == expr.CtKeyHELPER ||
				e.Name == "match" && e.Attrs.Text(unix.NFTA_MATCH_NAME) == "helper" {
				return true
			}
		}
	}
	return slices.ContainsFunc(s.legacy, func(t xtable) bool { return t.matches("helper") })
}

// testResults are the results of the test transfers.
type testResults struct {
	transfers
	err   error // why there were none
	drops []*dropped
}

// cachedTests runs test transfers in a copy of this host, once.
func (x *examination) cachedTests() *testResults {
	if x.cache.tested != nil {
		return x.cache.tested
	}
	t := &testResults{err: x.noPlan}
	x.cache.tested = t
	if t.err != nil {
		return t
	}
	c := x.plan
	if c.Rules.Ports, t.err = rules.ParsePorts(rules.FormatPorts(x.controlPorts(), ",")); t.err != nil {
		return t
	}
	t.transfers, t.err = x.transfers(c)
	slices.SortStableFunc(t.paths, func(a, b transferPath) int {
		if a.ipv6 != b.ipv6 && a.rank() == b.rank() {
			return map[bool]int{false: -1, true: 1}[a.ipv6]
		}
		return cmp.Compare(a.rank(), b.rank())
	})
	t.drops = x.findDrops(t.transfers)
	return t
}

// checkTransfers reports the test transfers, without what confirm has reported.
func checkTransfers(x *examination) []Finding {
	const onlyRead = "the rules were only read"
	t := x.cachedTests()
	switch {
	case x.noPlan != nil:
		return nil // checkPlan reports it
	case errors.Is(t.err, errNoInterface):
		return ok("no test transfer, %s: %v", onlyRead, t.err)
	case t.err != nil:
		return warning(fmt.Sprintf("no test transfer, %s: this host cannot be copied: %v", onlyRead, t.err),
			"a filter may drop data connections although its rules seem to accept them", "")
	case len(t.paths) == 0:
		what := "no test transfer, " + onlyRead + ": no control connection passed"
		if len(t.refused) > 0 {
			what += fmt.Sprintf("; table %s, chain %s drops it", t.refused[0].base.Table, t.refused[0].base.Name)
		}
		return warning(what, "the filter accepts FTP from none of the addresses that were tried", "")
	}
	var found []Finding
	for _, p := range t.paths {
		if p.helper != nil {
			found = append(found, warning(fmt.Sprintf("no test transfer from %s: %v", p, p.helper),
				"whether a filter drops these data connections is not known", "")...)
		}
	}
	for _, d := range t.drops {
		if !d.reported {
			found = append(found, x.droppedFinding(d))
		}
	}
	if len(found) > 0 || len(t.drops) > 0 {
		return found
	}
	what := "test transfers passed in a copy of this host: " + pathList(t.paths)
	if len(t.omitted) > 0 {
		what += "; not in the test: " + strings.Join(t.omitted, ", ")
	}
	return ok("%s", what)
}

// pathList lists paths, each with the families of its tests.
func pathList(paths []transferPath) string {
	const most = 4
	var names []string
	families := make(map[string][]string)
	for _, p := range paths {
		name := p.from + " to " + p.to
		if len(families[name]) == 0 {
			names = append(names, name)
		}
		families[name] = append(families[name], map[bool]string{false: "IPv4", true: "IPv6"}[p.ipv6])
	}
	for i, name := range names {
		names[i] = fmt.Sprintf("%s (%s)", name, strings.Join(families[name], ", "))
	}
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// dropped are the test connections that one rule or policy dropped.
type dropped struct {
	at              *place // nil if unknown
	reply           bool   // of SYN-ACKs of control connections
	passive, active bool   // of data connections
	paths           []transferPath
	level           Level
	base            *nftread.Chain // of the place, nil if unknown
	by              *nftread.Rule  // nil for its policy
	reported        bool           // by confirm
}

// findDrops groups the dropped test connections by place.
func (x *examination) findDrops(t transfers) []*dropped {
	var all []*dropped
	add := func(p transferPath, at *place, reply bool) *dropped {
		i := slices.IndexFunc(all, func(d *dropped) bool {
			return d.reply == reply && (d.at == nil && at == nil || d.at != nil && at != nil && *d.at == *at)
		})
		if i < 0 {
			i = len(all)
			all = append(all, &dropped{at: at, reply: reply, level: Warning})
		}
		d := all[i]
		if !slices.Contains(d.paths, p) {
			d.paths = append(d.paths, p)
		}
		if x.matters(t, p) {
			d.level = Problem
		}
		return d
	}
	for _, p := range t.paths {
		if p.reply != nil {
			add(p, p.reply, true)
		}
		if p.passive != nil {
			add(p, p.passive.at, false).passive = true
		}
		if p.active != nil {
			add(p, p.active.at, false).active = true
		}
	}
	rs, err := x.cachedRuleset()
	if err != nil {
		return all
	}
	for _, d := range all {
		if d.at == nil {
			continue
		}
		if i := slices.IndexFunc(rs.Chains, func(c nftread.Chain) bool { return nftread.Object{Table: c.Table, Name: c.Name} == d.at.base }); i >= 0 {
			d.base, d.by = &rs.Chains[i], ruleAt(rs, *d.at)
		}
	}
	return all
}

// what describes the connections.
func (d *dropped) what() string {
	switch {
	case d.reply:
		return "the servers' SYN-ACKs of control connections"
	case !d.active:
		return "passive data connections"
	case !d.passive:
		return "active data connections"
	}
	return "data connections"
}

// why returns the consequence for FTP.
func (d *dropped) why() string {
	if d.reply {
		return "no FTP session can start: a test connection was dropped there, in a copy of this host"
	}
	return "FTP transfers will fail: an expected test connection was dropped there, in a copy of this host"
}

// droppedFinding is the finding about one place.
func (x *examination) droppedFinding(d *dropped) Finding {
	f := Finding{Level: d.level, Why: d.why()}
	if d.at == nil {
		f.What = fmt.Sprintf("%s of test transfers did not pass: %s", d.what(), pathList(d.paths))
		f.Why = "FTP transfers will fail: no rule drops them, so the cause is routing, rp_filter, or a part of the firewall that was not copied"
		return f
	}
	f.What = fmt.Sprintf("table %s, chain %s drops %s: test transfer from %s", d.at.base.Table, d.at.base.Name, d.what(), pathList(d.paths))
	if d.base == nil {
		return f
	}
	by := "its policy"
	if d.by != nil {
		by = (&filters{examination: x, rs: x.cache.ruleset}).text(d.by)
	}
	f.What += "; " + by
	fix := x.acceptFix(*d.base, d.by)
	f.Fix, f.AfterReboot = fix.command, fix.afterReboot
	return f
}

// ruleAt returns the rule of a place, nil for a policy.
func ruleAt(rs *nftread.Ruleset, where place) *nftread.Rule {
	in := rs.RulesOf(nftread.Object{Table: where.base.Table, Name: where.chain})
	if where.number > 0 && where.number <= len(in) {
		return in[where.number-1]
	}
	for _, r := range in {
		if where.handle != 0 && r.Handle == where.handle {
			return r
		}
	}
	return nil
}

// matters reports whether FTP is likely on a path: through this host always, to it if a server listens or the
// filter accepts FTP explicitly, from it if nothing else is likely.
func (x *examination) matters(t transfers, p transferPath) bool {
	switch p.rank() {
	case 0:
		return true
	case 1:
		return p.explicit || x.listens()
	}
	return !x.listens() && !slices.ContainsFunc(t.paths, func(w transferPath) bool { return w.rank() == 0 })
}

// listens reports whether a program on this host listens on a control port.
func (x *examination) listens() bool {
	for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		text, err := x.readFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			const local, state, listening = 1, 3, "0A" // TCP_LISTEN, include/net/tcp_states.h
			f := strings.Fields(line)
			if len(f) <= state || f[state] != listening {
				continue
			}
			_, hex, _ := strings.Cut(f[local], ":")
			port, err := strconv.ParseUint(hex, 16, 16)
			if err == nil && overlap([]rules.PortRange{{First: uint16(port), Last: uint16(port)}}, x.controlPorts()) {
				return true
			}
		}
	}
	return false
}

// confirm corrects findings from reading the rules by the test transfers.
func (x *examination) confirm(read []Finding) []Finding {
	t := x.cachedTests()
	var found []Finding
	for _, f := range read {
		if f.base == nil {
			if f.Level != OK || len(t.drops) == 0 {
				found = append(found, f)
			}
			continue
		}
		here, same := 0, (*dropped)(nil)
		for _, d := range t.drops {
			if d.base == nil || d.base.Table != f.base.Table || d.base.Name != f.base.Name || d.reply {
				continue
			}
			here++
			if d.by == f.rule {
				same = d
			}
		}
		switch {
		case same != nil:
			same.reported = true
			f.Level, f.Why = same.level, fmt.Sprintf("%s: %s of FTP from %s", same.why(), same.what(), pathList(same.paths))
		case here > 0:
			continue // checkTransfers reports the rule that dropped them
		case f.Level == Problem && t.passed(*f.base):
			f.Level, f.Why = Warning, "the test transfers passed, those between other addresses may fail: "+f.Why
		}
		found = append(found, f)
	}
	return found
}

// passed reports whether test transfers passed the hook of a base chain, in its family.
func (t transfers) passed(c nftread.Chain) bool {
	return slices.ContainsFunc(t.paths, func(p transferPath) bool {
		return (p.rank() == 0) == (c.Hook == unix.NF_INET_FORWARD) && p.helper == nil &&
			(c.Table.Family == nftread.FamilyInet || p.ipv6 == (c.Table.Family == nftread.FamilyIPv6))
	})
}
