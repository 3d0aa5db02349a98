// Package daemon is what "nfq-ftphelper run" does: it has the kernel fill queues, serves each of them
// with an engine of its own until it is to stop, and then takes back what it did to the kernel.
//
// What somebody wants to know of an engine, or to change in it, goes through the Do of its queue:
// nothing in a packet's way is locked.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/confine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/doctor"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/notify"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Settings are what a daemon is to do.
type Settings struct {
	// Wish says which of the kernel's means are to be used. Its Installed is the daemon's to set.
	Wish backend.Request
	// ApplyRules has the rules applied at start and removed at stop.
	ApplyRules bool
	// KeepHelper leaves a cthelper registered at stop.
	KeepHelper bool
	// Confine are the folders that the whole process needs from now on: it gives up the rest for
	// good (confine.Self). Without them it stays as it is.
	Confine *confine.Paths
	// LogOpened has a line at info level logged for each data connection that is opened.
	LogOpened bool
	// Control is the path of the control socket, empty for none; see package control.
	Control string
	// Outcomes has what becomes of data connections reported on the control socket.
	Outcomes bool
	// Metrics is where Prometheus can ask over TCP, not valid for nowhere.
	Metrics netip.AddrPort
	// Version is what the daemon says that it is.
	Version string
	// Engine has the Policy, Advertise, HoldTime and MaxFlows of every engine; the rest is the
	// daemon's to fill in.
	Engine engine.Config
}

// daemon is one that runs.
type daemon struct {
	settings Settings
	choice   backend.Plan
	log      *slog.Logger
	eventLog *eventLog
	workers  []*worker
	desk     *desk
	watch    ruleWatch
	// ownPorts are those in the set of the rules that the daemon has put there.
	ownPorts []rules.PortRange
}

// Run runs a daemon in the network namespace of the calling thread until ctx is done. When reload asks
// for it, it puts the settings in force that can change while it runs. It returns an error if no
// connection could be helped, or a queue cannot be had, or is lost.
//
// The queues are bound before the rules fill them, and empty before the rules go: with a table's
// hooks, the kernel drops all that waits in any queue (nf_queue_nf_hook_drop). In between
// packets pass unread.
func Run(ctx context.Context, s Settings, reload Reload, log *slog.Logger) (err error) {
	manager, err := notify.FromEnvironment()
	if err != nil {
		return err
	}
	defer manager.Close()
	s.Wish.Installed = !s.ApplyRules
	choice, err := doctor.Ready(s.Wish)
	if err != nil {
		return fmt.Errorf("no connection could be helped: %w", err)
	}
	d := &daemon{settings: s, choice: choice, log: log, eventLog: newEventLog(log), ownPorts: choice.Rules.Ports}
	d.eventLog.opened.Store(s.LogOpened)
	d.logChoice()
	d.desk, err = d.openDesk()
	defer func() { err = errors.Join(err, d.desk.close()) }()
	if err != nil {
		return err
	}
	for i := range choice.Rules.Queues {
		if err := nfq.Free(choice.Rules.Queue + i); err != nil { // later, other processes cannot be seen
			return err
		}
	}
	if err := d.confine(); err != nil {
		return err
	}

	// recv(2) blocks in a system call, and the runtime counts its processor as busy until it looks. With
	// one more of them than queues, nothing else waits for that, and nobody has to look all the time.
	if busy := int(choice.Rules.Queues) + 1; runtime.GOMAXPROCS(0) < busy {
		runtime.GOMAXPROCS(busy)
	}
	// If one queue is lost, all end.
	served, lost := errgroup.WithContext(context.WithoutCancel(ctx))
	queueCtx, stopQueues := context.WithCancel(lost)
	defer stopQueues()
	for i := range choice.Rules.Queues {
		w, failed := d.newWorker(choice.Rules.Queue + i)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, w.close()) }()
		d.workers = append(d.workers, w)
	}
	for _, w := range d.workers {
		served.Go(func() error { return w.queue.Run(queueCtx) })
	}
	for _, w := range d.workers {
		select {
		case <-w.queue.Ready():
		case <-lost.Done():
			return served.Wait()
		}
	}

	d.watchRules()
	defer func() { err = errors.Join(err, d.closeWatch()) }()
	whose, checked, err := d.fill()
	if err != nil {
		stopQueues()
		return errors.Join(err, served.Wait())
	}
	d.desk.serve(filling{choice.Rules, checked})
	log.Info("ready", "queue", choice.Rules.Queue, "queues", choice.Rules.Queues, "rules", whose)
	d.tell(manager.Ready(d.status()))
	served.Go(func() error {
		manager.Watch(queueCtx, func(ctx context.Context) error { return d.do(ctx, func(*worker) {}) }, log)
		return nil
	})

	for working := true; working; {
		select {
		case <-reload.Asked:
			d.tell(manager.Reloading())
			d.reload(ctx, reload.Read)
			d.tell(manager.Ready(d.status()))
		case <-d.watch.ownChanged():
			d.rulesChanged()
		case <-d.watch.anyChanged():
			d.tablesChanged()
		case <-d.watch.calm.C:
			d.settleRules()
		case <-ctx.Done():
			working = false
		case <-lost.Done():
			working = false
		}
	}
	d.tell(manager.Stopping())
	d.desk.filled.Store(nil)
	err = d.disable()
	stopQueues()
	err = errors.Join(err, served.Wait(), d.unfill())
	d.eventLog.flush()
	for _, w := range d.workers {
		w.logStopped(log)
	}
	return err
}

// do calls f for every worker, on the goroutine that serves its queue. It returns an error that
// names the first queue that is not served.
func (d *daemon) do(ctx context.Context, f func(w *worker)) error {
	begin := time.Now()
	for _, w := range d.workers {
		err := w.queue.Do(ctx, func() { f(w) })
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%s has not been served for %s", w.queue, time.Since(begin).Round(100*time.Millisecond))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.queue, err)
		}
	}
	return nil
}

// logChoice says in one line what was chosen, and why.
func (d *daemon) logChoice() {
	c := d.choice
	if d.settings.Wish.Monitor {
		d.log.Warn("monitoring only: nothing is opened or changed (--monitor)", "monitor", true)
		return
	}
	d.log.Info("back ends chosen", "helper", c.Helper, "helper_name", c.Rules.Helper, "helper_why", c.Why)
}
