package netns

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// secondZone keeps what comes in by the second pair of interfaces in another conntrack zone.
const secondZone = `table inet zones {
	chain raw { type filter hook prerouting priority -300; iifname { eth2, eth3 } ct zone set 5; }
}
`

// TestZones has a tenant in another conntrack zone, whose control connection has the same addresses and
// ports as one in zone 0. Nothing of it is read, and nothing happens to the other one.
func TestZones(t *testing.T) {
	t.Parallel()
	for _, ruleset := range []string{"full", "lean"} {
		t.Run(ruleset, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: Routed, Family: IPv4, Helper: Ours, Daemon: Daemon{BackEnd: BackEnd{Helper: "carrier", Ruleset: ruleset}}})
			router, ctx := lab.ServerRouter(), testContext(t, time.Minute)
			a := lab.Addresses
			single := func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), 32) }
			tenant := attachHost(t, router, "eth2", "tenant", a.Client, single(a.ClientGateway))
			other := attachHost(t, router, "eth3", "tenant's server", a.Server, single(a.ServerGateway))
			for _, command := range []string{
				"route add " + a.Server.Addr().String() + " dev eth3 table 5", "rule add iif eth2 table 5",
				"route add " + a.Client.Addr().String() + " dev eth2 table 6", "rule add iif eth3 table 6",
			} {
				if _, err := router.Run(ctx, "", "ip", strings.Fields(command)...); err != nil {
					t.Fatal(err)
				}
			}
			if err := router.Nft(ctx, secondZone); err != nil {
				t.Fatal(err)
			}
			at := netip.AddrPortFrom(a.Server.Addr(), 21)
			var clients []*scriptedClient
			for _, pair := range [][2]*Host{{lab.Client, lab.Server}, {tenant, other}} {
				startScripted(t, pair[1], at, script{})
				client := dialScripted(t, pair[0], netip.AddrPortFrom(a.Client.Addr(), classicControlPort), at)
				client.login()
				clients = append(clients, client)
			}
			clients[1].do("200", portCommand(netip.AddrPortFrom(a.Client.Addr(), victimPort)))
			expected, err := router.Run(ctx, "", "conntrack", "-L", "expect")
			if err != nil {
				t.Fatal(err)
			}
			if expected != "" {
				t.Errorf("a PORT in zone 5 opened a port:\n%s", expected)
			}
			for _, verb := range Verbs {
				wantContent(t, string(verb), clients[0].fetchBy(verb, string(verb), at.Addr()), fileContent(string(verb)))
			}
			entries, err := router.Run(ctx, "", "conntrack", "-L", "-p", "tcp", "--orig-port-dst", "21")
			if err != nil {
				t.Fatal(err)
			}
			for entry := range strings.Lines(entries) {
				if strings.Contains(entry, "zone=5") == strings.Contains(entry, "helper=") {
					t.Errorf("want a helper in zone 0 only:\n%s", entry)
				}
			}
		})
	}
}
