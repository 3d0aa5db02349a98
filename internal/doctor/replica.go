package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
)

// snapshot is the state of a network namespace that decides which packets pass: interfaces, addresses, routes,
// settings and rules. It is kept and rebuilt as the kernel's messages, so that none has to be interpreted.
type snapshot struct {
	links     []link
	addresses []routeMessage
	routes    []routeMessage
	policies  []routeMessage              // ip rule
	settings  []setting                   // below /proc/sys/net, in the order of writing
	nft       []nftMessage                // in the order of sending
	handles   map[nftread.Object][]uint64 // of the rules of each chain, in order
	bases     map[nftread.Object]bool     // base chains
	legacy    []xtable
	omitted   []string // what is not rebuilt
}

// link is an interface that is up and has no master.
type link struct {
	index    int32
	name     string
	mtu      uint32
	group    uint32 // iifgroup in nftables
	hardware net.HardwareAddr
}

// routeMessage is a message of rtnetlink, with its header.
type routeMessage struct {
	header     []byte
	attributes nfnetlink.Attributes
}

type setting struct{ name, value string }

// maxLinks limits the number of interfaces of a namespace that is rebuilt.
const maxLinks = 64

// maxMTU is the limit of a veth (ETH_MAX_MTU, include/uapi/linux/if_ether.h).
const maxMTU = 65535

// loopbackIndex is the index of lo in every namespace (LOOPBACK_IFINDEX).
const loopbackIndex = 1

// Lengths of rtnetlink's headers.
const (
	lenIfinfo = unix.SizeofIfInfomsg
	lenIfaddr = unix.SizeofIfAddrmsg
	lenRoute  = unix.SizeofRtMsg
	lenPolicy = 12 // struct fib_rule_hdr, include/uapi/linux/fib_rules.h
)

// takeSnapshot reads the namespace of the calling thread.
func takeSnapshot() (*snapshot, error) {
	s := &snapshot{}
	for _, part := range []struct {
		what string
		read func() error
	}{
		{"the interfaces and routes", s.readNetwork},
		{"the settings", s.readSettings},
		{"the ruleset", s.readNFT},
		{"the tables of iptables-legacy", s.readLegacy},
	} {
		if err := part.read(); err != nil {
			return nil, fmt.Errorf("read %s: %w", part.what, err)
		}
	}
	return s, nil
}

func (s *snapshot) readNetwork() error {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer nl.Close()
	if err := s.readLinks(nl); err != nil {
		return err
	}
	if s.addresses, err = dumpRoute(nl, unix.RTM_GETADDR, unix.AF_UNSPEC, lenIfaddr); err != nil {
		return err
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		routes, err := dumpRoute(nl, unix.RTM_GETROUTE, family, lenRoute)
		if err != nil {
			return err
		}
		policies, err := dumpRoute(nl, unix.RTM_GETRULE, family, lenPolicy)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // without policy routing
			return err
		}
		s.routes, s.policies = append(s.routes, routes...), append(s.policies, policies...)
	}
	return nil
}

func dumpRoute(nl *netlink.Conn, typ netlink.HeaderType, family byte, length int) ([]routeMessage, error) {
	query := make([]byte, length)
	query[0] = family
	answers, err := nl.Execute(netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | netlink.Dump}, Data: query,
	})
	if err != nil {
		return nil, err
	}
	var all []routeMessage
	for _, m := range answers {
		if len(m.Data) < length {
			return nil, fmt.Errorf("an answer of %d bytes", len(m.Data))
		}
		all = append(all, routeMessage{m.Data[:length], m.Data[length:]})
	}
	return all, nil
}

func (s *snapshot) readLinks(nl *netlink.Conn) error {
	all, err := dumpRoute(nl, unix.RTM_GETLINK, unix.AF_UNSPEC, lenIfinfo)
	if err != nil {
		return err
	}
	vrf := make(map[uint32]bool)
	for _, m := range all {
		if m.attributes.Nested(unix.IFLA_LINKINFO).Text(unix.IFLA_INFO_KIND) == "vrf" {
			vrf[m.index()] = true
		}
	}
	for _, m := range all {
		name := m.attributes.Text(unix.IFLA_IFNAME)
		flags := binary.NativeEndian.Uint32(m.header[8:])
		master := m.attributes.Native(unix.IFLA_MASTER)
		switch {
		case vrf[m.index()] || vrf[master]:
			return fmt.Errorf("interface %s belongs to a VRF, which cannot be rebuilt", name)
		case flags&unix.IFF_UP == 0, flags&unix.IFF_LOOPBACK != 0, master != 0:
			continue
		}
		l := link{index: int32(m.index()), name: name, mtu: m.attributes.Native(unix.IFLA_MTU), group: m.attributes.Native(unix.IFLA_GROUP)}
		if a := m.attributes.Find(unix.IFLA_ADDRESS); len(a) == 6 {
			l.hardware = a
		}
		s.links = append(s.links, l)
	}
	if len(s.links) > maxLinks {
		return fmt.Errorf("there are %d interfaces, and %d at most are rebuilt", len(s.links), maxLinks)
	}
	return nil
}

