package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
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

// KubeProxyModes are the ways in which kube-proxy makes rules.
var KubeProxyModes = []string{"iptables", "nftables"}

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

// KubeNode is a node of a Kubernetes cluster with the server's pod on it, another pod, and a client
// outside. Its firewall, like every router's here, lets in what is new to port 21 and nothing else
// that nobody has expected.
type KubeNode struct {
	Node               *Router
	Client, Pod, Other *Host

	addresses kubeAddresses
}

// NewKubeNode makes a node with kube-proxy's rules, in one of its modes, for a Service with port
// 21. It has no helper yet.
func NewKubeNode(ctx context.Context, mode string, family Family) (*KubeNode, error) {
	n := &KubeNode{addresses: kubeAddressesOf(family)}
	if err := n.build(ctx, mode, family); err != nil {
		return nil, errors.Join(fmt.Errorf("build a node of Kubernetes, %s %s: %w", mode, family, err), n.Close())
	}
	return n, nil
}

func (n *KubeNode) build(ctx context.Context, mode string, family Family) (err error) {
	a := n.addresses
	if n.Node, err = NewRouter("node"); err != nil {
		return err
	}
	if err := n.Node.LoadFirewall(ctx, []uint16{21}); err != nil {
		return err
	}
	for _, h := range []struct {
		host                **Host
		name, nodeInterface string
		address, gateway    netip.Prefix
	}{
		{&n.Client, "client", "eth0", a.client, a.node},
		{&n.Pod, "server's pod", "veth0", a.pod, a.podGateway},
		{&n.Other, "other pod", "veth1", a.other, a.otherGateway},
	} {
		if *h.host, err = NewHost(h.name); err != nil {
			return err
		}
		if err := (*h.host).attach(n.Node, h.nodeInterface, h.address, h.gateway); err != nil {
			return err
		}
	}
	// The way to a cluster IP is that to anywhere, until NAT.
	if err := n.Node.AddDefaultRoute(a.client.Addr()); err != nil {
		return err
	}
	if err := n.Node.Forward(); err != nil {
		return err
	}
	rules, ok := kubeProxyRules[mode]
	if !ok {
		return fmt.Errorf("kube-proxy has no mode %q", mode)
	}
	return n.Node.Nft(ctx, a.rules(family, rules))
}

// Close kills the programs on all hosts, and lets go of their namespaces.
func (n *KubeNode) Close() error {
	var errs []error
	for _, h := range []*Host{n.Client, n.Pod, n.Other} {
		if h != nil {
			errs = append(errs, h.Close())
		}
	}
	if n.Node != nil {
		errs = append(errs, n.Node.Close())
	}
	return errors.Join(errs...)
}

// KubeClient is where a client of the FTP Service is.
type KubeClient struct {
	*Host
	// At is where it reaches the Service, SeenAs what the server takes for its address.
	At, SeenAs netip.Addr
}

// Clients are outside, in another pod on the node, and on the node itself. All but the pod are
// masqueraded: the server sees its gateway.
func (n *KubeNode) Clients() []KubeClient {
	a := n.addresses
	return []KubeClient{
		{n.Client, a.node.Addr(), a.podGateway.Addr()},
		{n.Other, a.clusterIP, a.other.Addr()},
		{n.Node.Host, a.clusterIP, a.podGateway.Addr()},
	}
}
