package netns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// network is a router on which a packet passes hooks of netfilter more than once.
type network struct {
	name       string
	situations []Situation
	setUp      string // run by sh on the router; in capitals, its addresses
	vrf        bool
	// local are the ends that are on the router, bound to the VRF red: "client", "server" or both.
	local string
}

const (
	// Without keep_addr_on_down, an interface loses its IPv6 addresses when it joins a VRF.
	oneVRF = `echo 1 >/proc/sys/net/ipv6/conf/all/keep_addr_on_down
ip link add red type vrf table 10; ip link set red up; ip link set eth0 master red; ip link set eth1 master red
`
	// What the router itself sends passes output untracked first, into the VRF.
	localVRF = oneVRF + `nft insert rule inet filter output meta oifkind vrf accept
`
	twoVRFs = oneVRF + `ip link add blue type vrf table 20; ip link set blue up; ip link set eth1 master blue
`
	// Neighbour discovery passes the filter of bridged packets.
	bridged = `nft insert rule inet filter forward icmpv6 type '{ nd-neighbor-solicit, nd-neighbor-advert }' accept
for b in BRIDGES; do ip link add $b type bridge; ip link set $b up; done
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables; echo 1 >/proc/sys/net/bridge/bridge-nf-call-ip6tables
`
	// Proxmox's names; the rules for CT are those of its documentation on masquerading. The guest's firewall, in
	// zone 1, accepts everything. Only vmbr0 answers for its address.
	proxmox = bridged + `echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
ip link add fwln100i0 type veth peer name fwpr100p0
ip link set fwln100i0 up master fwbr100i0; ip link set fwpr100p0 up master vmbr0
iptables -t raw -A PREROUTING -i fwbr+ -j CT --zone 1; ip6tables -t raw -A PREROUTING -i fwbr+ -j CT --zone 1
nft insert rule inet filter forward ct zone 1 accept
`
)

// join moves an interface into a bridge and its address to another one.
func join(port, bridge, to, address string) string {
	return fmt.Sprintf("ip addr flush dev %s; ip link set %s master %s; ip addr add %s dev %s\n", port, port, bridge, address, to)
}

var networks = []network{
	{"one VRF", []Situation{Routed, DNAT, SNAT}, oneVRF, true, ""},
	{"two VRFs, routes to an interface", []Situation{Routed, DNAT}, twoVRFs + "ip route add SERVERNET dev eth1 table 10; ip route add CLIENTNET dev eth0 table 20\n", true, ""},
	{"two VRFs, routes to the other VRF", []Situation{Routed, DNAT}, twoVRFs + "ip route add SERVERNET dev blue table 10; ip route add CLIENTNET dev red table 20\n", true, ""},
	{"server on the router, in a VRF", []Situation{Routed}, localVRF, true, "server"},
	{"client on the router, in a VRF", []Situation{Routed}, localVRF, true, "client"},
	{"both on the router, in a VRF", []Situation{Routed}, localVRF, true, "client, server"},
	{"client on a bridge", []Situation{Routed, SNAT}, strings.ReplaceAll(bridged, "BRIDGES", "br0") + join("eth0", "br0", "br0", "CLIENTGATEWAY"), false, ""},
	{"server on a bridge", []Situation{Routed, DNAT}, strings.ReplaceAll(bridged, "BRIDGES", "br0") + join("eth1", "br0", "br0", "SERVERGATEWAY"), false, ""},
	{"both on one bridge", []Situation{Routed}, strings.ReplaceAll(bridged, "BRIDGES", "br0") + "ip link set eth0 master br0; ip link set eth1 master br0\n", false, ""},
	{"Proxmox, client in a guest", []Situation{Routed, SNAT}, strings.ReplaceAll(proxmox, "BRIDGES", "fwbr100i0 vmbr0") + join("eth0", "fwbr100i0", "vmbr0", "CLIENTGATEWAY"), false, ""},
	{"Proxmox, server in a guest", []Situation{Routed, DNAT}, strings.ReplaceAll(proxmox, "BRIDGES", "fwbr100i0 vmbr0") + join("eth1", "fwbr100i0", "vmbr0", "SERVERGATEWAY"), false, ""},
}

