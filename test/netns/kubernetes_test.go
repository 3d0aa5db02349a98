package netns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// kubeAddresses are those of a node and its pods in one family. Each pod is at the end of
// a veth pair of its own, in a network that has nobody else in it.
type kubeAddresses struct {
	client, node        netip.Prefix // outside
	pod, podGateway     netip.Prefix // the FTP server's
	other, otherGateway netip.Prefix // of another pod on the node
	pods, services      netip.Prefix // all there are in the cluster
	clusterIP           netip.Addr   // of the FTP Service
}

func kubeAddressesOf(f Family) kubeAddresses {
	prefix := netip.MustParsePrefix
	if f == IPv6 {
		return kubeAddresses{
			client: prefix("2001:db8:113::101/64"), node: prefix("2001:db8:113::1/64"),
			pod: prefix("fd00:10:244:1::2/126"), podGateway: prefix("fd00:10:244:1::1/126"),
			other: prefix("fd00:10:244:1::6/126"), otherGateway: prefix("fd00:10:244:1::5/126"),
			pods: prefix("fd00:10:244::/56"), services: prefix("fd00:10:96::/112"),
			clusterIP: netip.MustParseAddr("fd00:10:96::a"),
		}
	}
	return kubeAddresses{
		client: prefix("203.0.113.101/24"), node: prefix("203.0.113.1/24"),
		pod: prefix("10.244.1.2/30"), podGateway: prefix("10.244.1.1/30"),
		other: prefix("10.244.1.6/30"), otherGateway: prefix("10.244.1.5/30"),
		pods: prefix("10.244.0.0/16"), services: prefix("10.96.0.0/12"),
		clusterIP: netip.MustParseAddr("10.96.0.10"),
	}
}

// rules fills in the addresses.
func (a kubeAddresses) rules(f Family, text string) string {
	ip, addr := "ip", "ipv4_addr"
	if f == IPv6 {
		ip, addr = "ip6", "ipv6_addr"
	}
	return strings.NewReplacer(
		"{ip}", ip, "{addr}", addr,
		"{node}", a.node.Addr().String(),
		"{clusterIP}", a.clusterIP.String(),
		"{services}", a.services.String(),
		"{pods}", a.pods.String(),
		"{pod}", a.pod.Addr().String(),
		"{pod:21}", netip.AddrPortFrom(a.pod.Addr(), 21).String(),
	).Replace(text)
}

// kubeProxyRules are what kube-proxy makes of a Service with one port, 21, one endpoint, a
// cluster IP and an external IP, the node's: by mode. Chains that are for other kinds of
// Services are left out, and the hashes in the names of those that are there. Their hooks,
// priorities, order and marks are kube-proxy's (pkg/proxy/iptables/proxier.go,
// pkg/proxy/nftables/proxier.go).
var kubeProxyRules = map[string]string{
	// As iptables-nft has them. FORWARD drops what KUBE-FORWARD does not accept, but for
	// what a network policy lets in: not all of that is marked.
	"iptables": `
table {ip} nat {
	chain KUBE-MARK-MASQ {
		meta mark set mark or 0x4000
	}
	chain KUBE-SEP-FTP {
		{ip} saddr {pod} jump KUBE-MARK-MASQ
		meta l4proto tcp dnat to {pod:21}
	}
	chain KUBE-SVC-FTP {
		{ip} saddr != {pods} {ip} daddr {clusterIP} tcp dport 21 jump KUBE-MARK-MASQ
		jump KUBE-SEP-FTP
	}
	chain KUBE-EXT-FTP {
		jump KUBE-MARK-MASQ
		jump KUBE-SVC-FTP
	}
	chain KUBE-SERVICES {
		{ip} daddr {clusterIP} tcp dport 21 jump KUBE-SVC-FTP
		{ip} daddr {node} tcp dport 21 jump KUBE-EXT-FTP
	}
	chain KUBE-POSTROUTING {
		mark and 0x4000 != 0x4000 return
		meta mark set mark xor 0x4000
		masquerade fully-random
	}
	chain PREROUTING {
		type nat hook prerouting priority -100; policy accept;
		jump KUBE-SERVICES
	}
	chain OUTPUT {
		type nat hook output priority -100; policy accept;
		jump KUBE-SERVICES
	}
	chain POSTROUTING {
		type nat hook postrouting priority 100; policy accept;
		jump KUBE-POSTROUTING
	}
}
table {ip} filter {
	chain KUBE-FORWARD {
		ct state invalid drop
		mark and 0x4000 == 0x4000 accept
		ct state related,established accept
	}
	chain FORWARD {
		type filter hook forward priority 0; policy drop;
		jump KUBE-FORWARD
		{ip} daddr {pod} tcp dport 21 ct state new accept
	}
}
`,
	"nftables": `
table {ip} kube-proxy {
	set cluster-ips {
		type {addr}
		elements = { {clusterIP} }
	}
	map service-ips {
		type {addr} . inet_proto . inet_service : verdict
		elements = { {clusterIP} . tcp . 21 : goto service-ftp, {node} . tcp . 21 : goto external-ftp }
	}
	chain mark-for-masquerade {
		meta mark set mark or 0x4000
	}
	chain endpoint-ftp {
		{ip} saddr {pod} jump mark-for-masquerade
		meta l4proto tcp dnat to {pod:21}
	}
	chain service-ftp {
		{ip} daddr {clusterIP} {ip} saddr != {pods} jump mark-for-masquerade
		numgen random mod 1 vmap { 0 : goto endpoint-ftp }
	}
	chain external-ftp {
		jump mark-for-masquerade
		goto service-ftp
	}
	chain services {
		{ip} daddr . meta l4proto . th dport vmap @service-ips
	}
	chain masquerading {
		mark and 0x4000 == 0 return
		meta mark set mark xor 0x4000
		masquerade fully-random
	}
	chain cluster-ips-check {
		{ip} daddr @cluster-ips reject
		{ip} daddr { {services} } drop
	}
	chain nat-prerouting {
		type nat hook prerouting priority -100;
		jump services
	}
	chain nat-output {
		type nat hook output priority -100;
		jump services
	}
	chain nat-postrouting {
		type nat hook postrouting priority 100;
		jump masquerading
	}
	chain filter-forward {
		type filter hook forward priority 0;
		ct state new jump cluster-ips-check
	}
	chain filter-output {
		type filter hook output priority 0;
		ct state new jump cluster-ips-check
	}
}
`,
}

