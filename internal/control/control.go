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
	PathEvents  = "/v1/events"  // lines, each an Event, as they happen
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
	// Follow returns a new follower of the daemon's events, ErrFollowers if there are too many.
	Follow() (*Follower, error)
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
	// State is "read", "monitored" (read, and nothing opened or changed), "encrypted" or "ignored"; see engine.State.
	State string `json:"state"`
	// Sequence is how its sequence numbers stay right after a rewrite: "kernel" (which adjusts them) or
	// "same-length" (lines keep their length).
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
}

// Flows are all control connections.
type Flows struct {
	Flows []Flow `json:"flows"`
	// Unchecked is how many of them may be over: there was no time to ask conntrack.
	Unchecked int `json:"unchecked"`
}

// KindMissed is the kind of an Event that stands for others that are missing.
const KindMissed = "missed"

// Event is something that happened to a control connection. See engine.Event.
type Event struct {
	Time  time.Time `json:"time"`
	Queue uint16    `json:"queue"`
	// Kind is that of an engine.Event, or KindMissed.
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
	// Line is that of an "unreadable". Whoever sent it may have put any bytes into it.
	Line string `json:"line,omitempty"`
	// Reason is why an endpoint is refused, as one word; see engine.Reason.
	Reason string `json:"reason,omitempty"`
	// Why is why something is refused, or went wrong, in words.
	Why string `json:"why,omitempty"`
	// Monitor is set if the daemon only monitors: nothing was opened or changed.
	Monitor bool `json:"monitor,omitempty"`
	// Again is set if the same has happened to the connection before.
	Again bool `json:"again,omitempty"`
	// Missed is how many events are missing in the place of a KindMissed, since what follows the
	// events did not take them in time.
	Missed uint64 `json:"missed,omitempty"`
}

// Version says what a daemon is.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"` // that it was built with
	// Monitor is set if the daemon only monitors: it opens and changes nothing.
	Monitor bool `json:"monitor,omitempty"`
}
