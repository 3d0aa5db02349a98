// Package control is the control socket: the daemon tells there, in HTTP, how it is, what it has
// counted, which control connections it helps and what happens to them. It has the server's side
// and the client's.
//
// GET is the only method. What is not answered with 200 has a body of JSON with one sentence:
// {"error": "…"}.
package control

import (
	"context"
	"net/netip"
	"time"
)

// DefaultPath is where the control socket is unless something else is said.
const DefaultPath = "/run/nfq-ftphelper/control.sock"

// The paths of the control socket. The first three are served over TCP, too, if that is asked for.
const (
	PathMetrics = "/metrics"    // counters, as Prometheus reads them
	PathLive    = "/livez"      // 200 if every queue is served
	PathReady   = "/readyz"     // 200 if FTP is helped, or monitored, if that is all that is to be done
	PathFlows   = "/v1/flows"   // Flows
	PathStatus  = "/v1/status"  // Status
	PathEvents  = "/v1/events"  // lines, each an Event, as they happen; the query is that of EventsQuery
	PathVersion = "/v1/version" // Version
)

// Daemon is what the server asks of the daemon. All of it may be called at any time, from any
// goroutine.
type Daemon interface {
	// Live returns an error if a queue is not served.
	Live(ctx context.Context) error
	// Ready returns an error if FTP is not helped, such as before the rules are in place.
	Ready(ctx context.Context) error
	// Flows calls yield for every control connection that is not known to be over, until that
	// returns an error, and returns how many there were of which it could not be found out.
	Flows(ctx context.Context, yield func(Flow) error) (unchecked int, err error)
	// Status says how it is.
	Status(ctx context.Context) (Status, error)
	// Follow returns a new follower of the daemon's events, which gets first those that happened at
	// since or later, as far as they are kept. It returns ErrFollowers if there are too many.
	Follow(since time.Time) (*Follower, error)
	// Version says what it is.
	Version() Version
}

// Flow is a control connection. See engine.Flow.
type Flow struct {
	// Queue is the number of the queue that its packets go to.
	Queue uint16 `json:"queue"`
	// Client and Server are its ends, each as it is on its own side of this host.
	Client netip.AddrPort `json:"client"`
	Server netip.AddrPort `json:"server"`
	// ClientSeenAs is what the server takes for the client, if that is translated.
	ClientSeenAs netip.AddrPort `json:"client_seen_as,omitzero"`
	// ServerReachedAt is what the client takes for the server, if that is translated.
	ServerReachedAt netip.AddrPort `json:"server_reached_at,omitzero"`
	// State is one of States.
	State string `json:"state"`
	// Sequence is what adjusts its sequence numbers, one of Sequences.
	Sequence string `json:"sequence"`
	// Expected is how many of its data connections were expected.
	Expected uint32 `json:"expected"`
	// Refused is how many of its endpoints were refused, or could not be opened.
	Refused uint32 `json:"refused"`
	// Last is the endpoint that was announced last, nil if none was.
	Last *Endpoint `json:"last,omitempty"`
}

// Endpoint is an announced endpoint without its address.
type Endpoint struct {
	// Verb is "PORT", "EPRT", "227" or "229".
	Verb string `json:"verb"`
	// Announced is the port announced.
	Announced uint16 `json:"announced"`
	// Told is the port that the other side was told, 0 if the endpoint was not opened.
	Told uint16 `json:"advertised,omitempty"`
	// Reason is why it was not opened, one of Refusals, and Why the same as part of a sentence.
	Reason string `json:"reason,omitempty"`
	Why    string `json:"why,omitempty"`
}

// Live reports whether neither end has closed the connection.
func (f *Flow) Live() bool { return f.State != StateClosing }

// Flows are all control connections.
type Flows struct {
	Flows []Flow `json:"flows"`
	// Closing is how many of all connections are closing (StateClosing).
	Closing int `json:"closing"`
	// Unchecked is how many of them may be over: there was no time to ask conntrack.
	Unchecked int `json:"unchecked"`
}

