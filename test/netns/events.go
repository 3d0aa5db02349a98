package netns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// WatchEvents starts "conntrack -E" with arguments such as "expect", and waits
// until it has subscribed, so that no later event is missed.
func (h *Host) WatchEvents(ctx context.Context, args ...string) (*Process, error) {
	path, err := FindProgram("conntrack")
	if err != nil {
		return nil, err
	}
	process, err := h.Start(exec.Command(path, append([]string{"-E"}, args...)...))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, Scale(10*time.Second))
	defer cancel()
	for {
		subscribed, err := hasSubscription(process.Pid())
		if err == nil && subscribed {
			return process, nil
		}
		select {
		case <-process.done:
			return nil, fmt.Errorf("conntrack -E ended: %v: %s", process.err, process.Output())
		case <-ctx.Done():
			return nil, fmt.Errorf("conntrack -E does not subscribe: %w (%v)", ctx.Err(), err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// hasSubscription says whether a process has a netfilter netlink socket that is
// in a multicast group.
func hasSubscription(pid int) (bool, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", pid))
	if err != nil {
		return false, err
	}
	sockets, err := socketInodes(pid)
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(text)) {
		const netlinkNetfilter, protocol, groups, inode = "12", 1, 3, 9
		fields := strings.Fields(line)
		if len(fields) > inode && fields[protocol] == netlinkNetfilter &&
			strings.Trim(fields[groups], "0") != "" && slices.Contains(sockets, fields[inode]) {
			return true, nil
		}
	}
	return false, nil
}

// socketInodes are the numbers of a process's sockets.
func socketInodes(pid int) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var inodes []string
	for _, file := range files {
		target, err := os.Readlink(filepath.Join(dir, file.Name()))
		if err != nil {
			continue // closed in the meantime
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			inodes = append(inodes, strings.TrimSuffix(inode, "]"))
		}
	}
	return inodes, nil
}

// Columns of /proc/net/netfilter/nfnetlink_queue.
const (
	queueNumber     = 0
	queueTotal      = 2
	queueIDSequence = 7
)

// QueuedPackets is the number of packets that the host's kernel has given to
// user-space queues so far.
func (h *Host) QueuedPackets() (int, error) { return h.sumOverQueues(queueIDSequence) }

// QueuedByQueue is the same by the number of the queue.
func (h *Host) QueuedByQueue() (map[int]int, error) { return h.queues(queueIDSequence) }

// WaitingPackets is the number of packets in the host's user-space queues that
// wait for a verdict.
func (h *Host) WaitingPackets() (int, error) { return h.sumOverQueues(queueTotal) }

func (h *Host) sumOverQueues(column int) (int, error) {
	total := 0
	queues, err := h.queues(column)
	for _, n := range queues {
		total += n
	}
	return total, err
}

// queues is a column by the number of the queue.
func (h *Host) queues(column int) (map[int]int, error) {
	var text []byte
	err := h.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("queues on the %s: %w", h.Name, err)
	}
	queues := make(map[int]int)
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) <= column {
			return nil, fmt.Errorf("queues on the %s: cannot read this line: %q", h.Name, line)
		}
		number, err := strconv.Atoi(fields[queueNumber])
		if err != nil {
			return nil, fmt.Errorf("queues on the %s: %w", h.Name, err)
		}
		if queues[number], err = strconv.Atoi(fields[column]); err != nil {
			return nil, fmt.Errorf("queues on the %s: %w", h.Name, err)
		}
	}
	return queues, nil
}
