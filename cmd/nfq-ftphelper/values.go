package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// split splits at commas; it returns nil for "".
func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// enumerate joins words as in "one, two or three".
func enumerate(words []string, conjunction string) string {
	n := len(words) - 1
	if n < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:n], ", ") + " " + conjunction + " " + words[n]
}

// portsFlag is a flag that takes a list of ports.
type portsFlag struct{ ports *[]rules.PortRange }

// String implements pflag.Value.
func (p portsFlag) String() string {
	if p.ports == nil {
		return ""
	}
	return rules.FormatPorts(*p.ports, ",")
}

// GetSlice returns each range.
func (p portsFlag) GetSlice() []string { return split(p.String()) }

// Type implements pflag.Value.
func (p portsFlag) Type() string { return "ports" }

// Set implements pflag.Value.
func (p portsFlag) Set(s string) error {
	ports, err := rules.ParsePorts(s)
	if err == nil {
		*p.ports = ports
	}
	return err
}

// completer is a flag's value with words that the shell completes.
type completer interface{ Completions() []string }

// oneOf is a flag that takes one of some words, or "" for none.
type oneOf[T ~string] struct {
	value *T
	words []T
}

// String implements pflag.Value.
func (f oneOf[T]) String() string {
	if f.value == nil {
		return ""
	}
	return string(*f.value)
}

// Type implements pflag.Value.
func (f oneOf[T]) Type() string { return "string" }

// Completions implements completer.
func (f oneOf[T]) Completions() []string {
	var words []string
	for _, w := range f.words {
		words = append(words, string(w))
	}
	return words
}

// Set implements pflag.Value.
func (f oneOf[T]) Set(s string) error {
	if s != "" && !slices.Contains(f.words, T(s)) {
		return fmt.Errorf("it must be %s", enumerate(f.Completions(), "or"))
	}
	*f.value = T(s)
	return nil
}

// advertiseFlag is a flag that takes an address of either family, or one of each, or none.
type advertiseFlag struct{ a *engine.Advertise }

// String implements pflag.Value.
func (f advertiseFlag) String() string {
	if f.a == nil {
		return ""
	}
	var texts []string
	for _, a := range []netip.Addr{f.a.Addr4, f.a.Addr6} {
		if a.IsValid() {
			texts = append(texts, a.String())
		}
	}
	return strings.Join(texts, ",")
}

// GetSlice returns each address.
func (f advertiseFlag) GetSlice() []string { return split(f.String()) }

// Type implements pflag.Value.
func (f advertiseFlag) Type() string { return "address" }

// Set implements pflag.Value.
func (f advertiseFlag) Set(s string) error {
	var addr4, addr6 netip.Addr
	for _, text := range split(s) {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("%q is not an address", text)
		}
		of := &addr6
		if a = a.Unmap(); a.Is4() {
			of = &addr4
		}
		if of.IsValid() {
			return fmt.Errorf("%s and %s are of the same family", *of, a)
		}
		*of = a
	}
	f.a.Addr4, f.a.Addr6 = addr4, addr6
	return nil
}

// prefixesFlag is a flag that takes addresses and networks, any number of them.
type prefixesFlag struct{ prefixes *[]netip.Prefix }

// String implements pflag.Value.
func (p prefixesFlag) String() string {
	if p.prefixes == nil {
		return ""
	}
	var texts []string
	for _, n := range *p.prefixes {
		texts = append(texts, n.String())
	}
	return strings.Join(texts, ",")
}

// GetSlice returns each address and network.
func (p prefixesFlag) GetSlice() []string { return split(p.String()) }

// Type implements pflag.Value.
func (p prefixesFlag) Type() string { return "addresses" }

// Set implements pflag.Value.
func (p prefixesFlag) Set(s string) error {
	var prefixes []netip.Prefix
	for _, text := range split(s) {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			a, aerr := netip.ParseAddr(text)
			if aerr != nil {
				return fmt.Errorf("%q is neither an address nor a network such as 192.0.2.0/24", text)
			}
			n = netip.PrefixFrom(a, a.BitLen())
		}
		prefixes = append(prefixes, n.Masked())
	}
	*p.prefixes = prefixes
	return nil
}

// addrPortFlag is a flag that takes an address of this host with a port, or "" for none.
type addrPortFlag struct{ at *netip.AddrPort }