// index returns the interface of a link or an address: both headers have it at 4.
func (m routeMessage) index() uint32 { return binary.NativeEndian.Uint32(m.header[4:]) }

// readSettings reads the settings that decide whether a packet is forwarded.
func (s *snapshot) readSettings() error {
	names := []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/ip_nonlocal_bind"}
	interfaces := []string{"all"}
	for _, l := range s.links {
		interfaces = append(interfaces, l.name)
		names = append(names, "ipv4/conf/"+l.name+"/forwarding")
	}
	for _, i := range interfaces {
		for _, name := range []string{"rp_filter", "accept_local", "src_valid_mark", "route_localnet"} {
			names = append(names, "ipv4/conf/"+i+"/"+name)
		}
	}
	for _, name := range names {
		value, err := os.ReadFile(filepath.Join("/proc/sys/net", name))
		if errors.Is(err, fs.ErrNotExist) { // the kernel has no IPv6, say
			continue
		}
		if err != nil {
			return err
		}
		s.settings = append(s.settings, setting{name, strings.TrimSpace(string(value))})
	}
	return nil
}

func (s setting) write() error {
	return os.WriteFile(filepath.Join("/proc/sys/net", s.name), []byte(s.value), 0)
}

// rebuildNetwork rebuilds interfaces, settings, addresses and routes in the calling thread's namespace. Each
// interface is one end of a veth pair. The other end has the same index in the namespace far, to which farRoute is
// an rtnetlink socket; no program answers there.
func (s *snapshot) rebuildNetwork(far int, farRoute *netlink.Conn) error {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer nl.Close()
	for _, quiet := range []setting{
		{"ipv6/conf/default/accept_dad", "0"}, {"ipv6/conf/default/accept_ra", "0"},
		{"ipv4/tcp_synack_retries", "0"}, // retransmissions would be taken for later segments
	} {
		if err := quiet.write(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, l := range s.links {
		if err := l.make(nl, far, farRoute); err != nil {
			return fmt.Errorf("interface %s: %w", l.name, err)
		}
	}
	for _, set := range s.settings {
		if err := set.write(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, a := range s.addresses {
		if !s.has(a.index()) {
			continue
		}
		if err := request(nl, unix.RTM_NEWADDR, a.address()); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("address %s: %w", a.text(unix.IFA_ADDRESS), err)
		}
	}
	for _, policy := range s.policies {
		if err := request(nl, unix.RTM_NEWRULE, policy.policy()); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("routing policy rule: %w", err)
		}
	}
	s.rebuildRoutes(nl)
	return nil
}

// has reports whether an interface is rebuilt.
func (s *snapshot) has(index uint32) bool {
	return index == loopbackIndex || slices.ContainsFunc(s.links, func(l link) bool { return uint32(l.index) == index })
}

// rebuildRoutes adds the routes. A gateway may be reachable by another route only, so refused routes are tried
// again while others are accepted.
func (s *snapshot) rebuildRoutes(nl *netlink.Conn) {
	var todo []routeMessage
	for _, r := range s.routes {
		if s.rebuildable(r) {
			todo = append(todo, r.route())
		}
	}
	for before := len(todo) + 1; 0 < len(todo) && len(todo) < before; {
		before = len(todo)
		todo = slices.DeleteFunc(todo, func(r routeMessage) bool {
			err := request(nl, unix.RTM_NEWROUTE, r)
			return err == nil || errors.Is(err, unix.EEXIST)
		})
	}
	for _, r := range todo {
		s.omitted = append(s.omitted, fmt.Sprintf("the route to %s/%d", r.text(unix.RTA_DST), r.header[1]))
	}
}

// rebuildable reports whether a route is neither down nor one that the kernel adds for an address.
func (s *snapshot) rebuildable(r routeMessage) bool {
	const protocol, flags = 5, 8
	f := binary.NativeEndian.Uint32(r.header[flags:])
	oif := r.attributes.Native(unix.RTA_OIF)
	return r.header[protocol] != unix.RTPROT_KERNEL && f&(unix.RTM_F_CLONED|unix.RTNH_F_DEAD|unix.RTNH_F_LINKDOWN) == 0 &&
		(oif == 0 || s.has(oif))
}

// text returns an address attribute as text, "default" if it is missing.
func (m routeMessage) text(typ uint16) string {
	a, ok := netip.AddrFromSlice(m.attributes.Find(typ))
	if !ok {
		return "default"
	}
	return a.String()
}

// address returns the message that adds a dumped address, with no lifetime and no duplicate detection.
func (m routeMessage) address() routeMessage {
	header := slices.Clone(m.header)
	header[2] = 0 // the flags are an attribute
	flags := m.attributes.Native(unix.IFA_FLAGS)&unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_NODAD
	attrs := m.attributes.Without(unix.IFA_CACHEINFO, unix.IFA_FLAGS)
	attrs.Native(unix.IFA_FLAGS, flags)
	return routeMessage{header, nfnetlink.Attributes(attrs)}
}

// route returns the message that adds a dumped route.
func (m routeMessage) route() routeMessage {
	header := slices.Clone(m.header)
	binary.NativeEndian.PutUint32(header[8:], binary.NativeEndian.Uint32(header[8:])&unix.RTNH_F_ONLINK)
	// A dumped route with a nexthop object has the object's gateway and interface too.
	return routeMessage{header, nfnetlink.Attributes(m.attributes.Without(unix.RTA_CACHEINFO, rtaNexthop))}
}

// request sends one change and returns the kernel's error.
func request(nl *netlink.Conn, typ netlink.HeaderType, m routeMessage) error {
	_, err := nl.Execute(netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl},
		Data:   slices.Concat(m.header, m.attributes),
	})
	return err
}

