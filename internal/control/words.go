package control

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// NAT says in words what this host translates of the connection.
func (f *Flow) NAT() string {
	var parts []string
	if f.ServerReachedAt.IsValid() {
		parts = append(parts, "server reached at "+elsewhere(f.ServerReachedAt, f.Server))
	}
	if f.ClientSeenAs.IsValid() {
		parts = append(parts, "client seen as "+elsewhere(f.ClientSeenAs, f.Client))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// elsewhere leaves out the port if only the address is another one.
func elsewhere(at, than netip.AddrPort) string {
	if at.Port() == than.Port() {
		return at.Addr().String()
	}
	return at.String()
}

// String says in words what was announced: "227 port 30000", "PORT port 20, not opened: …", or "229
// port 30000, advertised as 40000".
func (e *Endpoint) String() string {
	switch {
	case e == nil:
		return "none"
	case e.Told == 0 && e.Why != "":
		return fmt.Sprintf("%s port %d, not opened: %s", e.Verb, e.Announced, e.Why)
	case e.Told == 0:
		return fmt.Sprintf("%s port %d, not opened", e.Verb, e.Announced)
	case e.Told != e.Announced:
		return fmt.Sprintf("%s port %d, advertised as %d", e.Verb, e.Announced, e.Told)
	}
	return fmt.Sprintf("%s port %d", e.Verb, e.Announced)
}

// Short is String in a few words, with a reason as one word: "227 30000", or "PORT 20: low_port".
func (e *Endpoint) Short() string {
	switch {
	case e == nil:
		return ""
	case e.Told == 0:
		return strings.TrimSuffix(fmt.Sprintf("%s %d: %s", e.Verb, e.Announced, e.Reason), ": ")
	case e.Told != e.Announced:
		return fmt.Sprintf("%s %d, advertised as %d", e.Verb, e.Announced, e.Told)
	}
	return fmt.Sprintf("%s %d", e.Verb, e.Announced)
}

// Ends says between whom it happened, if it was between two.
func (ev *Event) Ends() (client, server string) {
	if !ev.Client.IsValid() {
		return "", ""
	}
	return ev.Client.String(), ev.Server.String()
}

// Short says in a few words what happened, but for the kind and the connection: addresses that go without
// saying are left out, and a reason is one word.
func (ev *Event) Short() string {
	port, told := ev.Announced.Port(), ev.Told.Port()
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
		words = ev.Words()
	case ev.Reason != "":
		words = fmt.Sprintf("%s %d: %s", ev.Verb, port, ev.Reason)
	case ev.Why != "":
		words = fmt.Sprintf("%s %d: %s", ev.Verb, port, ev.Why)
	case port == told:
		words = fmt.Sprintf("%s %d", ev.Verb, port)
	default:
		words = fmt.Sprintf("%s %d, advertised as %d", ev.Verb, port, told)
	}
	return printable(words)
}

// Words say what happened, but for the kind and the connection. There is nothing in them that a
// terminal would take for a command.
func (ev *Event) Words() string {
	words, announced, told, same := ev.Why, ev.Announced.String(), ev.Told.String(), ev.Announced == ev.Told
	if ev.Verb == "229" { // it has no address
		from, to := ev.Announced.Port(), ev.Told.Port()
		announced, told, same = fmt.Sprintf("port %d", from), strconv.Itoa(int(to)), from == to
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
		words = fmt.Sprintf("%s %s, advertised as %s", ev.Verb, announced, told)
	}
	return printable(words)
}

// printable replaces what a terminal would not print.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// plural writes a number of things.
func plural(n uint64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