// Event is something that happened to a control connection. See engine.Event.
type Event struct {
	Time  time.Time `json:"time"`
	Queue uint16    `json:"queue"`
	// Kind is one of Kinds.
	Kind string `json:"kind"`
	// Client and Server are the connection's ends, each as it is on its own side of this host. Of an
	// "unknown", they are where the packet comes from and where it goes.
	Client netip.AddrPort `json:"client,omitzero"`
	Server netip.AddrPort `json:"server,omitzero"`
	// Verb is what announced the endpoint: "PORT", "EPRT", "227" or "229".
	Verb string `json:"verb,omitempty"`
	// Announced is the endpoint, Told what the other side is told, and Expected where conntrack
	// expects the data connection to go.
	Announced netip.AddrPort `json:"announced,omitzero"`
	Told      netip.AddrPort `json:"advertised,omitzero"`
	Expected  netip.AddrPort `json:"expected_at,omitzero"`
	// From is where the data connection of a KindUsed comes from.
	From netip.AddrPort `json:"from,omitzero"`
	// Line is that of an "unreadable" or "odd". Its sender may have put any bytes into it.
	Line string `json:"line,omitempty"`
	// Reason is one of Refusals for an endpoint that was refused, one of Expiries for a KindExpired.
	Reason string `json:"reason,omitempty"`
	// Why is the reason, or what went wrong, as part of a sentence.
	Why string `json:"why,omitempty"`
	// Monitor is set if the daemon only monitors: nothing was opened or changed.
	Monitor bool `json:"monitor,omitempty"`
	// Again is set if the same has happened to the connection before.
	Again bool `json:"again,omitempty"`
	// Transfers and Refused are those of a KindClosed; see Flow.
	Transfers uint32 `json:"transfers,omitempty"`
	Refused   uint32 `json:"refused,omitempty"`
	// Missed is how many events are missing in the place of a KindMissed, 0 if that is not known.
	Missed uint64 `json:"missed,omitempty"`
}

// Status says how a daemon is.
type Status struct {
	Version string `json:"version"`
	Go      string `json:"go"` // that it was built with
	// Started is when the daemon began to serve its queues.
	Started time.Time `json:"started"`
	// Ready says that FTP is helped; if not, Why says in a sentence what is wrong.
	Ready bool   `json:"ready"`
	Why   string `json:"why,omitempty"`
	// Monitor says that the daemon only monitors: it opens and changes nothing.
	Monitor bool  `json:"monitor,omitempty"`
	Rules   Rules `json:"rules"`
	// Queues are in the order of their numbers.
	Queues []Queue `json:"queues"`
	// Outcomes says that the kinds "used", "expired" and "closed" are reported: the kernel has events
	// of conntrack. OutcomesWhy is why not.
	Outcomes    bool   `json:"outcomes"`
	OutcomesWhy string `json:"outcomes_why,omitempty"`
	// OutcomesLost is how often events of conntrack came faster than they were read.
	OutcomesLost uint64 `json:"outcomes_lost"`
	// Refusals are the last endpoints that were refused or could not be opened, oldest first.
	Refusals []Event `json:"refusals"`
}

// Rules are the rules that queue packets to a daemon.
type Rules struct {
	// Source is one of RuleSources.
	Source string `json:"source"`
	// Ruleset is "full", "lean", "cthelper" or "monitor".
	Ruleset string `json:"ruleset"`
	// Ports are the control ports in the rules, such as "21,2121-2130"; without rules, those of the
	// settings.
	Ports string `json:"ports"`
	// Helper is the type of the conntrack helper, such as "sane", or "" if the daemon only monitors.
	Helper string `json:"helper"`
}

// Queue is one of a daemon's queues.
type Queue struct {
	Number      uint16 `json:"number"`
	Packets     uint64 `json:"packets"`
	Connections int    `json:"connections"` // in its table; some of them may be over
	Transfers   uint64 `json:"transfers"`   // data connections that were expected
	Refused     uint64 `json:"refused"`
	Failed      uint64 `json:"failed"` // endpoints that could not be opened
	// Overflows is how often its socket was full, and the kernel let packets pass unread.
	Overflows uint64 `json:"overflows"`
	// Waiting and Dropped are the kernel's: packets without a verdict, and packets that it dropped. They
	// are absent where the kernel does not show them to the daemon.
	Waiting *uint64 `json:"waiting,omitempty"`
	Dropped *uint64 `json:"dropped,omitempty"`
}

// Version says what a daemon is.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"` // that it was built with
	// Monitor is set if the daemon only monitors: it opens and changes nothing.
	Monitor bool `json:"monitor,omitempty"`
}
