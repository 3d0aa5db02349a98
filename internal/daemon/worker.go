package daemon

import (
	"errors"
	"log/slog"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// worker is a queue and what serves it.
type worker struct {
	number    uint16
	conntrack *expect.Client
	early     *rules.Early // nil where the rules have no use for it
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
	config.Conntrack, config.Sequence = w.conntrack, choice.Sequence
	config.Observe = func(ev *engine.Event) {
		d.eventLog.observe(ev)
		d.desk.observe(number, ev)
	}
	config.Monitor = d.settings.Wish.Monitor
	switch choice.Rules.Ruleset {
	case rules.Monitor: // sets no label
	case rules.CTHelper:
		config.PostNAT = true
	case rules.User:
		config.OpaqueLabel, config.KeptLabel, config.ShiftedLabel = rules.OpaqueLabel, rules.UserLabel, rules.ShiftedLabel
		if w.early, err = rules.OpenEarly(choice.Rules, number); err != nil {
			return w, errors.Join(err, w.conntrack.Close())
		}
		config.Early = w.early
	case rules.Lean:
		config.OpaqueLabel, config.AskedLabel, config.EditedLabel = rules.OpaqueLabel, rules.AskedLabel, rules.EditedLabel
	default:
		config.OpaqueLabel = rules.OpaqueLabel
	}
	w.engine = engine.New(config)
	w.queue = nfq.New(number, w.engine, log)
	if choice.Rules.Ruleset == rules.Lean {
		w.queue.Distinguish(rules.AgainPriority, w.engine.HandleAgain)
	}
	return w, nil
}

func (w *worker) close() error {
	err := w.conntrack.Close()
	if w.early != nil {
		err = errors.Join(err, w.early.Close())
	}
	return err
}

// logStopped says what has been done.
func (w *worker) logStopped(log *slog.Logger) {
	s := w.engine.Stats()
	for r, n := range s.Refused {
		if n > 0 {
			log.Info("endpoints were refused", "queue", w.number, "count", n, "reason", engine.Reason(r))
		}
	}
	if n := s.WouldOpen; n > 0 {
		log.Info("data connections would have been opened", "queue", w.number, "count", n, "monitor", true)
	}
	log.Info("stopped", "queue", w.number, "packets", s.Packets, "unknown", s.Unknown, "changed", s.Changed, "expected", s.Expectations,
		"failed", s.Failed, "held", s.Held, "gave_up", s.GaveUp, "overflows", w.queue.Overflows())
}
