package control

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// NAT describes what this host translates of the connection.
func (f *Flow) NAT() string {
	var parts []string
	if f.ServerReachedAt.IsValid() {
		parts = append(parts, "server reached at "+addrOrPort(f.ServerReachedAt, f.Server))
	}
	if f.ClientSeenAs.IsValid() {
		parts = append(parts, "client seen as "+addrOrPort(f.ClientSeenAs, f.Client))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// addrOrPort returns at, without its port if only the address differs from that of than.
func addrOrPort(at, than netip.AddrPort) string {
	if at.Port() == than.Port() {
		return at.Addr().String()
	}
	return at.String()
}

// String describes the announcement: "227 port 30000", "PORT port 20, not opened: …", or "229 port 30000,
// advertised as 40000".
func (e *Endpoint) String() string {
	switch {
	case e == nil:
		return "none"
	case e.Advertised == 0 && e.Why != "":
		return fmt.Sprintf("%s port %d, not opened: %s", e.Verb, e.Announced, e.Why)
	case e.Advertised == 0:
		return fmt.Sprintf("%s port %d, not opened", e.Verb, e.Announced)
	case e.Advertised != e.Announced:
		return fmt.Sprintf("%s port %d, advertised as %d", e.Verb, e.Announced, e.Advertised)
	}
	return fmt.Sprintf("%s port %d", e.Verb, e.Announced)
}

// Short is String in a few words, with a reason as one word: "227 30000", or "PORT 20: low_port".
func (e *Endpoint) Short() string {
	switch {
	case e == nil:
		return ""
	case e.Advertised == 0:
		return strings.TrimSuffix(fmt.Sprintf("%s %d: %s", e.Verb, e.Announced, e.Reason), ": ")
	case e.Advertised != e.Announced:
		return fmt.Sprintf("%s %d, advertised as %d", e.Verb, e.Announced, e.Advertised)
	}
	return fmt.Sprintf("%s %d", e.Verb, e.Announced)
}

// Endpoints returns client and server, "" for an event without a connection.
func (ev *Event) Endpoints() (client, server string) {
	if !ev.Client.IsValid() {
		return "", ""
	}
	return ev.Client.String(), ev.Server.String()
}

// Short describes the event in a few words, without kind and connection. Addresses that are those of the
// connection are left out, and a reason is one word.
func (ev *Event) Short() string {
	port, advertised := ev.Announced.Port(), ev.Advertised.Port()
	var words string
	switch {
	case ev.Kind == KindUsed:
		words = "from " + ev.From.String()
		if ev.From.Addr() == ev.Client.Addr() {
			words = fmt.Sprintf("from port %d", ev.From.Port())
		}
		if ev.Verb != "" {
			words = fmt.Sprintf("%s %d %s", ev.Verb, port, words)
		}
	case ev.Kind == KindClosed:
		words = fmt.Sprintf("%s, %d refused", plural(uint64(ev.Transfers), "transfer"), ev.Refused)
	case ev.Kind == KindMissed || ev.Verb == "" || ev.Line != "":
		words = ev.Describe()
	case ev.Reason != "":
		words = fmt.Sprintf("%s %d: %s", ev.Verb, port, ev.Reason)
	case ev.Why != "":
		words = fmt.Sprintf("%s %d: %s", ev.Verb, port, ev.Why)
	case port == advertised:
		words = fmt.Sprintf("%s %d", ev.Verb, port)
	default:
		words = fmt.Sprintf("%s %d, advertised as %d", ev.Verb, port, advertised)
	}
	return printable(words)
}

// Describe describes the event, without kind and connection. The text has no control characters.
func (ev *Event) Describe() string {
	words, announced, advertised, same := ev.Why, ev.Announced.String(), ev.Advertised.String(), ev.Announced == ev.Advertised
	if ev.Verb == "229" { // it has no address
		from, to := ev.Announced.Port(), ev.Advertised.Port()
		announced, advertised, same = fmt.Sprintf("port %d", from), strconv.Itoa(int(to)), from == to
	}
	switch {
	case ev.Kind == KindMissed && ev.Why == "":
		words = fmt.Sprintf("%d events are missing here: they came faster than they were read", ev.Missed)
	case ev.Kind == KindClosed:
		words = fmt.Sprintf("%s, %d refused", plural(uint64(ev.Transfers), "data connection"), ev.Refused)
	case ev.Kind == KindUsed && ev.Verb == "":
		words = fmt.Sprintf("data connection from %s to %s", ev.From, ev.Expected)
	case ev.Kind == KindUsed && ev.Verb == "229":
		words = fmt.Sprintf("229 %s: data connection from %s", announced, ev.From)
	case ev.Kind == KindUsed:
		words = fmt.Sprintf("%s %s: data connection from %s", ev.Verb, ev.Announced, ev.From)
	case ev.Line != "":
		words = fmt.Sprintf("%q: %s", ev.Line, ev.Why)
	case ev.Verb == "":
	case ev.Why != "":
		words = fmt.Sprintf("%s %s: %s", ev.Verb, announced, ev.Why)
	case same:
		words = fmt.Sprintf("%s %s", ev.Verb, announced)
	default:
		words = fmt.Sprintf("%s %s, advertised as %s", ev.Verb, announced, advertised)
	}
	return printable(words)
}

// printable replaces characters that a terminal does not print.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// plural returns a number with its noun.
func plural(n uint64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
