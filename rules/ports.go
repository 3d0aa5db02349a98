package rules

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// PortRange is a range of TCP ports from First to Last, inclusive.
type PortRange struct{ First, Last uint16 }

// String returns the range in the syntax of nft(8): "21" or "2200-2210".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// FormatPorts returns a list of ports and ranges with a separator; with "," it is the inverse of [ParsePorts].
func FormatPorts(ports []PortRange, separator string) string {
	var texts []string
	for _, r := range ports {
		texts = append(texts, r.String())
	}
	return strings.Join(texts, separator)
}

// ParsePorts parses a list of ports and ranges with commas, such as "21,2121,2200-2210"; spaces around them are
// ignored. The result is sorted, with ranges merged where they overlap or touch, and valid for Config. An error is one
// sentence with the faulty part.
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
			return nil, err
		}
		if r.Last, err = parsePort(last); err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	if err := (Config{Ports: ranges}).Validate(); err != nil {
		return nil, err
	}
	return merge(ranges), nil
}

func parsePort(s string) (uint16, error) {
	if s = strings.TrimSpace(s); s == "" {
		return 0, errors.New("a port is missing; it is a number from 1 to 65535")
	}
	n, err := strconv.ParseUint(s, 10, 16)
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

// intersect returns the ports in both.
func intersect(a, b []PortRange) []PortRange { return subtract(a, subtract(a, b)) }

// subtract returns the ports in ranges and not in others.
func subtract(ranges, others []PortRange) []PortRange {
	for _, o := range others {
		var left []PortRange
		for _, r := range ranges {
			if r.Last < o.First || o.Last < r.First {
				left = append(left, r)
				continue
			}
			if r.First < o.First {
				left = append(left, PortRange{r.First, o.First - 1})
			}
			if o.Last < r.Last {
				left = append(left, PortRange{o.Last + 1, r.Last})
			}
		}
		ranges = left
	}
	return ranges
}
