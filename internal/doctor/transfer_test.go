package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// testRouter is a router between two hosts, with a default route to the one at eth0.
type testRouter struct {
	*netns.Host
	left, right *netns.Host
}

func newTestRouter(t *testing.T) testRouter {
	t.Helper()
	r := testRouter{netns.NewTestHost(t, "host"), netns.NewTestHost(t, "host"), netns.NewTestHost(t, "host")}
	steps := []error{
		netns.Connect(r.Host, "eth0", r.left, "eth0"), netns.Connect(r.Host, "eth1", r.right, "eth0"), r.Forward(),
		r.AddAddress("eth0", netip.MustParsePrefix("203.0.113.1/24")), r.AddAddress("eth0", netip.MustParsePrefix("2001:db8:1::1/64")),
		r.AddAddress("eth1", netip.MustParsePrefix("192.168.1.1/24")), r.AddAddress("eth1", netip.MustParsePrefix("2001:db8:2::1/64")),
		r.AddDefaultRoute(netip.MustParseAddr("203.0.113.101")),
	}
	must.Do(t, errors.Join(steps...))
	r.sh(t, "ip -6 route add default via 2001:db8:1::2")
	return r
}

// sh runs a script of commands on the router.
func (r testRouter) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := r.Run(t.Context(), "", "sh", "-ec", script)
	if err != nil {
		t.Fatalf("%v in\n%s", err, script)
	}
	return out
}