// policy returns the message that adds a dumped routing policy rule.
func (m routeMessage) policy() routeMessage {
	const priority = 6 // FRA_PRIORITY, not dumped if it is 0
	attrs := m.attributes.Without()
	if m.attributes.Find(priority) == nil {
		attrs.Native(priority, 0)
	}
	return routeMessage{m.header, nfnetlink.Attributes(attrs)}
}

const rtaNexthop = 30 // RTA_NH_ID, include/uapi/linux/rtnetlink.h

// add creates the veth pair. Neither end resolves addresses.
func (l link) add(nl *netlink.Conn, far int) error {
	const peer = 1 // VETH_INFO_PEER, include/uapi/linux/veth.h
	header := make([]byte, lenIfinfo)
	binary.NativeEndian.PutUint32(header[4:], uint32(l.index))
	binary.NativeEndian.PutUint32(header[8:], unix.IFF_NOARP)
	binary.NativeEndian.PutUint32(header[12:], unix.IFF_NOARP)

	var b nfnetlink.Buffer
	b.Text(unix.IFLA_IFNAME, l.name)
	b.Native(unix.IFLA_MTU, min(l.mtu, maxMTU))
	b.Native(unix.IFLA_GROUP, l.group)
	if l.hardware != nil {
		b.Bytes(unix.IFLA_ADDRESS, l.hardware...)
	}
	info := b.Nest(unix.IFLA_LINKINFO)
	b.Text(unix.IFLA_INFO_KIND, "veth")
	data := b.Nest(unix.IFLA_INFO_DATA)
	other := b.Nest(peer)
	b = append(b, header...)
	b.Text(unix.IFLA_IFNAME, l.name)
	b.Native(unix.IFLA_NET_NS_FD, uint32(far))
	b.End(other)
	b.End(data)
	b.End(info)
	return request(nl, unix.RTM_NEWLINK, routeMessage{header, nfnetlink.Attributes(b)})
}

// up brings the end of the namespace of nl up.
func (l link) up(nl *netlink.Conn) error {
	header := make([]byte, lenIfinfo)
	binary.NativeEndian.PutUint32(header[4:], uint32(l.index))
	binary.NativeEndian.PutUint32(header[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(header[12:], unix.IFF_UP)
	_, err := nl.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Request | netlink.Acknowledge}, Data: header,
	})
	return err
}

// make creates the pair and brings both ends up.
func (l link) make(nl *netlink.Conn, far int, farRoute *netlink.Conn) error {
	if err := l.add(nl, far); err != nil {
		return err
	}
	if err := l.up(farRoute); err != nil {
		return err
	}
	return l.up(nl)
}
