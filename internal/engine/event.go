package engine

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// Kind is what an Event is about.
type Kind uint8

// The kinds of events.
const (
	// Tracked: conntrack has the connection, and what it says is read from now on.
	Tracked Kind = iota
	// Unknown: a packet is let go unread, since conntrack does not say what it belongs to (Err).
	// The Master has the packet's own tuple and nothing else.
	Unknown
	// Expected: the data connection of an announced endpoint is expected.
	Expected
	// Refused: an announced endpoint is not opened, for the Reason.
	Refused
	// Failed: an announced endpoint is allowed, but could not be opened or rewritten (Err).
	Failed
	// Unreadable: there is no endpoint in a line that should announce one (Err).
	Unreadable
	// Encrypted: the connection is, from here on; nothing in it is read any more.
	Encrypted
	// NotFTP: what the client said first is something else, or was missed; nothing is read any more.
	NotFTP
	// StaysQueued: packets that need not be read stay queued (Err).
	StaysQueued
)

// kinds have the name, the level and the words with which events are logged.
var kinds = [...]struct {
	name  string
	level slog.Level
	text  string
}{
	Tracked:     {"tracked", slog.LevelDebug, "control connection tracked"},
	Unknown:     {"unknown", slog.LevelWarn, "packet let go unread"},
	Expected:    {"expected", slog.LevelDebug, "data connection expected"},
	Refused:     {"refused", slog.LevelWarn, "endpoint refused"},
	Failed:      {"failed", slog.LevelWarn, "data connection cannot be helped"},
	Unreadable:  {"unreadable", slog.LevelDebug, "no endpoint in line"},
	Encrypted:   {"encrypted", slog.LevelInfo, "control connection is encrypted from here on, its data connections cannot be helped: give the server a fixed range of passive ports and let that in"},
	NotFTP:      {"not-ftp", slog.LevelInfo, "control connection ignored: its client has not begun with FTP"},
	StaysQueued: {"stays-queued", slog.LevelWarn, "packets that need not be read stay queued"},
}

// String returns the kind as one word.
func (k Kind) String() string { return kinds[k].name }

// Verb is what announces an endpoint.
type Verb uint8

// The verbs: a command of the client's, or the code of a reply.
const (
	VerbPORT Verb = iota
	VerbEPRT
	Verb227
	Verb229
	NumVerbs // how many there are
)

// String returns "PORT", "EPRT", "227" or "229".
func (v Verb) String() string { return [...]string{"PORT", "EPRT", "227", "229"}[v] }

// Event is something that happened to a control connection.
type Event struct {
	Kind Kind
	// Master is the control connection.
	Master *expect.Master
	// Verb is what announced the endpoint of an Expected, Refused, Failed or Unreadable.
	Verb Verb
	// Line is the line that did, without its end.
	Line []byte
	// Announced is the endpoint of an Expected, Refused or Failed, with the sender's own address if
	// the line has none.
	Announced netip.AddrPort
	// Told is what the other side of an Expected is told; it may be Announced.
	Told netip.AddrPort
	// Expected is where conntrack expects the data connection to go, as it comes in.
	Expected netip.AddrPort
	// Reason is that of a Refused.
	Reason Reason
	// Err says why, where something went wrong.
	Err error
	// Again is set if the same has happened to the connection before: of a Refused the same
	// Reason, of an Unknown to any connection.
	Again bool
}

// Log writes the event to a log, what happened Again at debug level.
func (ev *Event) Log(log *slog.Logger) {
	ctx, kind := context.Background(), kinds[ev.Kind]
	if ev.Again {
		kind.level = slog.LevelDebug
	}
	if !log.Enabled(ctx, kind.level) {
		return
	}
	args := []any{"client", ev.Master.Client(), "server", ev.Master.Server()}
	switch ev.Kind {
	case Unknown:
		t := ev.Master.Tuples[expect.Original]
		args = []any{"src", t.Src, "dst", t.Dst}
	case Unreadable:
		args = append(args, "verb", ev.Verb, "line", string(ev.Line))
	case Refused:
		args = append(args, "verb", ev.Verb, "announced", ev.Announced, "reason", ev.Reason)
	case Failed:
		args = append(args, "verb", ev.Verb, "announced", ev.Announced)
	case Expected:
		args = append(args, "verb", ev.Verb, "announced", ev.Announced)
		if ev.Told != ev.Announced {
			args = append(args, "rewritten", ev.Told)
		}
		args = append(args, "expected", ev.Expected)
	}
	if ev.Err != nil {
		args = append(args, "reason", ev.Err)
	}
	log.Log(ctx, kind.level, kind.text, args...)
}

// tell has the observer know of an event.
func (e *Engine) tell(ev Event) {
	if e.config.Observe != nil {
		e.config.Observe(&ev)
	}
}

// again reports whether something of that reason has happened to the flow before.
func (f *flow) again(r Reason) bool {
	again := f.reported&(1<<r) != 0
	f.reported |= 1 << r
	return again
}