// TestTransfers runs test transfers on routers with filters of users. A want has substrings of the finding.
func TestTransfers(t *testing.T) {
	t.Parallel()
	const (
		forward     = "nft 'table inet filter { chain forward { type filter hook forward priority 0; policy drop; "
		open        = "nft 'table inet filter { chain forward { type filter hook forward priority 0; "
		input       = "nft 'table inet filter { chain input { type filter hook input priority 0; policy drop; "
		end         = "}; }'"
		drops       = "table inet filter, chain forward drops"
		insert      = "nft insert rule inet filter forward ct state established,related accept"
		bothWays    = "eth0 to eth1 (IPv4, IPv6)"
		established = "ct state established accept; "
		port        = "tcp dport 21 accept; "
	)
	// iptables writes the same rules for both families.
	iptables := func(variant string, rules ...string) string {
		var b strings.Builder
		for _, rule := range rules {
			for _, program := range []string{"iptables-", "ip6tables-"} {
				b.WriteString(program + variant + " " + rule + "\n")
			}
		}
		return b.String()
	}
	type want struct {
		level  Level
		what   string
		rule   string // in the line as well
		fix    string
		absent string
	}
	type transferCase struct {
		script string
		want   want
	}
	cases := map[string]transferCase{
		"no filter":       {"", want{what: "test transfers passed in a copy of this host: ", rule: bothWays}},
		"related":         {forward + "ct state established,related accept; " + port + end, want{what: "passed", rule: bothWays}},
		"no related":      {forward + established + port + end, want{Problem, drops, bothWays, insert, "passive"}},
		"related dropped": {open + "ct state related drop; " + end, want{Problem, drops, bothWays, insert, ""}},
		"high ports": {
			open + "tcp dport 1024-65535 ct state != established drop; " + end,
			want{Problem, drops, bothWays, insert, ""},
		},
		"reject at the end": {
			open + port + established + "reject; " + end,
			want{Problem, drops, bothWays, insert, ""},
		},
		"in another chain": {
			"nft 'table inet filter { chain strict { ct state related drop; }; chain forward { type filter hook forward priority 0; goto strict; }; }'",
			want{Problem, drops, bothWays, insert, ""},
		},
		"IPv6 alone": {
			open + "meta nfproto ipv6 ct state related drop; " + end,
			want{Problem, drops, "eth0 to eth1 (IPv6)", insert, "(IPv4"},
		},
		"active alone": {
			forward + established + "iifname eth1 accept; " + end,
			want{Problem, "table inet filter, chain forward (eth0 to eth1) drops", "active data connections of FTP from eth1 to eth0 (IPv4, IPv6)", insert, ""},
		},
		"passive alone": {
			forward + established + port + "tcp sport 20 accept; " + end,
			want{Problem, drops, "passive data connections of FTP from " + bothWays, insert, ""},
		},
		"no answers": {
			forward + "ct state related accept; ct direction original " + port + end,
			want{Problem, "chain forward drops the servers' SYN-ACKs of control connections", bothWays, "", ""},
		},
		"one server": {
			forward + "ct state established,related accept; ip daddr 192.168.1.77 " + port + end,
			want{what: "passed", rule: "eth0 to eth1 (IPv4)", absent: "eth1 to eth0"},
		},
		"one network": {
			forward + established + "ip saddr { 198.18.0.0/15, 10.0.0.0/8 } " + port + "ip6 saddr 2001:db8:77::/48 " + port + end,
			want{Problem, drops, bothWays, insert, ""},
		},
		"DNAT": {
			forward + "ct status dnat accept; " + established + end +
				"\nnft 'table ip nat { chain prerouting { type nat hook prerouting priority dstnat; iifname eth0 ip daddr 203.0.113.1 tcp dport 21 dnat to 192.168.1.2; };" +
				" chain postrouting { type nat hook postrouting priority srcnat; oifname eth1 masquerade; }; }'",
			want{what: "passed", rule: "eth0 to eth1 (IPv4)", absent: "eth1 to eth0"},
		},
		"DNAT without related": {
			forward + "tcp dport 21 ct status dnat accept; " + established + end +
				"\nnft 'table ip nat { chain prerouting { type nat hook prerouting priority dstnat; iifname eth0 ip daddr 203.0.113.1 tcp dport 21 dnat to 192.168.1.2; }; }'",
			want{Problem, drops, "eth0 to eth1 (IPv4)", insert, ""},
		},
		"another program's queue": {
			iptables("nft", "-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-A FORWARD -p tcp --dport 21 -j NFQUEUE --queue-num 7"),
			want{what: "passed", rule: bothWays},
		},
		"another program's queue, legacy": {
			iptables("legacy", "-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-A FORWARD -p tcp --dport 21 -j NFQUEUE --queue-num 7"),
			want{what: "passed", rule: bothWays},
		},
		"nothing accepted": {
			forward + "ct state established,related accept; " + end + "\n" + input + end + "\n" +
				"nft 'table inet filter { chain output { type filter hook output priority 0; policy drop; }; }'",
			want{Warning, "no test transfer, the rules were only read: no control connection passed", "table inet filter, chain forward drops it", "", ""},
		},
		"netdev": {
			"nft 'table netdev early { chain in { type filter hook ingress device eth0 priority 0; }; }'",
			want{what: "passed", rule: "not in the test: table netdev early"},
		},
		"a dormant table": {
			"nft 'table inet filter { flags dormant; chain forward { type filter hook forward priority 0; policy drop; }; }'",
			want{what: "passed", rule: bothWays},
		},
		"strict rp_filter": {"sysctl -q -w net.ipv4.conf.all.rp_filter=1", want{what: "passed", rule: bothWays}},
		"to this host": {
			input + established + port + end,
			want{Problem, "table inet filter, chain input drops", "eth0 to this host (IPv4, IPv6)", "nft insert rule inet filter input", ""},
		},
		"related to this host": {
			"nft 'table inet filter { chain input { type filter hook input priority 0; ct state related drop; }; }'",
			want{Warning, "table inet filter, chain input drops", "eth0 to this host (IPv4, IPv6)", "nft insert rule inet filter input", ""},
		},
		"from this host": {
			input + established + end,
			want{Warning, "table inet filter, chain input drops", "this host to eth", "nft insert rule inet filter input", "to this host"},
		},
		"output": {
			"nft 'table inet filter { chain output { type filter hook output priority 0; policy drop; ct state established accept; tcp dport 21 accept; }; }'",
			want{Warning, "table inet filter, chain output drops", "this host to eth0 (IPv4, IPv6)", "nft insert rule inet filter output", ""},
		},
	}
	for _, variant := range []string{"nft", "legacy"} {
		name := "iptables-" + variant
		const estab = "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"
		const control = "-A FORWARD -p tcp -m multiport --dports 21,2121 -m comment --comment FTP -j ACCEPT"
		chain := map[string]string{"nft": "table ip filter, chain FORWARD drops", "legacy": "table ip filter (iptables-legacy), chain FORWARD drops"}[variant]
		fix := "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
		cases[name+", related"] = transferCase{iptables(variant, "-P FORWARD DROP", "-A FORWARD -m state --state ESTABLISHED,RELATED -j ACCEPT", control), want{what: "passed", rule: bothWays}}
		cases[name+", no related"] = transferCase{iptables(variant, "-P FORWARD DROP", estab, control), want{Problem, chain, "eth0 to eth1 (IPv4)", fix, ""}}
		cases[name+", reject"] = transferCase{iptables(variant, estab, control, "-A FORWARD -p tcp -j REJECT --reject-with tcp-reset"),
			want{Problem, chain, "eth0 to eth1 (IPv4)", fix, ""}}
		cases[name+", high ports in a chain"] = transferCase{iptables(variant, "-N strict", "-A strict -p tcp --syn --dport 1024:65535 -j DROP", "-A FORWARD -j strict"),
			want{Problem, chain, "eth0 to eth1 (IPv4)", fix, ""}}
		cases[name+", reject in a chain"] = transferCase{iptables(variant, estab, control, "-N other", "-A other -j REJECT", "-A FORWARD -g other"), want{Problem, chain, "eth0 to eth1 (IPv4)", fix, ""}}
		cases[name+", no answers"] = transferCase{iptables(variant, "-P FORWARD DROP", control, "-A FORWARD -m conntrack --ctstate RELATED -j ACCEPT"),
			want{Problem, chain + " the servers' SYN-ACKs of control connections", "eth0 to eth1 (IPv4)", fix, ""}}
		cases[name+", to this host"] = transferCase{iptables(variant, "-P INPUT DROP", strings.ReplaceAll(estab, "FORWARD", "INPUT"), strings.ReplaceAll(control, "FORWARD", "INPUT")),
			want{Problem, strings.ReplaceAll(chain, "FORWARD", "INPUT"), "eth0 to this host", fix, ""}}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTestRouter(t)
			r.sh(t, c.script)
			findings := among(t, r.Host, ftp, "transfer", "related")
			i := slices.IndexFunc(findings, func(f Finding) bool {
				return (f.Level != OK) == (c.want.level != OK) && strings.Contains(f.What, c.want.what)
			})
			if i < 0 {
				t.Fatalf("want %+v, got\n%s", c.want, text(findings))
			}
			f := findings[i]
			line := f.What + " " + f.Why
			if f.Level != c.want.level || !strings.Contains(line, c.want.rule) || !strings.Contains(f.Fix, c.want.fix) ||
				c.want.absent != "" && strings.Contains(line, c.want.absent) {
				t.Errorf("want %+v, got\n%s", c.want, text(findings))
			}
			for _, f := range findings {
				if c.want.level == Problem && f.Level == OK {
					t.Errorf("want no ok finding, got\n%s", text(findings))
				}
				if f.Level == Problem && c.want.level != Problem && name != "nothing accepted" {
					t.Errorf("want %+v and no problem, got\n%s", c.want, text(findings))
				}
			}
		})
	}
}