// kubeNode is a node of a cluster. Its firewall, like every router's here, lets in what is new
// to port 21 and nothing else that nobody has expected.
type kubeNode struct {
	addresses          kubeAddresses
	node               *Router
	client, pod, other *Host
}

func newKubeNode(t *testing.T, mode string, family Family, helper Helper) kubeNode {
	t.Helper()
	n := kubeNode{addresses: kubeAddressesOf(family), node: newRouter(t, "node", helper, 21)}
	a := n.addresses
	for _, h := range []struct {
		host                **Host
		name, nodeInterface string
		address, gateway    netip.Prefix
	}{
		{&n.client, "client", "eth0", a.client, a.node},
		{&n.pod, "server's pod", "veth0", a.pod, a.podGateway},
		{&n.other, "other pod", "veth1", a.other, a.otherGateway},
	} {
		*h.host = attachHost(t, n.node, h.nodeInterface, h.name, h.address, h.gateway)
	}
	// The way to a cluster IP is that to anywhere, until NAT.
	if err := n.node.AddDefaultRoute(a.client.Addr()); err != nil {
		t.Fatal(err)
	}
	if err := n.node.Forward(); err != nil {
		t.Fatal(err)
	}
	if err := n.node.Nft(testContext(t, 20*time.Second), watch+a.rules(family, kubeProxyRules[mode])); err != nil {
		t.Fatal(err)
	}
	return n
}

// kubeClient is where a client of the FTP Service is.
type kubeClient struct {
	host *Host
	// at is where it reaches the Service, seenAs what the server takes for its address.
	at, seenAs netip.Addr
}

// clients are outside, in another pod on the node, and on the node itself. All but the pod are
// masqueraded: the server sees its gateway.
func (n kubeNode) clients() []kubeClient {
	a := n.addresses
	return []kubeClient{
		{n.client, a.node.Addr(), a.podGateway.Addr()},
		{n.other, a.clusterIP, a.other.Addr()},
		{n.node.Host, a.clusterIP, a.podGateway.Addr()},
	}
}

// TestKubernetesNode has the server in a pod, behind a Service as kube-proxy makes it, and the
// daemon in the node's own namespace. Only the control port is a port of the Service.
func TestKubernetesNode(t *testing.T) {
	t.Parallel()
	for mode := range kubeProxyRules {
		for _, family := range Families {
			t.Run(fmt.Sprintf("%s/%s/None", mode, family), func(t *testing.T) {
				t.Parallel()
				n := newKubeNode(t, mode, family, None)
				site := startSite(t, n.pod, family, SiteOptions{})
				for _, c := range n.clients() {
					t.Run("from the "+c.host.Name, func(t *testing.T) {
						t.Parallel()
						ctx := testContext(t, time.Minute)
						wantNoData(t, family, func(verb Verb) Outcome {
							return c.transfer(site, verb, Download, failingTimeout).Run(ctx, c.host)
						})
					})
				}
			})
			t.Run(fmt.Sprintf("%s/%s/Ours", mode, family), func(t *testing.T) {
				t.Parallel()
				n := newKubeNode(t, mode, family, Ours)
				site := startSite(t, n.pod, family, SiteOptions{})
				for _, c := range n.clients() {
					c.wantSuccesses(t, site, family)
				}
				ctx := testContext(t, 20*time.Second)
				invalid, err := n.node.Counter(ctx, "watch", "invalid")
				if err != nil || invalid > 0 {
					t.Errorf("conntrack found %d packets of control connections invalid, %v", invalid, err)
				}
				wantNothingInvalid(t, n.node)
				wantAllHelped(t, n.node)
			})
		}
	}
}

func (c kubeClient) transfer(site *Site, verb Verb, operation Operation, timeout time.Duration) Transfer {
	return Transfer{Program: Curl, Verb: verb, Operation: operation, Server: c.at, Site: site, Timeout: timeout}
}

func (c kubeClient) wantSuccesses(t *testing.T, site *Site, family Family) {
	t.Helper()
	ctx := testContext(t, 2*time.Minute)
	before := len(site.Log())
	for _, verb := range family.Verbs() {
		for _, operation := range Operations {
			outcome := c.transfer(site, verb, operation, workingTimeout).Run(ctx, c.host)
			if outcome.Err != nil {
				t.Errorf("%s, %s from the %s: %v\n%s", verb, operation, c.host.Name, outcome.Err, outcome.Transcript)
			}
		}
	}
	log := site.Log()[before:]
	if all, right := strings.Count(log, `Client "`), strings.Count(log, fmt.Sprintf(`Client "%s"`, c.seenAs)); all == 0 || right != all {
		t.Errorf("want the server to see the %s as %s in %d lines, not %d:\n%s", c.host.Name, c.seenAs, all, right, log)
	}
}