// TestRepeatedHooks has every verb work where a packet passes hooks more than once, as with the kernel's helper.
// The daemon reads each packet once.
func TestRepeatedHooks(t *testing.T) {
	t.Parallel()
	for _, n := range networks {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			n.need(t)
			for _, situation := range n.situations {
				for _, family := range Families {
					for _, ruleset := range []string{"none", "kernel", "full", "lean"} {
						t.Run(fmt.Sprintf("%s/%s/%s", situation, family, ruleset), func(t *testing.T) {
							t.Parallel()
							n.try(t, situation, family, ruleset)
						})
					}
				}
			}
		})
	}
}

// need skips the test where the kernel has no VRF, and loads br_netfilter.
func (n network) need(t *testing.T) {
	host, ctx := NewTestHost(t, "probe"), testContext(t, 20*time.Second)
	var err error
	if !n.vrf {
		err = loadModule(ctx, host, "br_netfilter")
	} else if _, err = host.Run(ctx, "", "ip", "link", "add", "red", "type", "vrf", "table", "10"); err != nil && strings.Contains(err.Error(), "Unknown device type") {
		t.Skip("this kernel has no VRF (CONFIG_NET_VRF): make test-kernels runs this on kernels that have it")
	}
	must.Do(t, err)
}

func (n network) try(t *testing.T, situation Situation, family Family, ruleset string) {
	config := Config{Situation: situation, Family: family}
	switch ruleset {
	case "kernel":
		needKernelHelper(t)
		config.Helper = Kernel
	case "full", "lean":
		config.Helper, config.Daemon.BackEnd = Ours, BackEnd{Helper: "carrier", Ruleset: ruleset}
	}
	lab := newLab(t, config)
	router, ctx, a := lab.ServerRouter(), testContext(t, time.Minute), lab.Addresses
	setUp := strings.NewReplacer("CLIENTGATEWAY", a.ClientGateway.String(), "SERVERGATEWAY", a.ServerGateway.String(),
		"CLIENTNET", a.Client.Masked().String(), "SERVERNET", a.Server.Masked().String()).Replace(n.setUp)
	_, err := router.Run(ctx, "", "sh", "-ec", setUp)
	must.Do(t, err)
	p := place{router: router, client: lab.Client, server: lab.Server, at: lab.ServerAddress}
	if n.name == "both on one bridge" {
		for from, to := range map[*Host]netip.Addr{p.client: a.Server.Addr(), p.server: a.Client.Addr()} {
			_, err := from.Run(ctx, "", "ip", "route", "add", to.String(), "dev", "eth0")
			must.Do(t, err)
		}
	}
	if n.local != "" {
		router.Device = "red"
	}
	if strings.Contains(n.local, "server") {
		p.server, p.at = router.Host, a.ClientGateway.Addr()
	}
	if strings.Contains(n.local, "client") {
		p.client = router.Host
	}
	if ruleset == "none" && n.local == "" {
		wantFailures(t, lab, situation, family, func(cell, bool) {})
		return
	}

	listen := a.Server.Addr()
	if p.server == router.Host {
		listen = p.at
	}
	server := startScripted(t, p.server, netip.AddrPortFrom(listen, 21), script{})
	client := dialScripted(t, p.client, netip.AddrPort{}, netip.AddrPortFrom(p.at, 21))
	client.login()
	if ruleset == "none" {
		ctx, cancel := scaledContext(failingTimeout)
		defer cancel()
		if _, err := p.client.Dial(ctx, netip.AddrPort{}, client.passive(EPSV)); err == nil {
			t.Error("EPSV works without a helper")
		}
		client.quit()
		return
	}
	// What has been queued, what both sides have sent with payload, and how often again.
	count := func() (queued, segments, again int) {
		queued, err := router.QueuedPackets()
		must.Do(t, err)
		again = tcpCounters(t, p.client)["RetransSegs"] + tcpCounters(t, p.server)["RetransSegs"]
		return queued, segmentsOf(t, client.conn, server.connections()[0]), again
	}
	queuedBefore, segmentsBefore, againBefore := count()
	for i := range 3 {
		for _, verb := range family.Verbs() {
			name := fmt.Sprintf("%s-%d", verb, i)
			wantContent(t, name, client.fetchBy(verb, name, p.at), fileContent(name))
		}
	}
	wantNothingInvalid(t, router)
	if ruleset == "kernel" {
		return
	}
	queued, segments, again := count()
	queued, segments, again = queued-queuedBefore, segments-segmentsBefore, again-againBefore
	if ruleset == "full" && (queued < segments || queued > segments+again) {
		t.Errorf("%d packets were queued; want %d segments, and %d retransmissions at most", queued, segments, again)
	}
	client.quit()
	wantAllHelped(t, router)
}