// TestTransferToListener has a server on the host itself.
func TestTransferToListener(t *testing.T) {
	t.Parallel()
	r := newTestRouter(t)
	r.sh(t, "nft 'table inet filter { chain input { type filter hook input priority 0; ct state related drop; }; }'")
	listener, err := r.Listen(t.Context(), netip.MustParseAddrPort("0.0.0.0:21"))
	must.Do(t, err)
	defer listener.Close()
	findings := among(t, r.Host, ftp, "transfer", "related")
	if findings[0].Level != Problem || !strings.Contains(findings[0].What, "chain input drops") {
		t.Errorf("want a problem with chain input, got\n%s", text(findings))
	}
}

// rich has what rulesets consist of.
const rich = `
table inet rich {
	ct helper amanda-udp { type "amanda" protocol udp; l3proto inet; }
	counter seen { }
	quota much { over 25 mbytes }
	limit lim { rate 10/second burst 5 packets }
	set ports { type inet_service; flags interval; elements = { 20-21, 80, 8000-9000 } }
	set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 1-1024, 192.168.0.1 . 21 } }
	set blocked { type ipv6_addr; flags timeout; timeout 1h; elements = { 2001:db8::77 } }
	set recent {
		type ipv4_addr
		size 1024
		flags dynamic,timeout
		timeout 1m
	}
	map marks { type ipv4_addr : mark; elements = { 10.0.0.1 : 0x1, 10.0.0.2 : 0x2 } }
	map to { type inet_service : verdict; elements = { 22 : jump some, 23 : drop } }
	chain some { counter name "seen" return; }
	chain forward {
		type filter hook forward priority filter + 5; policy drop;
		ct state vmap { invalid : drop, established : accept, related : accept }
		iif "eth0" ip saddr { 10.0.0.0/8, 172.16.0.0/12 } meta mark set ip daddr map @marks
		ip daddr . tcp dport @pairs accept
		ip6 saddr @blocked drop
		tcp dport vmap @to
		tcp dport @ports limit name "lim" accept
		tcp flags syn add @recent { ip saddr limit rate over 10/second } drop
		udp dport 53 quota name "much" drop
		jump { tcp dport 2121 counter accept; log prefix "in a chain " level info; }
		oifname { "eth1", "lo" } icmp type echo-request limit rate 5/minute log group 3 accept
		ct count over 100 reject with tcp reset
		fib saddr . iif oif missing drop
		ip protocol tcp tcp option maxseg size set rt mtu
		ct original ip saddr 10.1.1.1 ct mark set mark accept
	}
	ct timeout long {
		protocol tcp
		l3proto ip
		policy = { established : 100 }
	}
	ct expectation later {
		protocol tcp
		dport 9876
		timeout 2m
		size 12
		l3proto ip
	}
	chain rare {
		type filter hook prerouting priority -150;
		reset tcp option sack-perm
		ip dscp set cs1
		ct label set 5
		ct event set new
		ct zone set 3
		ct timeout set "long"
		ct expectation set "later"
		socket transparent 1 accept
		meta mark set numgen inc mod 2
		meta mark set jhash ip saddr mod 16
		ip saddr 10.0.0.1-10.0.0.9 drop
		osf name "Linux" accept
		exthdr frag exists drop
		ether saddr 00:11:22:33:44:55 drop
		meta iifname vmap { "eth*" : accept }
		ip saddr vmap { 10.0.0.0/8 : accept, * : continue }
		ipsec in reqid 1 accept
		meta skuid 0 accept
		meta priority set 1:2
		@th,16,16 { 21, 22 } accept
		log flags all
		notrack
	}
	chain proxy { type filter hook forward priority -10; tcp dport 80 synproxy mss 1460; }
	chain post { type nat hook postrouting priority srcnat; oifname "eth0" masquerade random; }
	chain pre { type nat hook prerouting priority dstnat; dnat ip to tcp dport map { 80 : 192.168.1.2, 81 : 192.168.1.3 }; }
}
`

