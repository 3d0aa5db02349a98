package rules

import (
	"errors"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// SetPorts changes the control ports of the installed rules in one transaction: no rule changes, no packet is dropped,
// and a port that is in both lists stays in the set. A removed port gets no new control connections; its open ones are
// still read.
//
// Ports are added beside existing elements: Linux 6.12 (not 6.18) sometimes finds no element, for some microseconds,
// where one replaces another. So a port that stays is affected only if the range around it loses others.
//
// own are the ports that Apply has added to the set, or that an earlier SetPorts has returned. Other ports in the set
// were added by hand, and stay. SetPorts returns the wanted ports that are its own afterwards, in order.
//
// Errors are one sentence, and nothing has changed then: ErrMissing, ports that are not valid for a Config, or why the
// set could not be read or changed, wrapping the kernel's errno.
func SetPorts(own, want []PortRange, opts ...nftables.ConnOption) ([]PortRange, error) {
	if err := (Config{Ports: want}).Validate(); err != nil {
		return nil, err
	}
	conn, set, elems, err := dialPortSet(opts)
	if err != nil {
		return nil, err
	}

	present := intervals(elems)
	keep := subtract(merge(want), subtract(present, own))
	var remove, add []PortRange
	for _, r := range present {
		removed := subtract(intersect([]PortRange{r}, own), keep)
		if len(removed) > 0 {
			remove, add = append(remove, r), append(add, subtract([]PortRange{r}, removed)...)
		}
	}
	add = append(add, subtract(keep, present)...)
	if len(remove) > maxElements || len(add) > maxElements {
		return nil, differs("set %s is in too many pieces to be changed at once: remove the ports that you have added, or restart the daemon", ports.Name)
	}
	// Elements must not overlap, so they are deleted first.
	if len(remove) > 0 {
		err = errors.Join(err, conn.SetDeleteElements(set, bounds(remove)))
	}
	if len(add) > 0 {
		err = errors.Join(err, conn.SetAddElements(set, bounds(add)))
	}
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		return nil, explain("changing the control ports", err)
	}
	return keep, nil
}

// Ports returns the control ports in the set, with those added by hand, sorted and merged. Errors are one sentence:
// ErrMissing, or why the set could not be read.
func Ports(opts ...nftables.ConnOption) ([]PortRange, error) {
	_, _, elems, err := dialPortSet(opts)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(elems, catchAll) {
		return []PortRange{{First: 1, Last: 65535}}, nil
	}
	return merge(intervals(elems)), nil
}

// maxElements keeps a list of ranges within one netlink attribute.
const maxElements = 1024

// dialPortSet opens a connection to nftables and returns portSet of it.
func dialPortSet(opts []nftables.ConnOption) (*nftables.Conn, *nftables.Set, []nftables.SetElement, error) {
	conn, err := nftables.New(opts...)
	if err != nil {
		return nil, nil, nil, unread(err)
	}
	if err := checkTable(conn, Config{}); err != nil {
		return nil, nil, nil, err
	}
	set, elems, err := portSet(conn)
	return conn, set, elems, err
}

// portSet returns the installed set of control ports, with its elements.
func portSet(conn *nftables.Conn) (*nftables.Set, []nftables.SetElement, error) {
	set, err := conn.GetSetByName(table, ports.Name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil, differs("set %s is missing", ports.Name)
	case err != nil:
		return nil, nil, unread(err)
	case !set.Interval || set.IsMap || set.KeyType.Name != ports.KeyType.Name:
		return nil, nil, differs("set %s is not \"type inet_service; flags interval\"", ports.Name)
	}
	elems, err := conn.GetSetElements(set)
	if err != nil {
		return nil, nil, unread(err)
	}
	return set, elems, nil
}
