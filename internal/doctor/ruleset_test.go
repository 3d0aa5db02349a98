package doctor

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// do runs f in the host's namespace.
func do(t *testing.T, h *netns.Host, f func() error) {
	t.Helper()
	must.Do(t, h.Do(f))
}

// applyRules loads the daemon's rules on a host.
func applyRules(t *testing.T, h *netns.Host) {
	t.Helper()
	do(t, h, func() error {
		_, err := rules.Apply(ftp)
		return err
	})
}

// among returns the findings of some checks on a host.
func among(t *testing.T, h *netns.Host, c rules.Config, names ...string) []Finding {
	t.Helper()
	some := slices.Clone(checks)
	some = slices.DeleteFunc(some, func(c check) bool { return !slices.Contains(names, c.name) })
	if len(some) != len(names) {
		t.Fatalf("got %d checks, want %q", len(some), names)
	}
	var found []Finding
	do(t, h, func() error {
		found = examine(newExamination(host{}, backend.Request{Rules: c}), some)
		return nil
	})
	return found
}

const (
	ftpObject  = `ct helper ftp { type "ftp" protocol tcp; }; `
	saneObject = `ct helper mine { type "sane" protocol tcp; }; `
)

// TestUserRules loads rulesets of users. Without a want, every finding is ok.
func TestUserRules(t *testing.T) {
	kernelHelper := func(what, fix string) *want { return &want{Problem, "other helpers", what, fix} }
	late := func(what, fix string) *want { return &want{Problem, "helper priority", what, fix} }
	related := func(what, fix string) *want { return &want{Problem, "related", what, fix} }
	shut := func(what, fix string) *want { return &want{Warning, "related", what, fix} } // control connections don't pass either
	notrack := func(what, fix string) *want { return &want{Problem, "notrack", what, fix} }
	const forward = "table inet filter { chain forward { type filter hook forward priority 0; policy drop; "
	const open = "table inet filter { chain forward { type filter hook forward priority 0; "
	const names = "table inet filter, chain forward drops related connections: the rule with handle "
	const missing = "table inet filter, chain forward drops"
	const insert = "nft insert rule inet filter forward ct state established,related accept"

	for name, c := range map[string]struct {
		ruleset string
		want    *want
	}{
		// Helpers.
		"kernel's helper": {
			`table inet f { ` + ftpObject + `chain pre { type filter hook prerouting priority -150; tcp dport 21 ct helper set "ftp"; }; }`,
			kernelHelper(`table inet f, chain pre (prerouting priority -150): helper "ftp" for port 21`, "nft delete rule inet f pre handle "),
		},
		"the classic mistake": {
			`table ip f { ` + ftpObject + `chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "ftp"; }; }`,
			kernelHelper(`table ip f, chain pre (prerouting priority 0, after NAT): helper "ftp" for port 21`, "nft delete rule ip f pre handle "),
		},
		"in forward": {
			`table ip6 f { ` + ftpObject + `chain f { type filter hook forward priority -150; tcp dport 21 ct helper set "ftp"; }; }`,
			kernelHelper(`(forward priority -150, after NAT)`, "nft delete rule ip6 f f handle "),
		},
		"in a set": {
			`table inet f { ` + ftpObject + `chain out { type filter hook output priority -150; tcp dport { 20-22, 990 } ct helper set "ftp"; }; }`,
			kernelHelper(`helper "ftp" for port 20-22,990`, "nft delete rule inet f out"),
		},
		"in a named set": {
			`table inet f { ` + ftpObject + `set s { type inet_service; elements = { 990, 21 }; }; chain out { type filter hook output priority -150; tcp dport @s ct helper set "ftp"; }; }`,
			kernelHelper(`helper "ftp" for port 21,990`, "nft delete rule inet f out"),
		},
		"a range": {
			`table inet f { ` + ftpObject + `chain out { type filter hook output priority -150; tcp dport 20-30 ct helper set "ftp"; }; }`,
			kernelHelper(`helper "ftp" for port 20-30`, "nft delete rule inet f out"),
		},
		"the original port": {
			`table inet f { ` + ftpObject + `chain out { type filter hook output priority -150; meta l4proto tcp ct original proto-dst 21 ct helper set "ftp"; }; }`,
			kernelHelper(`helper "ftp" for port 21`, "nft delete rule inet f out"),
		},
		"a map": {
			`table inet f { ` + ftpObject + `chain out { type filter hook output priority -150; ct helper set tcp dport map { 21 : "ftp" }; }; }`,
			kernelHelper(`helper "ftp" for port 21`, "nft delete rule inet f out"),
		},
		"after jumps": {
			`table inet f { ` + ftpObject + `chain b { ct helper set "ftp"; }; chain a { ct state new goto b; }; chain pre { type filter hook prerouting priority 10; tcp dport vmap { 21 : jump a, 22 : accept }; }; }`,
			kernelHelper(`table inet f, chain b (prerouting priority 10, after NAT): helper "ftp" for port 21`, "nft delete rule inet f b"),
		},
		"any port": {
			`table inet f { ` + ftpObject + `chain pre { type filter hook prerouting priority -150; ip daddr 192.0.2.1 ct helper set "ftp"; }; }`,
			&want{Warning, "other helpers", `helper "ftp" for any port`, "nft delete rule inet f pre"},
		},
		"own carrier, too late": {
			`table inet f { ` + saneObject + `chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "mine"; }; }`,
			late(`(prerouting priority 0, after NAT): helper "sane" for port 21`, "nft delete rule inet f pre handle "),
		},
		"own carrier, at NAT": {
			`table inet f { ` + saneObject + `chain o { type filter hook output priority -100; tcp dport 21 ct helper set "mine"; }; }`,
			late(`(output priority -100, after NAT)`, "nft delete rule inet f o handle "),
		},
		"own carrier, too early": {
			`table inet f { ` + saneObject + `chain pre { type filter hook prerouting priority raw; tcp dport 21 ct helper set "mine"; }; }`,
			late(`(prerouting priority -300, before conntrack)`, "nft delete rule inet f pre handle "),
		},
		"own carrier":        {`table inet f { ` + saneObject + `chain pre { type filter hook prerouting priority -150; tcp dport 21 ct helper set "mine"; }; }`, nil},
		"another port":       {`table inet f { ` + ftpObject + `chain pre { type filter hook prerouting priority 0; tcp dport 2121 ct helper set "ftp"; }; }`, nil},
		"other ports":        {`table inet f { ` + ftpObject + `chain pre { type filter hook prerouting priority 0; tcp dport { 22-2121, 1-20 } ct helper set "ftp"; }; }`, nil},
		"no way there":       {`table inet f { ` + ftpObject + `chain a { tcp dport 21 ct helper set "ftp"; }; }`, nil},
		"helper's name read": {`table inet f { chain pre { type filter hook prerouting priority 0; ct helper "ftp" accept; }; }`, nil},
		"a dormant table":    {`table inet f { flags dormant; ` + ftpObject + `chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "ftp"; }; }`, nil},
		"another object":     {`table inet f { counter c { }; chain pre { type filter hook prerouting priority 0; tcp dport 21 counter name "c"; }; }`, nil},

		// Related.
		"related":               {forward + "ct state established,related accept; }; }", nil},
		"related in a set":      {forward + "ct state { established, related } accept; }; }", nil},
		"related alone":         {forward + "ct state established accept; ct state related accept; }; }", nil},
		"related ==":            {forward + "ct state == related accept; }; }", nil},
		"related in a map":      {forward + "ct state vmap { established : accept, related : accept, invalid : drop }; }; }", nil},
		"all but invalid":       {forward + "ct state != invalid accept; }; }", nil},
		"related of our helper": {forward + `ct state related ct helper "sane" accept; }; }`, nil},
		"related on a device":   {forward + `iifname "eth0" ct state related counter accept; }; }`, nil},
		"everything":            {forward + "accept; }; }", nil},
		"in another chain":      {"table inet filter { chain x { ct state established,related accept; }; chain forward { type filter hook forward priority 0; policy drop; jump x; }; }", nil},
		"a state and a jump":    {"table inet filter { chain x { tcp dport > 1023 accept; }; chain forward { type filter hook forward priority 0; policy drop; ct state vmap { established : accept, related : goto x }; }; }", nil},
		"nothing is dropped":    {"table inet filter { chain forward { type filter hook forward priority 0; tcp dport 22 drop; }; }", nil},
		"nothing at all":        {"", nil},
		"related, high ports":   {forward + "tcp dport 1024-65535 ct state related accept; }; }", nil},
		"related, control port": {forward + "ct state established accept; tcp dport { 21, 990 } ct state related accept; }; }", shut(missing, insert)},
		"no rule":               {forward + "}; }", shut(missing, insert)},
		"established only":      {forward + "ct state established accept; }; }", shut(missing, insert)},
		"new, established":      {forward + "ct state { new, established } accept; }; }", related(missing, insert)},
		"new only, in a map":    {forward + "ct state vmap { established : accept, related : drop, new : accept }; }; }", related(missing, insert)},
		"related dropped":       {forward + "ct state related drop; }; }", shut(missing, insert)},
		"all but related":       {forward + "ct state != related accept; }; }", related(missing, insert)},
		"ICMP only":             {forward + "ct state related meta l4proto icmp accept; }; }", shut(missing, insert)},
		"ports only":            {forward + "tcp dport 21 accept; ip saddr 192.0.2.0/24 accept; }; }", related(missing, insert)},
		"related of a helper":   {forward + `ct state established accept; ct state related ct helper "ftp" accept; }; }`, shut(`of the helper "ftp" only; ours is "sane"`, insert)},
		"drop at the end":       {"table ip filter { chain in { type filter hook input priority 0; tcp dport 21 accept; counter drop; }; }", related("table ip filter, chain in drops", "nft insert rule ip filter in ct state established,related accept")},
		"reject at the end":     {"table ip6 filter { chain in { type filter hook input priority 0; tcp dport 21 accept; reject; }; }", related("table ip6 filter, chain in drops", "nft insert rule ip6 filter in ct state established,related accept")},
		"a final reject":        {open + "ct state established accept; tcp dport 21 accept; reject; }; }", related(missing, insert)},
		"a final reset":         {open + "ct state established accept; tcp dport 21 accept; reject with tcp reset; }; }", related(missing, insert)},
		"a final drop":          {open + "ct state established accept; tcp dport 21 ct state new accept; counter drop; }; }", related(missing, insert)},
		"a final reject, called": {"table inet filter { chain x { ct state established accept; tcp dport 21 accept; reject; }; chain forward { type filter hook forward priority 0; jump x; }; }",
			related(missing, insert)},
		"related is dropped":   {open + "ct state related drop; }; }", related(names, insert)},
		"related is rejected":  {open + "meta l4proto tcp ct state { related, untracked } reject; }; }", related(names, insert)},
		"high ports":           {open + "tcp dport 1024-65535 ct state != established drop; }; }", related(names, insert)},
		"high ports, a set":    {open + "tcp dport { 1024-65535 } ct state != established drop; }; }", related(names, insert)},
		"accepted before":      {open + "ct state established,related accept; tcp dport 1024-65535 ct state != established drop; }; }", nil},
		"accepted too late":    {open + "tcp dport 1024-65535 ct state != established drop; ct state established,related accept; }; }", related(names, insert)},
		"new ones are dropped": {open + "tcp dport 1024-65535 ct state new drop; }; }", nil},
		"returned before":      {"table inet filter { chain x { ct state related return; drop; }; chain forward { type filter hook forward priority 0; jump x; }; }", nil},
		"perhaps returned":     {"table inet filter { chain x { fib daddr type local return; drop; }; chain forward { type filter hook forward priority 0; jump x; ct state established,related accept; drop; }; }", nil},
		"perhaps not accepted": {"table inet filter { chain x { fib daddr type local return; accept; }; chain forward { type filter hook forward priority 0; policy drop; jump x; }; }", nil},
		"perhaps elsewhere":    {"table inet filter { chain x { ct state related accept; }; chain forward { type filter hook forward priority 0; policy drop; ip saddr 192.0.2.1 goto x; drop; }; }", nil},
		"perhaps":              {open + "ip saddr 192.0.2.0/24 ct state related drop; }; }", shut("may drop related connections, by a condition that cannot be interpreted: the rule with handle", insert)},
		"ICMP is dropped":      {open + "ip protocol icmp ct state related drop; ip6 nexthdr icmpv6 ct state related drop; meta l4proto { icmp, udp } drop; }; }", nil},
		"by address only":      {forward + "ct state established accept; ip saddr 192.0.2.0/24 accept; }; }", shut(missing, insert)},
		"by address, input":    {"table inet filter { chain in { type filter hook input priority 0; policy drop; ct state established accept; ip saddr 192.0.2.0/24 accept; }; }", nil},
		"loopback only":        {forward + `tcp dport 21 accept; iif "lo" accept; iifname "lo" ct state related accept; }; }`, related(missing, insert)},
		"output":               {"table inet filter { chain out { type filter hook output priority 0; policy drop; ct state established accept; }; }", related("chain out drops", "nft insert rule inet filter out")},
		"nowhere":              {"table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; chain input { type filter hook input priority 0; policy drop; ct state related accept; }; }", related("chain forward drops", insert)},

		// Untracked.
		"notrack": {
			"table inet f { chain pre { type filter hook prerouting priority raw; tcp dport 21 notrack; }; }",
			notrack("table inet f, chain pre hides connections to port 21 from conntrack", "nft delete rule inet f pre handle "),
		},
		"notrack, both ways": {
			"table ip f { chain pre { type filter hook prerouting priority -300; tcp sport 21 notrack; }; }",
			notrack("hides packets from port 21", "nft delete rule ip f pre handle "),
		},
		"notrack, data": {
			"table ip f { chain pre { type filter hook output priority -300; tcp dport >= 1024 tcp sport >= 1024 notrack; }; }",
			notrack("hides data connections", "nft delete rule ip f pre handle "),
		},
		"notrack, all": {
			"table inet f { chain x { notrack; }; chain pre { type filter hook prerouting priority raw; jump x; }; }",
			notrack("table inet f, chain x hides", "nft delete rule inet f x handle "),
		},
		"notrack, perhaps": {
			"table inet f { chain pre { type filter hook prerouting priority raw; ip daddr 192.0.2.1 notrack; }; }",
			&want{Warning, "notrack", "hides", "nft delete rule inet f pre handle "},
		},
		"notrack, other ports":   {"table inet f { chain pre { type filter hook prerouting priority raw; udp dport 53 notrack; tcp dport { 80, 443 } notrack; }; }", nil},
		"notrack, loopback":      {`table inet f { chain pre { type filter hook prerouting priority raw; iif "lo" notrack; iifname "lo" notrack; }; }`, nil},
		"notrack, but for FTP":   {"table inet f { chain pre { type filter hook prerouting priority raw; tcp dport 21 accept; tcp sport 21 accept; tcp dport 1024-65535 accept; notrack; }; }", nil},
		"notrack, too late":      {"table inet f { chain pre { type filter hook prerouting priority 0; tcp dport 21 notrack; }; }", nil},
		"jump where none is":     {"table inet filter { chain x { counter; }; chain forward { type filter hook forward priority 0; policy drop; jump x; }; }", shut(missing, insert)},
		"a loop of goto and map": {"table inet filter { chain x { ct state vmap { new : jump y }; }; chain y { tcp dport 21 accept; }; chain forward { type filter hook forward priority 0; policy drop; jump x; jump y; goto x; }; }", related(missing, insert)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := netns.NewTestHost(t, "host")
			must.Do(t, h.Nft(t.Context(), c.ruleset))
			findings := among(t, h, ftp, "other helpers", "notrack", "related")
			if c.want != nil {
				wantFinding(t, findings, *c.want)
			} else if n := Count(findings, OK); n != len(findings) || n != 3 {
				t.Errorf("want nothing wrong, got\n%s", text(findings))
			}
		})
	}
}