// TestReplica compares what nft, iptables and ip list on a host and in its replica.
func TestReplica(t *testing.T) {
	t.Parallel()
	r := newTestRouter(t)
	must.Do(t, r.Nft(t.Context(), rich))
	r.sh(t, `iptables-nft -A FORWARD -p tcp -m multiport --dports 1:5,21 -m limit --limit 5/min -m addrtype --dst-type UNICAST -m comment --comment "some words" -j REJECT --reject-with tcp-reset
ip6tables-legacy -N mine
ip6tables-legacy -A mine -p tcp -m tcp --dport 21 -m conntrack --ctstate NEW,RELATED -j ACCEPT
ip6tables-legacy -A FORWARD -i eth0 -o eth1 -g mine
ip6tables-legacy -P FORWARD DROP
iptables-legacy -t mangle -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
iptables-legacy -t nat -A POSTROUTING -o eth0 -j MASQUERADE
ip route add 10.20.0.0/16 via 192.168.1.9
ip route add 10.30.0.0/16 via 10.20.0.1 dev eth1 onlink
ip route add default via 192.168.1.9 table 100
ip rule add from 10.20.0.0/16 lookup 100
ip -6 route add 2001:db8:20::/48 via 2001:db8:2::9`)
	const list = `nft -s list ruleset | grep -v 'helper\|expires'; iptables-legacy-save | grep -v '^#\|^:\|COMMIT'; ip6tables-legacy-save -t filter | grep -v '^#\|^:'
iptables-legacy -t mangle -S; ip6tables-legacy -S
ip -4 route show table all; ip -6 route show table all | grep -v 'anycast\|fe80\|multicast'; ip rule; ip -6 rule; ip -br addr | sed 's/fe80[^ ]*//; s/@[^ ]*//'`
	want := r.sh(t, list)
	var got string
	inReplicaOf(t, r.Host, func(replica *replica) error {
		out, err := exec.CommandContext(t.Context(), "sh", "-ec",
			"nft delete table inet "+traceTable+"; nft delete table inet "+ownTable+"\n"+list).Output()
		got = string(out)
		return err
	})
	if d := differences(lines(got), lines(want)); len(d) > 0 || got == "" {
		t.Errorf("got\n%s\nin the replica, want as on the host\n%s\ndifferences: %q", got, want, d)
	}
}

