package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// Config says what lab to build.
type Config struct {
	Situation Situation
	Family    Family
	// Helper is what the routers are given to help FTP along.
	Helper Helper
	// Daemon says how to run this project's daemon; used if Helper is Ours.
	Daemon Daemon
	// Ports are those of FTP control connections that the firewalls let through
	// and DNAT translates; 21 if there are none.
	Ports []uint16
	// Addresses replace the default ones if not nil.
	Addresses *Addresses
	// Connect joins two hosts; the function of that name if nil.
	Connect func(a *Host, aInterface string, b *Host, bInterface string) error
}

// Lab is a client and a server with one router or two between them:
//
//	client -- eth0 router eth1 -- server
//	client -- eth0 router eth1 -- eth0 router eth1 -- server
type Lab struct {
	Client  *Host
	Routers []*Router
	Server  *Host
	// Addresses are the addresses in use.
	Addresses Addresses
	// ServerAddress is where the client reaches the server.
	ServerAddress netip.Addr
}

// New builds a lab: hosts, links, addresses, routes, firewalls, NAT, helpers.
func New(ctx context.Context, c Config) (*Lab, error) {
	l := &Lab{}
	if err := l.build(ctx, c); err != nil {
		return nil, errors.Join(fmt.Errorf("build the lab %s %s: %w", c.Situation, c.Family, err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context, c Config) error {
	if len(c.Ports) == 0 {
		c.Ports = []uint16{21}
	}
	if c.Connect == nil {
		c.Connect = Connect
	}
	l.Addresses = DefaultAddresses(c.Situation, c.Family)
	if c.Addresses != nil {
		l.Addresses = *c.Addresses
	}
	l.ServerAddress = l.Addresses.Server.Addr()
	if c.Situation.translatesServer() {
		l.ServerAddress = l.Addresses.Public
	}
	if err := l.addHosts(c.Situation); err != nil {
		return err
	}
	if err := l.addLinks(c); err != nil {
		return err
	}
	for _, r := range l.Routers {
		if err := r.Forward(); err != nil {
			return err
		}
		if err := r.LoadFirewall(ctx, c.Ports); err != nil {
			return err
		}
	}
	if err := l.loadNAT(ctx, c); err != nil {
		return err
	}
	for _, r := range l.Routers {
		if err := r.StartHelper(ctx, c.Helper, c.Daemon); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) addHosts(s Situation) (err error) {
	if l.Client, err = NewHost("client"); err != nil {
		return err
	}
	if l.Server, err = NewHost("server"); err != nil {
		return err
	}
	names := []string{"router"}
	if s == TwoRouters {
		names = []string{"client's router", "server's router"}
	}
	for _, name := range names {
		r, err := NewRouter(name)
		if err != nil {
			return err
		}
		l.Routers = append(l.Routers, r)
	}
	return nil
}

// ServerRouter is the router next to the server.
func (l *Lab) ServerRouter() *Router { return l.Routers[len(l.Routers)-1] }

// ClientRouter is the router next to the client.
func (l *Lab) ClientRouter() *Router { return l.Routers[0] }

func (l *Lab) addLinks(c Config) error {
	near, far, a := l.ClientRouter(), l.ServerRouter(), l.Addresses
	if near != far {
		if err := errors.Join(
			c.Connect(near.Host, "eth1", far.Host, "eth0"),
			near.AddAddress("eth1", a.ClientOuter),
			far.AddAddress("eth0", a.ServerOuter),
			near.AddDefaultRoute(a.ServerOuter.Addr()),
		); err != nil {
			return err
		}
	}
	if err := errors.Join(
		c.Connect(l.Client, "eth0", near.Host, "eth0"),
		c.Connect(far.Host, "eth1", l.Server, "eth0"),
		l.Client.AddAddress("eth0", a.Client),
		near.AddAddress("eth0", a.ClientGateway),
		far.AddAddress("eth1", a.ServerGateway),
		l.Server.AddAddress("eth0", a.Server),
		l.Client.AddDefaultRoute(a.ClientGateway.Addr()),
	); err != nil {
		return err
	}
	if c.Situation != DNATMasquerade {
		if err := l.Server.AddDefaultRoute(a.ServerGateway.Addr()); err != nil {
			return err
		}
	}
	if c.Situation.translatesServer() {
		return far.AddAddress("eth0", netip.PrefixFrom(a.Public, a.Public.BitLen()))
	}
	return nil
}

func (l *Lab) loadNAT(ctx context.Context, c Config) error {
	dnat := DNATRule(l.Addresses.Public, c.Ports, l.Addresses.Server.Addr())
	switch c.Situation {
	case DNAT:
		return l.ServerRouter().LoadNAT(ctx, c.Family, dnat, "")
	case SNAT:
		return l.ClientRouter().LoadNAT(ctx, c.Family, "", MasqueradeRule("eth1"))
	case DNATMasquerade:
		return l.ServerRouter().LoadNAT(ctx, c.Family, dnat, MasqueradeRule("eth1"))
	case TwoRouters:
		return errors.Join(
			l.ClientRouter().LoadNAT(ctx, c.Family, "", MasqueradeRule("eth1")),
			l.ServerRouter().LoadNAT(ctx, c.Family, dnat, ""))
	}
	return nil
}

// hosts are all those that have been made so far.
func (l *Lab) hosts() []*Host {
	var hosts []*Host
	if l.Client != nil {
		hosts = append(hosts, l.Client)
	}
	for _, r := range l.Routers {
		hosts = append(hosts, r.Host)
	}
	if l.Server != nil {
		hosts = append(hosts, l.Server)
	}
	return hosts
}

// Logs is what the lab's programs have printed.
func (l *Lab) Logs() string {
	var logs string
	for _, h := range l.hosts() {
		logs += h.Logs()
	}
	return logs
}

// Close kills the lab's programs and lets go of its namespaces.
func (l *Lab) Close() error {
	var errs []error
	for _, r := range l.Routers {
		errs = append(errs, r.Close())
	}
	for _, h := range []*Host{l.Client, l.Server} {
		if h != nil {
			errs = append(errs, h.Close())
		}
	}
	return errors.Join(errs...)
}
