package doctor

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
)

// manyWaiting is the number of waiting packets from which on the daemon is too slow, or hangs.
const manyWaiting = 256

func checkQueues(x *examination) []Finding {
	text, err := x.readFile(nfq.StatusFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // there is none before the first queue
		return unread("the list of queues", err)
	}
	lines, err := nfq.ParseStatus(string(text))
	if err != nil {
		return unread("the list of queues", err)
	}
	var found []Finding
	for i := range max(x.config.Queues, 1) {
		number := x.config.Queue + i
		line, bound := lines[number]
		if !bound && x.kernelQueues() {
			found = append(found, problem(fmt.Sprintf("no program serves queue %d", number),
				fmt.Sprintf("the kernel queues the packets of helper %s and nothing releases them: no FTP connection can be opened", x.config.Helper),
				x.command("run"))...)
			continue
		}
		if !bound {
			found = append(found, problem(fmt.Sprintf("no program serves queue %d", number),
				"the daemon is not running: control connections are not read, and no data connection is expected", x.command("run"))...)
			continue
		}
		found = append(found, x.ownerFinding(line)...)
		found = append(found, x.fillFinding(line)...)
	}
	return found
}

// kernelQueues reports whether the kernel queues for a registered cthelper.
func (x *examination) kernelQueues() bool {
	if x.noPlan != nil || !x.plan.KernelQueues() {
		return false
	}
	h, there, err := x.cthelper(x.config.Helper)
	return err == nil && there && h.Enabled
}

// program is the name of this program's file.
const program = "nfq-ftphelper"

func (x *examination) ownerFinding(line nfq.Status) []Finding {
	o, err := x.owner(line.Portid)
	switch {
	case errors.Is(err, nfq.ErrNoSocket):
		return problem(fmt.Sprintf("queue %d is bound to netlink socket %d, which was closed", line.Number, line.Portid),
			"packets wait for a program that has ended", x.command("run"))
	case errors.Is(err, nfq.ErrNoOwner):
		return warning(fmt.Sprintf("queue %d is bound, but the program cannot be seen", line.Number),
			"it may be another program than "+program+"; in a container, look from the host", "")
	case err != nil:
		return unread(fmt.Sprintf("the program of queue %d", line.Number), err)
	case o.Name != program:
		return problem(fmt.Sprintf("queue %d is bound by another program: %s, process %d", line.Number, o.Name, o.PID),
			"the daemon cannot bind the queue, and FTP packets go to that program",
			fmt.Sprintf("%s run --rules --queue NUMBER, or stop process %d", program, o.PID))
	case o.Stopped:
		return problem(fmt.Sprintf("queue %d: %s, process %d, is stopped", line.Number, o.Name, o.PID),
			"packets wait for it, and FTP connections hang", fmt.Sprintf("kill -CONT %d", o.PID))
	case o.Lost > 0:
		return warning(fmt.Sprintf("queue %d: %d packets exceeded the socket buffer of %s, process %d", line.Number, o.Lost, o.Name, o.PID),
			"they passed without being read; more queues use more processors", x.moreQueues())
	}
	return ok("queue %d is served by %s, process %d", line.Number, o.Name, o.PID)
}

func (x *examination) fillFinding(line nfq.Status) []Finding {
	var found []Finding
	if dropped := line.Full + line.Lost; dropped > 0 {
		found = append(found, warning(fmt.Sprintf("queue %d has dropped %d packets", line.Number, dropped),
			"the program is too slow, and does not bind the queue with fail-open, as the daemon does", x.command("run"))...)
	}
	if line.Waiting >= manyWaiting {
		found = append(found, warning(fmt.Sprintf("%d packets wait in queue %d", line.Waiting, line.Number),
			"the program does not keep up; more queues use more processors", x.moreQueues())...)
	}
	return found
}

// moreQueues is the command that doubles the number of queues.
func (x *examination) moreQueues() string {
	more := *x
	more.config.Queues = 2 * max(x.config.Queues, 1)
	return more.command("run --rules")
}