// differences returns the lines that only one of two lists has.
func differences(a, b []string) []string {
	var all []string
	for _, pair := range [][2][]string{{a, b}, {b, a}} {
		for _, line := range pair[0] {
			if !slices.Contains(pair[1], line) {
				all = append(all, line)
			}
		}
	}
	return all
}

// lines returns the lines with single spaces, without chains within rules, which have a name in the replica.
func lines(s string) []string {
	var all []string
	for line := range strings.Lines(s) {
		line = strings.Join(strings.Fields(line), " ")
		if !strings.Contains(line, "__chain") && line != "jump {" {
			all = append(all, line)
		}
	}
	return all
}

// inReplicaOf calls run in a replica of a host.
func inReplicaOf(t *testing.T, h *netns.Host, run func(*replica) error) {
	t.Helper()
	do(t, h, func() error {
		s, err := takeSnapshot()
		if err != nil {
			return err
		}
		return inReplica(s, ftp, run)
	})
}

// TestReplicaRetransmitsNothing waits longer than the retransmission time-out between two test connections: a
// retransmission for the first would be taken for the segment of the second.
func TestReplicaRetransmitsNothing(t *testing.T) {
	t.Parallel()
	r := newTestRouter(t)
	inReplicaOf(t, r.Host, func(replica *replica) error {
		left, right := netip.MustParseAddrPort("203.0.113.101:1111"), netip.MustParseAddrPort("192.168.1.2:21")
		own := netip.MustParseAddrPort("203.0.113.1:21")
		if err := replica.listen(own); err != nil {
			return err
		}
		for _, ends := range [][2]netip.AddrPort{{left, own}, {netip.AddrPortFrom(own.Addr(), 1112), right}} {
			if c, err := replica.connect(ends[0], ends[1]); err != nil || c.master == nil {
				t.Errorf("%s to %s: got %+v, %v, want a connection", ends[0], ends[1], c, err)
			}
			time.Sleep(1500 * time.Millisecond) // TCP_TIMEOUT_INIT is 1 s, include/net/tcp.h
			c, err := replica.connect(netip.AddrPortFrom(left.Addr(), replica.port()), right)
			if err != nil || c.seq != 1000 || c.answer != nil {
				t.Errorf("got %+v, %v, want sequence number 1000, of segment, and no answer", c, err)
			}
		}
		return nil
	})
}

// TestLostMarker drops the first marker, as a busy kernel may.
func TestLostMarker(t *testing.T) {
	t.Parallel()
	r := newTestRouter(t)
	inReplicaOf(t, r.Host, func(replica *replica) error {
		lose := exec.CommandContext(t.Context(), "nft", fmt.Sprintf(`table netdev lossy { chain in {
				type filter hook ingress device %q priority 0; ip protocol %d limit rate 1/hour burst 1 packets counter drop; }; }`,
			replica.links[0].name, markerProtocol))
		if out, err := lose.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		c, err := replica.connect(netip.MustParseAddrPort("203.0.113.101:1111"), netip.MustParseAddrPort("192.168.1.2:21"))
		if err != nil || c.master == nil || replica.markers != 2 {
			t.Errorf("got %+v, %v, after %d markers, want a connection after 2", c, err, replica.markers)
		}
		return nil
	})
}

