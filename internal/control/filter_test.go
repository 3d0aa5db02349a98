package control

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

var listed = []Flow{
	{Queue: 100, Client: netip.MustParseAddrPort("203.0.113.101:40000"), Server: netip.MustParseAddrPort("192.168.1.2:21"), State: "read", Sequence: "kernel", Expected: 3},
	{Queue: 101, Client: netip.MustParseAddrPort("203.0.113.7:40000"), Server: netip.MustParseAddrPort("192.168.1.3:21"), State: "encrypted", Sequence: "kernel",
		ServerReachedAt: netip.MustParseAddrPort("192.0.2.2:21"), Refused: 2, Last: &Endpoint{Verb: "PORT", Announced: 20, Reason: "low_port"}},
	{Queue: 100, Client: netip.MustParseAddrPort("[2001:db8::7]:21"), Server: netip.MustParseAddrPort("[2001:db8::1]:21"), State: "read", Sequence: "user", Expected: 5},
}

// select3 returns the places in listed of those that a filter selects.
func select3(t *testing.T, filter string) (places []int) {
	t.Helper()
	f, err := ParseFilter(filter)
	must.Do(t, err)
	for i := range listed {
		if f.Matches(&listed[i]) {
			places = append(places, i)
		}
	}
	return places
}

func TestFilter(t *testing.T) {
	for filter, want := range map[string][]int{
		"": {0, 1, 2}, "  ": {0, 1, 2}, "192.168.1.": {0, 1}, "ENCRYPTED": {1}, "client=203.0.113.101": {0}, "client=203.0.113.0/28": {1},
		"client=203.0.113.9/28": {1}, "server=2001:db8::/32": {2}, "client=192.168": nil, "state=read server=192": {0}, "reason=low_port": {1}, "nat=192.0.2.2": {1},
		"last=port": {1}, "queue=100 state=read": {0, 2}, "sequence=user": {2}, "203.0.113.101 nothing": nil, "client=": {0, 1, 2},
	} {
		if got := select3(t, filter); !slices.Equal(got, want) {
			t.Errorf("%q selects %v, want %v", filter, got, want)
		}
	}
	if _, err := ParseFilter("port=21"); err == nil || !strings.Contains(err.Error(), `unknown field "port": the fields are client, server, nat,`) {
		t.Error(err)
	}
}

func TestOrder(t *testing.T) {
	for order, want := range map[Order][]string{
		ByClient: {"203.0.113.7", "203.0.113.101", "2001:db8::7"}, ByServer: {"203.0.113.101", "203.0.113.7", "2001:db8::7"},
		ByState: {"203.0.113.7", "203.0.113.101", "2001:db8::7"}, ByTransfers: {"2001:db8::7", "203.0.113.101", "203.0.113.7"},
		ByRefused: {"203.0.113.7", "203.0.113.101", "2001:db8::7"},
	} {
		flows := slices.Clone(listed)
		slices.SortFunc(flows, func(a, b Flow) int { return order.Compare(&a, &b) })
		var got []string
		for _, f := range flows {
			got = append(got, f.Client.Addr().String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("by %s: %v, want %v", order, got, want)
		}
	}
	if len(Orders) != 5 {
		t.Errorf("got the orders %v", Orders)
	}
}
