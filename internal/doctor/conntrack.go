package doctor

import (
	"fmt"
	"strconv"
	"strings"
)

func checkLookup(x *examination) []Finding {
	if err := x.lookup(); err != nil {
		return problem(err.Error(), "the daemon has to look up every control connection",
			"modprobe nf_conntrack_netlink")
	}
	return ok("ctnetlink answers")
}

// The tables of conntrack, in /proc/sys/net/netfilter.
const (
	conntrackCount = "nf_conntrack_count"
	conntrackMax   = "nf_conntrack_max"
	expectMax      = "nf_conntrack_expect_max"
)

func checkConntrackFill(x *examination) []Finding {
	count, err := x.number(conntrackCount)
	if err != nil {
		return unread("the number of connections", err)
	}
	return x.fill(count, "connections", conntrackMax, "the kernel drops new connections when the table is full")
}

func checkExpectationFill(x *examination) []Finding {
	count, err := x.expectations()
	if err != nil {
		return unread("the number of expectations", err)
	}
	return x.fill(count, "expectations", expectMax, "when the table is full, no data connection is expected")
}

// fill is the finding about the fill of a table: a problem if it is full, a warning from 80 % on.
func (x *examination) fill(count int, of, setting, why string) []Finding {
	limit, err := x.number(setting)
	if err != nil {
		return unread("the limit of "+of, err)
	}
	what := fmt.Sprintf("%d of %d %s", count, limit, of)
	fix := fmt.Sprintf("sysctl -w net.netfilter.%s=%d", setting, 2*limit)
	switch {
	case limit == 0: // no limit
	case count >= limit:
		return problem(what, why, fix)
	case count >= limit*8/10:
		return warning(what, why, fix)
	}
	return ok("%s", what)
}

func (x *examination) number(setting string) (int, error) {
	text, err := x.readFile("/proc/sys/net/netfilter/" + setting)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
