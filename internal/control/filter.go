package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Filter selects connections. The zero Filter selects all.
type Filter struct{ terms []term }

// term is one condition: a text in a field, or in any field if that is empty.
type term struct {
	field, text string
	network     netip.Prefix // instead of the text, if it is valid
}

// fields are the fields that a Filter can name.
var fields = []struct {
	name string
	text func(*Flow) string
	addr func(*Flow) netip.AddrPort // nil for fields other than addresses
}{
	{"client", func(f *Flow) string { return f.Client.String() }, func(f *Flow) netip.AddrPort { return f.Client }},
	{"server", func(f *Flow) string { return f.Server.String() }, func(f *Flow) netip.AddrPort { return f.Server }},
	{"nat", (*Flow).NAT, nil},
	{"state", func(f *Flow) string { return f.State }, nil},
	{"sequence", func(f *Flow) string { return f.Sequence }, nil},
	{"queue", func(f *Flow) string { return strconv.Itoa(int(f.Queue)) }, nil},
	{"last", func(f *Flow) string { return f.Last.String() }, nil},
	{"reason", func(f *Flow) string {
		if f.Last == nil {
			return ""
		}
		return f.Last.Reason
	}, nil},
}

// FilterFields returns the names of the fields that a Filter can name.
func FilterFields() []string {
	var names []string
	for _, f := range fields {
		names = append(names, f.name)
	}
	return names
}

// ParseFilter parses conditions separated by spaces, all of which have to be true: TEXT, which any field may
// contain, or FIELD=TEXT. The text of client and server can be a network. Case is ignored. It returns an
// error for an unknown field.
func ParseFilter(s string) (f Filter, err error) {
	for _, word := range strings.Fields(s) {
		t := term{text: strings.ToLower(word)}
		if name, text, ok := strings.Cut(t.text, "="); ok {
			t.field, t.text = name, text
			if !slices.Contains(FilterFields(), name) {
				return Filter{}, fmt.Errorf("unknown field %q: the fields are %s", name, strings.Join(FilterFields(), ", "))
			}
			if network, err := netip.ParsePrefix(text); err == nil {
				t.network = network.Masked()
			}
		}
		f.terms = append(f.terms, t)
	}
	return f, nil
}

// Matches reports whether the filter selects a connection.
func (f Filter) Matches(flow *Flow) bool {
	return !slices.ContainsFunc(f.terms, func(t term) bool { return !t.matches(flow) })
}

func (t term) matches(flow *Flow) bool {
	for _, f := range fields {
		switch {
		case t.field != "" && t.field != f.name:
		case t.network.IsValid() && f.addr != nil:
			if t.network.Contains(f.addr(flow).Addr()) {
				return true
			}
		case strings.Contains(strings.ToLower(f.text(flow)), t.text):
			return true
		}
	}
	return false
}

// Order is the sort order of connections.
type Order string

// The orders. Counts are in descending order.
const (
	ByClient    Order = "client"
	ByServer    Order = "server"
	ByState     Order = "state"
	ByTransfers Order = "transfers"
	ByRefused   Order = "refused"
)

// Orders lists them.
var Orders = []Order{ByClient, ByServer, ByState, ByTransfers, ByRefused}

// Compare compares two connections for sorting. Equal ones are sorted by client and server.
func (o Order) Compare(a, b *Flow) int {
	var first int
	switch o {
	case ByServer:
		first = a.Server.Compare(b.Server)
	case ByState:
		first = strings.Compare(a.State, b.State)
	case ByTransfers:
		first = cmp.Compare(b.Expected, a.Expected)
	case ByRefused:
		first = cmp.Compare(b.Refused, a.Refused)
	}
	return cmp.Or(first, a.Client.Compare(b.Client), a.Server.Compare(b.Server))
}