// TestExamineChangesNothing examines a router that has rules: its state stays, and no packet leaves it.
func TestExamineChangesNothing(t *testing.T) {
	t.Parallel()
	r := newTestRouter(t)
	applyRules(t, r.Host)
	r.sh(t, `nft 'table inet filter { counter c { }; chain out { type filter hook output priority -400; counter name c; }; chain in { type filter hook prerouting priority -400; counter name c; }; }'
iptables-legacy -A FORWARD -p tcp -m conntrack --ctstate RELATED -j DROP`)
	const state = "nft -s list ruleset; iptables-legacy-save | grep -v '^#'; ip6tables-legacy-save; conntrack -L; conntrack -L expect; ip link; ip route show table all; sysctl -a 2>/dev/null | grep '^net.ipv4.conf\\|forward'"
	// Only TCP, without neighbour discovery and the like.
	sent := "cat /proc/net/snmp | grep ^Tcp; cat /proc/net/snmp6 2>/dev/null | grep -i tcp || true"
	before, beforeSent := r.sh(t, state), r.sh(t, sent)
	var here, after string
	do(t, r.Host, func() (err error) {
		here, err = os.Readlink("/proc/thread-self/ns/net")
		findings := Examine(backend.Request{Rules: ftp}, "")
		after, _ = os.Readlink("/proc/thread-self/ns/net")
		if s := text(findings); !strings.Contains(s, "chain FORWARD drops related connections") || !strings.Contains(s, "an expected test connection was dropped there") {
			t.Errorf("want a problem with chain FORWARD, got\n%s", s)
		}
		return err
	})
	if now := r.sh(t, state); now != before || here != after {
		t.Errorf("got\n%s\nin %s, want as before\n%s\nin %s", now, after, before, here)
	}
	if now := r.sh(t, sent); now != beforeSent {
		t.Errorf("got\n%s\nwant as before\n%s", now, beforeSent)
	}
}

func TestHostThatCannotBeCopied(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		ipset  bool
		level  Level
		what   string
	}{
		"many interfaces": {
			"for i in $(seq 63); do ip link add b$i type bridge; ip link set b$i up; done", false,
			Warning, "this host cannot be copied: read the interfaces and routes: there are 65 interfaces, and 64 at most are rebuilt",
		},
		"an ipset": {
			"iptables-legacy -A FORWARD -m set --match-set some src -j DROP", true,
			Warning, "this host cannot be copied: iptables-legacy, table filter",
		},
		"an ipset, nft": {
			"iptables-nft -A FORWARD -m set --match-set some src -j DROP", true,
			Warning, "this host cannot be copied: table ip filter, chain FORWARD, rule with handle",
		},
		"many addresses": {
			"for i in $(seq 20); do ip addr add 10.0.$i.1/24 dev eth1; done", false,
			OK, "not in the test: ",
		},
		"a bridge": {
			"ip link add br0 type bridge; ip addr flush dev eth1; ip link set eth1 master br0; ip addr add 192.168.1.1/24 dev br0; ip link set br0 up", false,
			OK, "passed in a copy of this host: eth0 to br0 (IPv4)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTestRouter(t)
			if c.ipset {
				do(t, r.Host, func() error { return netlink.IpsetCreate("some", "hash:ip", netlink.IpsetCreateOptions{}) })
			}
			r.sh(t, c.script)
			findings := among(t, r.Host, ftp, "transfer")
			if len(findings) != 1 || findings[0].Level != c.level || !strings.Contains(findings[0].What, c.what) {
				t.Errorf("want %s %s, got\n%s", c.level, c.what, text(findings))
			}
		})
	}
}

// TestTransfersOfCTHelper uses a carrier instead of the cthelper, unless a rule matches the cthelper.
func TestTransfersOfCTHelper(t *testing.T) {
	t.Parallel()
	c := backend.Plan{Rules: ftp, Helper: backend.CTHelper}
	c.Rules.Helper, c.Rules.Ruleset = "ftp", rules.CTHelper
	for name, script := range map[string]string{
		"none":   ":",
		"nft":    "nft 'table inet f { chain forward { type filter hook forward priority 0; ct helper \"ftp\" accept; }; }'",
		"xt":     "iptables-nft -A FORWARD -m helper --helper ftp -j ACCEPT",
		"legacy": "ip6tables-legacy -A FORWARD -p tcp -m comment --comment x -m helper --helper ftp -j ACCEPT",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTestRouter(t)
			r.sh(t, script)
			do(t, r.Host, func() error {
				got, err := host{}.transfers(c)
				if name == "none" {
					if err != nil || !got.has("eth0", "eth1", false) || !got.has("eth0", "eth1", true) {
						t.Errorf("got %+v, %v, want transfers over IPv4 and IPv6", got, err)
					}
				} else if err == nil || err.Error() != "its rules match the helper ftp, which a copy cannot have" {
					t.Errorf("got %+v, %v, want that a copy cannot have the helper", got, err)
				}
				return nil
			})
		})
	}
}