func TestOwnRulesAreOK(t *testing.T) {
	h := netns.NewTestHost(t, "host")
	applyRules(t, h)
	if findings := among(t, h, ftp, "rules", "other helpers", "related"); Count(findings, OK) != len(findings) {
		t.Errorf("want all ok, got\n%s", text(findings))
	}
}

// TestAddedPorts adds a port to the set while the settings have another one.
func TestAddedPorts(t *testing.T) {
	h := netns.NewTestHost(t, "host")
	applyRules(t, h)
	add := "add element inet nfq_ftphelper ports { 2100, 2200-2210 }"
	must.Do(t, h.Nft(t.Context(), add+`; table inet f { chain pre { type filter hook prerouting priority raw; tcp dport 2100 notrack; }; }`))
	findings := among(t, h, ftp, "rules", "notrack")
	wantFinding(t, findings, want{Problem, "notrack", "hides connections to port 2100 from", "nft delete rule inet f pre handle"})
	const line = "table inet nfq_ftphelper is installed for port 21, and for ports 2100, 2200-2210 that the settings do not list"
	if !strings.Contains(text(findings), line) {
		t.Errorf("want %s, got\n%s", line, text(findings))
	}
}

func TestBrokenRules(t *testing.T) {
	h := netns.NewTestHost(t, "host")
	applyRules(t, h)
	for _, c := range []struct {
		command string
		want    want
	}{
		{"flush set inet nfq_ftphelper ports", want{Problem, "rules", "set ports of table inet nfq_ftphelper is empty", "nft add element inet nfq_ftphelper ports '{ 21 }'"}},
		{"add element inet nfq_ftphelper ports { 2121 }", want{Problem, "rules", "set ports lacks 21", "nfq-ftphelper rules apply"}},
		{"add element inet nfq_ftphelper ports { 21 }; flush chain inet nfq_ftphelper output", want{Problem, "rules", "chain output", "nfq-ftphelper rules apply"}},
		{"delete table inet nfq_ftphelper", want{Problem, "rules", "there is no table", "nfq-ftphelper rules apply"}},
	} {
		must.Do(t, h.Nft(t.Context(), c.command))
		wantFinding(t, among(t, h, ftp, "rules"), c.want)
	}
}

