package daemon

import (
	"log/slog"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// This does not compile if an engine may return longer packets than a queue accepts.
const _ = uint(nfq.MaxPacket - engine.MaxPacket)

// worker is a queue with the engine that serves it.
type worker struct {
	number    uint16
	conntrack *expect.Client
	engine    *engine.Engine
	queue     *nfq.Queue
}

func (d *daemon) newWorker(number uint16) (w *worker, err error) {
	choice, log := d.choice, d.log
	w = &worker{number: number}
	if w.conntrack, err = expect.Dial(); err != nil {
		return w, err
	}
	config := d.settings.Engine
	config.Conntrack = w.conntrack
	config.Observe = func(ev *engine.Event) {
		d.eventLog.emit(ev)
		d.server.emit(number, ev)
	}
	labels := engine.Labels{Recognised: rules.Recognised, InLine: rules.InLine, Proxied: rules.Proxied, Ignore: rules.Ignore,
		ReplyDue: rules.ReplyDue, Active: rules.Active, Rewritten: rules.Rewritten}
	lean := choice.Rules.Ruleset == rules.Lean
	switch {
	case d.settings.Request.Monitor:
		config.Mode = engine.Monitor()
	case lean:
		config.Mode = engine.Lean(labels)
	default:
		config.Mode = engine.Full(labels)
	}
	w.engine = engine.New(config)
	w.queue = nfq.New(number, w.engine, log)
	if lean {
		w.queue.HandleByPriority(rules.RetransmitPriority, w.engine.HandleRetransmit)
	}
	return w, nil
}

func (w *worker) close() error { return w.conntrack.Close() }

// logStopped logs the counters at the end.
func (w *worker) logStopped(log *slog.Logger) {
	s := w.engine.Stats()
	for r, n := range s.Refused {
		if n > 0 {
			log.Info("endpoints refused", "queue", w.number, "count", n, "reason", engine.Reason(r))
		}
	}
	if n := s.WouldOpen; n > 0 {
		log.Info("data connections not opened: monitoring only", "queue", w.number, "count", n, "monitor", true)
	}
	log.Info("stopped", "queue", w.number, "packets", s.Packets, "unknown", s.Unknown, "changed", s.Changed, "expected", s.Expectations,
		"failed", s.Failed, "held", s.Held, "hold_timeouts", s.GaveUp, "overflows", w.queue.Overflows())
}
