// Package control is the control socket, server and client: HTTP over a Unix socket, with the daemon's
// status, metrics, control connections and events.
//
// GET is the only method. An answer other than 200 has a JSON body with one sentence: {"error": "…"}.
package control

import (
	"context"
	"net/netip"
	"time"
)

// DefaultPath is the default path of the control socket.
const DefaultPath = "/run/nfq-ftphelper/control.sock"

// The paths of the control socket. The first three are also served over TCP, if --metrics is set.
const (
	PathMetrics = "/metrics"    // in Prometheus' text format
	PathLive    = "/livez"      // 200 if every queue is served
	PathReady   = "/readyz"     // 200 if FTP is helped, or monitored with --monitor
	PathFlows   = "/v1/flows"   // Flows
	PathStatus  = "/v1/status"  // Status
	PathEvents  = "/v1/events"  // lines, each an Event, as they happen; the query is that of EventsQuery
	PathVersion = "/v1/version" // Version
)

// Daemon is the daemon as the server uses it. All methods may be called at any time, from any goroutine.
type Daemon interface {
	// Live returns an error if a queue is not served.
	Live(ctx context.Context) error
	// Ready returns an error if FTP is not helped, such as before the rules are in place.
	Ready(ctx context.Context) error
	// Flows calls yield for every control connection that is not known to be over, until yield returns an
	// error. unchecked is the number of connections that may be over: there was no time to ask conntrack.
	Flows(ctx context.Context, yield func(Flow) error) (unchecked int, err error)
	// Status returns the daemon's status.
	Status(ctx context.Context) (Status, error)
	// Follow returns a new follower of the events. It starts with the kept events that happened at since or
	// later. It returns ErrFollowers if there are too many.
	Follow(since time.Time) (*Follower, error)
	// Version returns the daemon's version.
	Version() Version
}

// Flow is a control connection. See engine.Flow.
type Flow struct {
	// Queue is the number of the queue of its packets.
	Queue uint16 `json:"queue"`
	// Client and Server are its endpoints, each with the address on its own side of this host.
	Client netip.AddrPort `json:"client"`
	Server netip.AddrPort `json:"server"`
	// ClientSeenAs is the client's address as the server sees it, if it is translated.
	ClientSeenAs netip.AddrPort `json:"client_seen_as,omitzero"`
	// ServerReachedAt is the server's address as the client sees it, if it is translated.
	ServerReachedAt netip.AddrPort `json:"server_reached_at,omitzero"`
	// State is one of States.
	State string `json:"state"`
	// Sequence is one of Sequences: who adjusts its sequence numbers.
	Sequence string `json:"sequence"`
	// Expected is the number of its data connections that were expected.
	Expected uint32 `json:"expected"`
	// Refused is the number of its endpoints that were refused, or could not be opened.
	Refused uint32 `json:"refused"`
	// Last is the endpoint announced last, nil for none.
	Last *Endpoint `json:"last,omitempty"`
}

// Endpoint is an announced endpoint without its address.
type Endpoint struct {
	// Verb is "PORT", "EPRT", "227" or "229".
	Verb string `json:"verb"`
	// Announced is the port announced.
	Announced uint16 `json:"announced"`
	// Advertised is the port that the peer received, 0 if the endpoint was not opened.
	Advertised uint16 `json:"advertised,omitempty"`
	// Reason is one of Refusals: why it was not opened. Why is the same as part of a sentence.
	Reason string `json:"reason,omitempty"`
	Why    string `json:"why,omitempty"`
}

// Live reports whether neither side has closed the connection.
func (f *Flow) Live() bool { return f.State != StateClosing }

// Flows are all control connections.
type Flows struct {
	Flows []Flow `json:"flows"`
	// Closing is the number of connections in StateClosing.
	Closing int `json:"closing"`
	// Unchecked is the number of connections that may be over: there was no time to ask conntrack.
	Unchecked int `json:"unchecked"`
}

// Event is something that happened to a control connection. See engine.Event.
type Event struct {
	Time  time.Time `json:"time"`
	Queue uint16    `json:"queue"`
	// Kind is one of Kinds.
	Kind string `json:"kind"`
	// Client and Server are the connection's endpoints, each with the address on its own side of this host.
	// Of an "unknown", they are the packet's source and destination.
	Client netip.AddrPort `json:"client,omitzero"`
	Server netip.AddrPort `json:"server,omitzero"`
	// Verb announced the endpoint: "PORT", "EPRT", "227" or "229".
	Verb string `json:"verb,omitempty"`
	// Announced is the endpoint, Advertised the endpoint that the peer receives, and Expected the destination
	// of the data connection that conntrack expects.
	Announced  netip.AddrPort `json:"announced,omitzero"`
	Advertised netip.AddrPort `json:"advertised,omitzero"`
	Expected   netip.AddrPort `json:"expected_at,omitzero"`
	// From is the source of the data connection of a KindUsed.
	From netip.AddrPort `json:"from,omitzero"`
	// Line is the line of an "unreadable" or "odd". It may have any bytes.
	Line string `json:"line,omitempty"`
	// Reason is one of Refusals for a refused endpoint, one of Expiries for a KindExpired.
	Reason string `json:"reason,omitempty"`
	// Why is the reason or the error, as part of a sentence.
	Why string `json:"why,omitempty"`
	// Monitor is set if the daemon only monitors: nothing was opened or changed.
	Monitor bool `json:"monitor,omitempty"`
	// Again is set if the same has happened on the connection before.
	Again bool `json:"again,omitempty"`
	// Transfers and Refused are those of a KindClosed; see Flow.
	Transfers uint32 `json:"transfers,omitempty"`
	Refused   uint32 `json:"refused,omitempty"`
	// Missed is the number of events missing in the place of a KindMissed, 0 if unknown.
	Missed uint64 `json:"missed,omitempty"`
}

// Status is the status of a daemon.
type Status struct {
	Version string `json:"version"`
	Go      string `json:"go"` // version of Go that built it
	// Started is when the daemon became ready.
	Started time.Time `json:"started"`
	// Ready is true if FTP is helped; otherwise Why is what is wrong, in a sentence.
	Ready bool   `json:"ready"`
	Why   string `json:"why,omitempty"`
	// Monitor is true if the daemon only monitors: it opens and changes nothing.
	Monitor bool  `json:"monitor,omitempty"`
	Rules   Rules `json:"rules"`
	// Queues are in the order of their numbers.
	Queues []Queue `json:"queues"`
	// Outcomes is true if the kinds "used", "expired" and "closed" are reported; otherwise OutcomesWhy is the
	// reason.
	Outcomes    bool   `json:"outcomes"`
	OutcomesWhy string `json:"outcomes_why,omitempty"`
	// OutcomesLost is the number of times that events of conntrack came faster than they were read.
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
	Connections int    `json:"connections"` // in its table; some may be over
	Transfers   uint64 `json:"transfers"`   // data connections expected
	Refused     uint64 `json:"refused"`
	Failed      uint64 `json:"failed"` // endpoints that could not be opened
	// Overflows is the number of times that its socket was full, and the kernel let packets pass unread.
	Overflows uint64 `json:"overflows"`
	// Waiting and Dropped are the kernel's counts of packets without a verdict, and of packets dropped. They
	// are absent without root.
	Waiting *uint64 `json:"waiting,omitempty"`
	Dropped *uint64 `json:"dropped,omitempty"`
}

// Version is the version of a daemon.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"` // that it was built with
	// Monitor is set if the daemon only monitors: it opens and changes nothing.
	Monitor bool `json:"monitor,omitempty"`
}
