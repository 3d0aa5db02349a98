package engine

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// Event is something that happened to a control connection.
type Event struct {
	Kind Kind
	// Master is the control connection.
	Master *expect.Master
	// Verb announced the endpoint of an Expected, Refused, Failed or Unreadable.
	Verb parse.Verb
	// Line is the line that did, or that an Odd is about, without its end.
	Line []byte
	// Announced is the endpoint of an Expected, Refused or Failed, with the sender's own address if
	// the line has none.
	Announced netip.AddrPort
	// Advertised is what the other side of an Expected reads; it may be Announced.
	Advertised netip.AddrPort
	// Expected is where conntrack expects the data connection to go, as it comes in.
	Expected netip.AddrPort
	// Reason is that of a Refused.
	Reason Reason
	// Err says why, where something went wrong.
	Err error
	// Monitor is set if the engine only monitors: nothing was opened or changed.
	Monitor bool
	// Again is set if the same has happened to the connection before: of a Refused the same
	// Reason, of an Unknown to any connection. It is not worth a second warning.
	Again bool
}

// Log writes the event to a log, at the level.
func (ev *Event) Log(log *slog.Logger, level slog.Level) {
	ctx := context.Background()
	if !log.Enabled(ctx, level) {
		return
	}
	args := []any{"kind", ev.Kind}
	if ev.Kind == Unknown {
		t := ev.Master.Tuples[expect.Original]
		args = append(args, "client", t.Src, "server", t.Dst)
	} else {
		args = append(args, "client", ev.Master.Client(), "server", ev.Master.Server())
	}
	switch ev.Kind {
	case Unreadable:
		args = append(args, "verb", ev.Verb, "line", string(ev.Line))
	case Odd:
		args = append(args, "line", string(ev.Line))
	case Refused:
		args = append(args, "verb", ev.Verb, "announced", ev.Announced, "line", string(ev.Line), "reason", ev.Reason, "why", ev.Reason.Sentence())
	case Failed:
		args = append(args, "verb", ev.Verb, "announced", ev.Announced, "line", string(ev.Line))
	case Expected, WouldOpen:
		args = append(args, "verb", ev.Verb, "announced", ev.Announced, "advertised", ev.Advertised, "expected_at", ev.Expected)
	}
	if ev.Err != nil {
		args = append(args, "why", ev.Err)
	}
	if ev.Monitor {
		args = append(args, "monitor", true)
	}
	log.Log(ctx, level, ev.Kind.Text(ev.Monitor), args...)
}

// emit passes an event to the observer.
func (e *Engine) emit(ev Event) {
	if e.config.Observe != nil {
		ev.Monitor = e.mode().monitor
		e.config.Observe(&ev)
	}
}

// again reports whether an event of that reason was emitted for the connection before.
func (c *connection) again(r Reason) bool {
	again := c.reported&(1<<r) != 0
	c.reported |= 1 << r
	return again
}
