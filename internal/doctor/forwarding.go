package doctor

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// checkForwarding finds a host with addresses on two interfaces that does not forward.
func checkForwarding(x *examination) []Finding {
	interfaces, err := x.addresses()
	if err != nil {
		return unread("the interfaces", err)
	}
	var found []Finding
	var on []string
	for _, f := range []struct {
		family, file, setting string
		has                   func(netip.Addr) bool
	}{
		{"IPv4", "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward", netip.Addr.Is4},
		{"IPv6", "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding",
			func(a netip.Addr) bool { return a.Is6() && !a.IsLinkLocalUnicast() }},
	} {
		var names []string
		for _, name := range slices.Sorted(maps.Keys(interfaces)) {
			if slices.ContainsFunc(interfaces[name], f.has) {
				names = append(names, name)
			}
		}
		if len(names) < 2 {
			continue // no router in this family
		}
		value, err := x.readFile(f.file)
		switch {
		case err != nil:
			found = append(found, unread("the setting "+f.setting, err)...)
		case strings.TrimSpace(string(value)) == "0":
			found = append(found, warning(fmt.Sprintf("%s is not forwarded between %s", f.family, strings.Join(names, ", ")),
				"FTP through this host fails; FTP to and from this host works", "sysctl -w "+f.setting+"=1")...)
		default:
			on = append(on, f.family)
		}
	}
	switch {
	case len(on) > 0:
		found = append(found, ok("%s", strings.Join(on, " and "))...)
	case len(found) == 0:
		found = ok("not needed: no two interfaces have addresses")
	}
	return found
}