// String implements pflag.Value.
func (f addrPortFlag) String() string {
	if f.at == nil || !f.at.IsValid() {
		return ""
	}
	return f.at.String()
}

// Type implements pflag.Value.
func (f addrPortFlag) Type() string { return "address" }

// Set implements pflag.Value.
func (f addrPortFlag) Set(s string) error {
	if s == "" {
		*f.at = netip.AddrPort{}
		return nil
	}
	at, err := netip.ParseAddrPort(s)
	if err == nil {
		*f.at = at
		return nil
	}
	const example = "such as 127.0.0.1:9921"
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return fmt.Errorf("%q has no port: write it %s", s, netip.AddrPortFrom(a, 9921))
	}
	host, port, err := net.SplitHostPort(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not an address with a port, %s", s, example)
	case host == "":
		return fmt.Errorf("%q has no address: write 127.0.0.1:%[2]s for this host only, 0.0.0.0:%[2]s or [::]:%[2]s for all hosts", s, port)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("%q is not an address: it must be an address of this host, %s", host, example)
	}
	return fmt.Errorf("%q is not a port, a number from 1 to 65535", port)
}

// logFormat is a flag that takes text or json.
type logFormat string

// String implements pflag.Value.
func (f *logFormat) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *logFormat) Type() string { return "format" }

// Completions implements completer.
func (f *logFormat) Completions() []string { return []string{"text", "json"} }

// Set implements pflag.Value.
func (f *logFormat) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("it must be text or json")
	}
	*f = logFormat(s)
	return nil
}

// logLevel is a flag that takes one of slog's levels.
type logLevel struct{ slog.Level }

// String implements pflag.Value.
func (l *logLevel) String() string { return strings.ToLower(l.Level.String()) }

// Type implements pflag.Value.
func (l *logLevel) Type() string { return "level" }

// Completions implements completer.
func (l *logLevel) Completions() []string { return []string{"debug", "info", "warn", "error"} }

// Set implements pflag.Value.
func (l *logLevel) Set(s string) error {
	if l.UnmarshalText([]byte(s)) != nil {
		return errors.New("it must be debug, info, warn or error")
	}
	return nil
}

// kindsFlag is a flag that takes kinds of events.
type kindsFlag struct{ kinds *[]string }

// String implements pflag.Value.
func (f kindsFlag) String() string {
	if f.kinds == nil {
		return ""
	}
	return strings.Join(*f.kinds, ",")
}

// Type implements pflag.Value.
func (f kindsFlag) Type() string { return "kinds" }

// Completions returns the kinds.
func (f kindsFlag) Completions() []string {
	var all []string
	for _, w := range control.Kinds {
		all = append(all, w.Name)
	}
	return all
}

// Set implements pflag.Value.
func (f kindsFlag) Set(s string) error {
	kinds := split(s)
	for _, k := range kinds {
		if all := f.Completions(); !slices.Contains(all, k) {
			return fmt.Errorf("%q is not a kind of event: it must be %s", k, enumerate(all, "or"))
		}
	}
	*f.kinds = kinds
	return nil
}

// sinceFlag is a flag that takes a time in the past.
type sinceFlag struct {
	at  *time.Time
	now func() time.Time
}

// String implements pflag.Value.
func (f sinceFlag) String() string {
	if f.at == nil || f.at.IsZero() {
		return ""
	}
	return f.at.Format(time.RFC3339)
}

// Type implements pflag.Value.
func (f sinceFlag) Type() string { return "time" }

// Set implements pflag.Value. A time of day is the latest one in the past.
func (f sinceFlag) Set(s string) error {
	now := f.now()
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		*f.at = now.Add(-d)
		return nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if at, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			*f.at = at
			return nil
		}
	}
	for _, layout := range []string{time.TimeOnly, "15:04"} {
		of, err := time.Parse(layout, s)
		if err != nil {
			continue
		}
		day := now
		for {
			at := time.Date(day.Year(), day.Month(), day.Day(), of.Hour(), of.Minute(), of.Second(), 0, now.Location())
			if !at.After(now) {
				*f.at = at
				return nil
			}
			day = day.AddDate(0, 0, -1)
		}
	}
	return errors.New("it must be a duration such as 10m, a time of day such as 15:04, or a time such as 2006-01-02T15:04:05Z")
}
