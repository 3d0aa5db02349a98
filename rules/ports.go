package rules

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What ftp-queue.nft is set to as it is shipped.
const (
	// DefaultPorts is FTP's own control port, as ParsePorts takes it.
	DefaultPorts = "21"

	// DefaultQueue is the queue's number.
	DefaultQueue = 2121
)

// maxQueues is more than there is use for: a queue is for a processor.
const maxQueues = 256

// maxRanges keeps the ruleset within one netlink message.
const maxRanges = 256

// PortRange is a range of TCP ports from First to Last, both of them included.
// A single port is a range with First == Last.
type PortRange struct{ First, Last uint16 }

// String writes the range as nft(8) does: "21" or "2200-2210".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Config is what can be chosen about the ruleset.
type Config struct {
	// Ports are the control ports: those that clients dial, before any DNAT. At
	// least 1 range and at most 256, without port 0; they may overlap.
	Ports []PortRange

	// Queue is the number of the netfilter queue, or of the first one.
	Queue uint16

	// Queues is how many queues there are, with consecutive numbers; 0 means 1. Both
	// directions of a connection go to the same one.
	Queues uint16
}

func (c Config) queues() uint16 { return max(c.Queues, 1) }

// Validate returns an error, one sentence, for a Config that Apply would refuse.
func (c Config) Validate() error {
	if len(c.Ports) == 0 {
		return errors.New("no control port is given; FTP's own is 21")
	}
	if last := int(c.Queue) + int(c.queues()) - 1; last > 65535 {
		return fmt.Errorf("%d queues from number %d on are too many; the last number is 65535", c.Queues, c.Queue)
	}
	if c.Queues > maxQueues {
		return fmt.Errorf("%d queues are too many; up to %d are possible", c.Queues, maxQueues)
	}
	for _, r := range c.Ports {
		switch {
		case r.First == 0:
			return fmt.Errorf("control ports %v: ports are numbers from 1 to 65535", r)
		case r.Last < r.First:
			return fmt.Errorf("control ports %v: the range ends before it begins", r)
		}
	}
	if n := len(merge(c.Ports)); n > maxRanges {
		return fmt.Errorf("%d separate ranges of control ports are too many; up to %d are possible", n, maxRanges)
	}
	return nil
}

// ParsePorts reads a list of ports and ranges of ports that are separated by
// commas, such as "21,2121,2200-2210"; spaces around them are ignored. The result
// is sorted, with ranges merged where they overlap or touch, and fit for Config.
// Errors are one sentence that names the part at fault.
func ParsePorts(s string) ([]PortRange, error) {
	var ranges []PortRange
	for item := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(item), "-")
		if !isRange {
			last = first
		}
		var r PortRange
		var err error
		if r.First, err = parsePort(first); err != nil {
			return nil, fmt.Errorf("control ports %q: %w", s, err)
		}
		if r.Last, err = parsePort(last); err != nil {
			return nil, fmt.Errorf("control ports %q: %w", s, err)
		}
		ranges = append(ranges, r)
	}
	if err := (Config{Ports: ranges}).Validate(); err != nil {
		return nil, err
	}
	return merge(ranges), nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port, a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// merge sorts ranges, and joins those that overlap or touch.
func merge(ranges []PortRange) []PortRange {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b PortRange) int {
		return cmp.Compare(a.First, b.First)
	})
	merged := sorted[:0]
	for _, r := range sorted {
		if n := len(merged); n > 0 && int(r.First) <= int(merged[n-1].Last)+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}
