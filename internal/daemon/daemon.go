// Package daemon is what "nfq-ftphelper run" does: it has the kernel queue packets, serves each queue
// with an engine until it is stopped, and then removes what it added to the kernel.
//
// Reading from an engine or changing it goes through the Do of its queue: nothing in a packet's way
// is locked.
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

// Settings configure a daemon.
type Settings struct {
	// Request selects the kernel's means. The daemon sets its Installed.
	Request backend.Request
	// ApplyRules applies the rules at start and removes them at stop.
	ApplyRules bool
	// KeepHelper leaves a cthelper registered at stop.
	KeepHelper bool
	// Confine are the folders that the process keeps access to; it gives up all other rights for good
	// (confine.Self). nil leaves the process as it is.
	Confine *confine.Paths
	// LogOpened logs each data connection that is opened, at info level.
	LogOpened bool
	// Control is the path of the control socket, empty for none; see package control.
	Control string
	// Outcomes reports on the control socket what becomes of data connections.
	Outcomes bool
	// Metrics is the TCP address at which Prometheus can read the metrics; invalid for none.
	Metrics netip.AddrPort
	// Version is the daemon's version, as it reports it.
	Version string
	// Engine has the Policy, Advertise, HoldTime and MaxFlows of every engine; the daemon sets the rest.
	Engine engine.Config
}

// daemon is a running daemon.
type daemon struct {
	settings Settings
	choice   backend.Plan
	log      *slog.Logger
	manager  *notify.Manager
	eventLog *eventLog
	workers  []*worker
	server   *statusServer
	watch    ruleWatch
	// ownPorts are the ports that the daemon has added to the set of the rules.
	ownPorts []rules.PortRange
}

// Run runs a daemon in the network namespace of the calling thread until ctx is done, and applies new
// settings when reload requests it. It returns an error if no connection could be helped, or if a queue
// cannot be bound or is lost.
//
// The queues are bound before packets are queued, and empty before the rules are removed: when a table's
// hooks are removed, the kernel drops all packets that wait in any queue (nf_queue_nf_hook_drop). In
// between, packets pass unread.
func Run(ctx context.Context, s Settings, reload Reload, log *slog.Logger) (err error) {
	d := &daemon{settings: s, log: log, eventLog: newEventLog(log)}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.prepare(); err != nil {
		return err
	}
	// One task that fails ends all.
	group, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	running, stopTasks := context.WithCancel(failed)
	defer stopTasks()
	if !d.start(running, group) {
		return group.Wait()
	}
	if err := d.setUp(); err != nil {
		stopTasks()
		return errors.Join(err, group.Wait())
	}
	d.notify(d.manager.Ready(d.status()))
	group.Go(func() error {
		d.manager.Watch(running, d.server.Live, log)
		return nil
	})

	ctx, stop := context.WithCancel(ctx)
	defer context.AfterFunc(failed, stop)()
	d.supervise(ctx, reload)
	d.notify(d.manager.Stopping())
	d.server.state.Store(nil)
	err = d.disable()
	stopTasks()
	err = errors.Join(err, group.Wait(), d.tearDown())
	d.eventLog.flush()
	for _, w := range d.workers {
		w.logStopped(log)
	}
	return err
}

// task is a part of the daemon. Run returns when ctx is done; Ready is closed when the task does its work.
type task interface {
	Run(ctx context.Context) error
	Ready() <-chan struct{}
	String() string
}

// start runs the tasks in a group, and waits until all are ready. It returns false if ctx is done before.
func (d *daemon) start(ctx context.Context, group *errgroup.Group) bool {
	tasks := []task{&d.watch}
	for _, w := range d.workers {
		tasks = append(tasks, w.queue)
	}
	if d.server.outcomes != nil {
		tasks = append(tasks, d.server.outcomes)
	}
	for _, t := range tasks {
		group.Go(func() error { return t.Run(ctx) })
	}
	for _, t := range tasks {
		select {
		case <-t.Ready():
			d.log.Debug("task ready", "task", t.String())
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// prepare opens what needs rights that the process gives up here. It changes nothing in the kernel.
func (d *daemon) prepare() (err error) {
	if d.manager, err = notify.FromEnvironment(); err != nil {
		return err
	}
	d.settings.Request.Installed = !d.settings.ApplyRules
	if d.choice, err = doctor.Ready(d.settings.Request); err != nil {
		return fmt.Errorf("no connection could be helped: %w", err)
	}
	d.ownPorts = d.choice.Rules.Ports
	d.eventLog.opened.Store(d.settings.LogOpened)
	d.logChoice()
	if d.server, err = d.newStatusServer(); err != nil {
		return err
	}
	first, queues := d.choice.Rules.Queue, d.choice.Rules.Queues
	for i := range queues {
		if err := nfq.Free(first + i); err != nil { // once confined, other processes cannot be seen
			return err
		}
	}
	if err := d.confine(); err != nil {
		return err
	}
	// recv(2) blocks in a system call, and the runtime counts its processor as busy until it looks. With
	// one processor more than queues, no other goroutine has to wait for that.
	if busy := int(queues) + 1; runtime.GOMAXPROCS(0) < busy {
		runtime.GOMAXPROCS(busy)
	}
	for i := range queues {
		w, err := d.newWorker(first + i)
		if err != nil {
			return err
		}
		d.workers = append(d.workers, w)
	}
	d.watch = newRuleWatch(d.log)
	return nil
}

// supervise applies new settings and restores removed rules until ctx is done.
func (d *daemon) supervise(ctx context.Context, reload Reload) {
	for {
		select {
		case <-reload.Requests:
			d.notify(d.manager.Reloading())
			d.reload(ctx, reload.Read)
			d.notify(d.manager.Ready(d.status()))
		case <-d.watch.ownChanged():
			d.rulesChanged()
		case <-d.watch.anyChanged():
			d.tablesChanged()
		case <-d.watch.calm.C:
			d.settleRules()
		case <-ctx.Done():
			return
		}
	}
}

// close releases what prepare has opened.
func (d *daemon) close() error {
	var errs []error
	for _, w := range d.workers {
		errs = append(errs, w.close())
	}
	if d.server != nil {
		errs = append(errs, d.server.close())
	}
	if d.manager != nil {
		_ = d.manager.Close()
	}
	return errors.Join(errs...)
}

// do calls f for every worker, on the goroutine that serves its queue. Its error names the first queue
// that is not served.
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

// logChoice logs what was chosen.
func (d *daemon) logChoice() {
	c := d.choice
	if d.settings.Request.Monitor {
		d.log.Warn("monitoring only: nothing is opened or changed (--monitor)", "monitor", true)
		return
	}
	who := "kernel helper"
	if c.Helper == backend.CTHelper {
		who = "user-space helper"
	}
	d.log.Info(fmt.Sprintf("using %s %s; kernel adjusts sequence numbers", who, c.Rules.Helper))
	d.log.Debug("helper chosen", "helper", c.Helper, "why", c.Why)
}

// readyAtOnce is the Ready of a task without preparation.
type readyAtOnce struct{}

func (readyAtOnce) Ready() <-chan struct{} { return closed }

var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
