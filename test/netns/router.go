package netns

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Router is a host with a stateful firewall, perhaps NAT, and perhaps a helper
// for FTP. A host with local clients and servers is one, too, if it has these.
type Router struct {
	*Host
	daemon  Daemon
	process *Process
	scratch string // folder of the daemon's control socket
}

// NewRouter makes a router without any rules yet.
func NewRouter(name string) (*Router, error) {
	h, err := NewHost(name)
	if err != nil {
		return nil, err
	}
	return &Router{Host: h}, nil
}

// The policy is drop: a data connection gets through only if somebody has
// expected it. Loopback is no exception here.
const firewall = `table inet filter {
	set ftp {
		type inet_service
		elements = { %s }
	}
	counter invalid {
	}
	chain input {
		type filter hook input priority filter; policy drop;
		jump stateful
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		jump stateful
	}
	chain output {
		type filter hook output priority filter; policy drop;
		jump stateful
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
	}
	chain stateful {
		ct state invalid counter name "invalid" drop
		ct state { established, related } accept
		ct state new tcp dport @ftp accept
	}
}
`

// LoadFirewall lets through what is established, related, or new to one of the
// ports, and nothing else.
func (r *Router) LoadFirewall(ctx context.Context, ports []uint16) error {
	if err := r.Nft(ctx, fmt.Sprintf(firewall, portList(ports))); err != nil {
		return err
	}
	// Window tracking must be as strict as it can be: a wrong sequence number
	// then shows as an invalid packet.
	return r.Sysctl("netfilter.nf_conntrack_tcp_be_liberal", "0")
}

// DNATRule sends connections to the public address's ports to the server.
func DNATRule(public netip.Addr, ports []uint16, server netip.Addr) string {
	match := "ip"
	if public.Is6() {
		match = "ip6"
	}
	return fmt.Sprintf("%s daddr %s tcp dport { %s } dnat to %s", match, public, portList(ports), server)
}

// MasqueradeRule hides what leaves through an interface behind its address.
func MasqueradeRule(outInterface string) string {
	return fmt.Sprintf("oifname %q masquerade", outInterface)
}

// LoadNAT loads NAT rules into a table of their own. An empty rule is left out.
func (r *Router) LoadNAT(ctx context.Context, f Family, prerouting, postrouting string) error {
	table := "ip"
	if f == IPv6 {
		table = "ip6"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table %s nat {\n", table)
	if prerouting != "" {
		fmt.Fprintf(&b, "\tchain prerouting {\n\t\ttype nat hook prerouting priority dstnat;\n\t\t%s\n\t}\n", prerouting)
	}
	if postrouting != "" {
		fmt.Fprintf(&b, "\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat;\n\t\t%s\n\t}\n", postrouting)
	}
	b.WriteString("}\n")
	return r.Nft(ctx, b.String())
}

// Invalid is the number of packets that conntrack found invalid, such as those
// with a sequence number outside the window.
func (r *Router) Invalid(ctx context.Context) (int, error) {
	return r.Counter(ctx, "filter", "invalid")
}

// Counter is the number of packets that a named counter of an inet table has seen.
func (r *Router) Counter(ctx context.Context, table, name string) (int, error) {
	text, err := r.Run(ctx, "", "nft", "list", "counter", "inet", table, name)
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(text, "packets ")
	number, _, _ := strings.Cut(rest, " ")
	packets, err := strconv.Atoi(number)
	if !found || err != nil {
		return 0, fmt.Errorf("no number of packets in nft's answer: %s", text)
	}
	return packets, nil
}

func portList(ports []uint16) string {
	text := make([]string, len(ports))
	for i, port := range ports {
		text[i] = strconv.Itoa(int(port))
	}
	return strings.Join(text, ", ")
}