// wire returns a rule of expressions that this kernel need not have.
func wire(t *testing.T, c nftread.Chain, exprs ...expr.Any) nftread.Rule {
	t.Helper()
	r := nftread.Rule{Table: c.Table, Chain: c.Name, Handle: 1}
	for _, e := range exprs {
		data, err := expr.Marshal(c.Table.Family, e)
		must.Do(t, err)
		r.Exprs = append(r.Exprs, nftread.ParseExpression(data))
	}
	return r
}

// TestIptables interprets rules of iptables-nft.
func TestIptables(t *testing.T) {
	forward := nftread.Chain{Table: nftread.Table{Family: nftread.FamilyIPv4, Name: "filter"}, Name: "FORWARD", Base: true, Type: "filter", Hook: unix.NF_INET_FORWARD, Drops: true}
	raw := nftread.Chain{Table: nftread.Table{Family: nftread.FamilyIPv4, Name: "raw"}, Name: "PREROUTING", Base: true, Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: -300}
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	conntrack := make(xt.Unknown, 160) // --ctstate RELATED,ESTABLISHED
	binary.NativeEndian.PutUint16(conntrack[146:], 1)
	binary.NativeEndian.PutUint16(conntrack[150:], 6)
	established := make(xt.Unknown, 160)
	binary.NativeEndian.PutUint16(established[146:], 1)
	binary.NativeEndian.PutUint16(established[150:], 2)
	notEstablished := slices.Clone(established) // ! --ctstate ESTABLISHED
	binary.NativeEndian.PutUint16(notEstablished[148:], 1)
	state := make(xt.Unknown, 4)
	binary.NativeEndian.PutUint32(state, 6)
	comment := make(xt.Unknown, 256)
	ct := make(xt.Unknown, 72) // -j CT --helper ftp
	copy(ct[12:], "ftp\x00")
	port := []expr.Any{
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 21}},
	}
	missing := &want{Warning, "related", "table ip filter, chain FORWARD drops", "iptables -I FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"}
	counter := &expr.Counter{}

	for name, c := range map[string]struct {
		chain nftread.Chain
		exprs []expr.Any
		want  *want
	}{
		"conntrack":       {forward, []expr.Any{&expr.Match{Name: "conntrack", Rev: 3, Info: &conntrack}, &expr.Counter{}, accept}, nil},
		"state":           {forward, []expr.Any{&expr.Match{Name: "state", Info: &state}, accept}, nil},
		"established":     {forward, []expr.Any{&expr.Match{Name: "conntrack", Rev: 3, Info: &established}, counter, accept}, missing},
		"comment":         {forward, []expr.Any{&expr.Match{Name: "comment", Info: &comment}, counter, accept}, nil},
		"not established": {forward, []expr.Any{&expr.Match{Name: "conntrack", Rev: 3, Info: &notEstablished}, counter, accept}, nil},
		"by nft":          {forward, append(slices.Clone(port), accept), &want{Problem, "related", "chain FORWARD drops", "nft insert rule ip filter FORWARD"}},
		"CT":              {raw, append(port, counter, &expr.Target{Name: "CT", Rev: 2, Info: &ct}), &want{Problem, "other helpers", `table ip raw, chain PREROUTING (prerouting priority -300, before conntrack): helper "ftp" for port 21`, "iptables -t raw -D PREROUTING 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			f.rs = &nftread.Ruleset{Chains: []nftread.Chain{c.chain}, Rules: []nftread.Rule{wire(t, c.chain, c.exprs...)}}
			if c.want != nil {
				f.wantFinding(t, *c.want)
			} else if findings := f.examine(ftp); Count(findings, OK) != len(findings) {
				t.Errorf("want all ok, got\n%s", text(findings))
			}
		})
	}
}

// TestMalformed interprets expressions without attributes.
func TestMalformed(t *testing.T) {
	c := nftread.Chain{Table: nftread.Table{Family: nftread.FamilyInet, Name: "f"}, Name: "c", Base: true, Type: "filter", Hook: unix.NF_INET_FORWARD, Drops: true}
	f := healthy()
	f.rs = &nftread.Ruleset{Chains: []nftread.Chain{c}}
	for _, name := range []string{"ct", "payload", "meta", "bitwise", "cmp", "lookup", "match", "immediate", "objref", "target", "reject", "future"} {
		f.rs.Rules = append(f.rs.Rules, nftread.Rule{Table: c.Table, Chain: "c", Exprs: []nftread.Expression{{Name: name}}})
	}
	f.wantFinding(t, want{Warning, "related", "chain c drops", "accept"})
}
