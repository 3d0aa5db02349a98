package rules

import (
	"errors"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// SetPorts changes the control ports of the rules that are in place, in one transaction: no rule is
// touched, no packet dropped, and a port that stays does so all the time. Connections to a port that
// goes are not queued any more.
//
// own are the ports that Apply has put into the set, or that an earlier SetPorts has returned. What
// else is in the set was added by somebody else, and stays. SetPorts returns those of the wanted
// ports that are its own from then on, in order.
//
// Errors are one sentence, and nothing has changed then: ErrMissing, that the ports can't be those of a
// Config, or why the set could not be read or changed, wrapping the kernel's errno.
func SetPorts(own, want []PortRange, opts ...nftables.ConnOption) ([]PortRange, error) {
	if err := (Config{Ports: want}).Validate(); err != nil {
		return nil, err
	}
	conn, err := nftables.New(opts...)
	if err != nil {
		return nil, unread(err)
	}
	if err := checkTable(conn, Config{}); err != nil {
		return nil, err
	}
	set, err := portSet(conn)
	if err != nil {
		return nil, err
	}
	elems, err := conn.GetSetElements(set)
	if err != nil {
		return nil, unread(err)
	}

	present := intervals(elems)
	keep := without(merge(want), without(present, own))
	var remove, add []PortRange
	for _, r := range present {
		others := without([]PortRange{r}, own)
		if !slices.Equal(others, []PortRange{r}) && !slices.Contains(keep, r) {
			remove, add = append(remove, r), append(add, others...)
		}
	}
	for _, r := range keep {
		if !slices.Contains(present, r) {
			add = append(add, r)
		}
	}
	// Deleted first, or what is added would overlap with it.
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

// portSet returns the set of control ports that is in place, or an error if there is none.
func portSet(conn *nftables.Conn) (*nftables.Set, error) {
	set, err := conn.GetSetByName(table, ports.Name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, differs("set %s is missing", ports.Name)
	case err != nil:
		return nil, unread(err)
	case !set.Interval || set.IsMap || set.KeyType.Name != ports.KeyType.Name:
		return nil, differs("set %s is not \"type inet_service; flags interval\"", ports.Name)
	}
	return set, nil
}
