package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// Host is a machine of the test network: a namespace with interfaces, addresses,
// routes, and programs that run in it.
type Host struct {
	// Name tells hosts apart in messages.
	Name string
	// Device is what Dial and Listen bind their sockets to, such as a VRF; nothing if it is empty.
	Device string

	ns *Namespace
	nl *netlink.Handle

	mu        sync.Mutex
	processes []*Process
}

// NewHost makes a host whose loopback interface is up.
func NewHost(name string) (*Host, error) {
	ns, err := NewNamespace()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	h := &Host{Name: name, ns: ns}
	if err := h.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), h.Close())
	}
	return h, nil
}

// NewTestHost makes a host for a test, at whose end it is closed.
func NewTestHost(t testing.TB, name string) *Host {
	t.Helper()
	h, err := NewHost(name)
	must.Do(t, err)
	must.CloseAtEnd(t, h)
	return h
}

func (h *Host) prepare() error {
	var err error
	if h.nl, err = netlink.NewHandleAt(h.ns.handle, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	// IPv4's settings are inherited from the machine; these are what the lab counts on.
	for _, setting := range []struct{ name, value string }{
		{"ipv4.conf.all.rp_filter", "0"},
		{"ipv4.conf.default.rp_filter", "0"},
		{"ipv6.conf.all.disable_ipv6", "0"},
		{"ipv6.conf.default.disable_ipv6", "0"},
		{"ipv6.conf.default.accept_dad", "0"},
		{"ipv6.conf.default.accept_ra", "0"},
	} {
		if err := h.ns.Sysctl(setting.name, setting.value); err != nil {
			return err
		}
	}
	return h.up("lo")
}

func (h *Host) up(name string) error {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %s up: %w", name, err)
	}
	return nil
}

// Forward makes the host forward packets between its interfaces.
func (h *Host) Forward() error {
	return errors.Join(h.Sysctl("ipv4.ip_forward", "1"), h.Sysctl("ipv6.conf.all.forwarding", "1"))
}

// Sysctl sets a variable below net in the host's namespace.
func (h *Host) Sysctl(name, value string) error {
	if err := h.ns.Sysctl(name, value); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

// Connect joins two hosts with a pair of interfaces, which it names and brings up.
func Connect(a *Host, aInterface string, b *Host, bInterface string) error {
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: aInterface},
		PeerName:      bInterface,
		PeerNamespace: netlink.NsFd(int(b.ns.handle)),
	}
	if err := a.nl.LinkAdd(pair); err != nil {
		return fmt.Errorf("connect %s with %s: %w", a.Name, b.Name, err)
	}
	return errors.Join(a.up(aInterface), b.up(bInterface))
}

// AddAddress adds an address, with the length of its network, to an interface.
func (h *Host) AddAddress(name string, address netip.Prefix) error {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: interface %s: %w", h.Name, name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP:   address.Addr().AsSlice(),
		Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen()),
	}}
	if address.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.nl.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("%s: add %s to %s: %w", h.Name, address, name, err)
	}
	return nil
}

// AddDefaultRoute sends what has no other route to a gateway.
func (h *Host) AddDefaultRoute(gateway netip.Addr) error {
	if err := h.nl.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("%s: default route to %s: %w", h.Name, gateway, err)
	}
	return nil
}

// attach connects the host's eth0 to a router, by one more interface of it, for its gateway.
func (h *Host) attach(r *Router, routerInterface string, address, gateway netip.Prefix) error {
	// One after the other: each needs what comes before it.
	for _, step := range []func() error{
		func() error { return Connect(r.Host, routerInterface, h, "eth0") },
		func() error { return r.AddAddress(routerInterface, gateway) },
		func() error { return h.AddAddress("eth0", address) },
		func() error { return h.AddDefaultRoute(gateway.Addr()) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Do runs f on a thread in the host's namespace; see [Namespace.Do].
func (h *Host) Do(f func() error) error { return h.ns.Do(f) }

// Dial opens a TCP connection from the host. A zero local address leaves the
// choice to the kernel.
func (h *Host) Dial(ctx context.Context, local, remote netip.AddrPort) (*net.TCPConn, error) {
	dialer := net.Dialer{Control: h.socketOptions(local.IsValid())}
	dialer.SetMultipathTCP(false)
	if local.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(local)
	}
	var conn net.Conn
	err := h.ns.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", remote.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("from the %s: %w", h.Name, err)
	}
	return conn.(*net.TCPConn), nil
}

// Listen opens a TCP listener on the host. Port 0 leaves the choice to the kernel.
func (h *Host) Listen(ctx context.Context, at netip.AddrPort) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: h.socketOptions(false)}
	config.SetMultipathTCP(false)
	var listener net.Listener
	err := h.ns.Do(func() (err error) {
		listener, err = config.Listen(ctx, "tcp", at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("on the %s: %w", h.Name, err)
	}
	return listener.(*net.TCPListener), nil
}

// Nft loads a ruleset, or runs other commands of nftables' language, on the host.
func (h *Host) Nft(ctx context.Context, ruleset string) error {
	_, err := h.Run(ctx, ruleset, "nft", "-f", "-")
	if err != nil {
		return fmt.Errorf("%w\nin this ruleset:\n%s", err, ruleset)
	}
	return nil
}

// Logs is what the host's programs have printed, for the reader of a failed test.
func (h *Host) Logs() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, p := range h.processes {
		if text := strings.TrimSpace(p.Output()); text != "" {
			fmt.Fprintf(&b, "--- %s on the %s:\n%s\n", p.name, h.Name, text)
		}
	}
	return b.String()
}

// Close kills the host's programs and lets go of its namespace.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, p := range h.processes {
		errs = append(errs, p.Kill())
	}
	if h.nl != nil {
		h.nl.Close()
	}
	return errors.Join(append(errs, h.ns.Close())...)
}
