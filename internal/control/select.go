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

// term is one condition: a text in a field, or in any if the field is empty.
type term struct {
	field, text string
	network     netip.Prefix // instead of the text, if it is valid
}

// fields are what a Filter can ask for.
var fields = []struct {
	name string
	text func(*Flow) string
	end  func(*Flow) netip.AddrPort // of those that are addresses
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

// FilterFields returns the names of the fields that a Filter can ask for.
func FilterFields() []string {
	var names []string
	for _, f := range fields {
		names = append(names, f.name)
	}
	return names
}

// ParseFilter reads conditions with spaces between them, all of which have to be true: TEXT, which any
// field has in it, or FIELD=TEXT. The text of client and server can be a network. Upper and lower case
// are the same. It returns an error for a field that does not exist.
func ParseFilter(s string) (f Filter, err error) {
	for _, word := range strings.Fields(s) {
		t := term{text: strings.ToLower(word)}
		if name, text, ok := strings.Cut(t.text, "="); ok {
			t.field, t.text = name, text
			if !slices.Contains(FilterFields(), name) {
				return Filter{}, fmt.Errorf("there is no field %q: there are %s", name, strings.Join(FilterFields(), ", "))
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
		case t.network.IsValid() && f.end != nil:
			if t.network.Contains(f.end(flow).Addr()) {
				return true
			}
		case strings.Contains(strings.ToLower(f.text(flow)), t.text):
			return true
		}
	}
	return false
}

// Order is by what connections are sorted.
type Order string

// The orders. Counts are sorted from the largest on.
const (
	ByClient    Order = "client"
	ByServer    Order = "server"
	ByState     Order = "state"
	ByTransfers Order = "transfers"
	ByRefused   Order = "refused"
)

// Orders lists them.
var Orders = []Order{ByClient, ByServer, ByState, ByTransfers, ByRefused}

// Compare compares two connections for sorting. Those that are equal in the order are sorted by their
// ends.
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
