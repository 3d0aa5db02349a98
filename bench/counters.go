package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// counters are what is read before and after a measurement.
type counters struct {
	at      time.Time
	daemon  time.Duration // processor time
	idle    time.Duration // of the processors, since boot
	count   int           // of processors
	packets uint32        // ever queued
}

// readCounters reads them. The daemon may be nil; the processor may be allProcessors.
func readCounters(router *netns.Host, daemon *netns.Process, processor int) (c counters, err error) {
	c.at = time.Now()
	if daemon != nil {
		if c.daemon, err = processorTime(daemon.Pid()); err != nil {
			return c, err
		}
		if _, c.packets, err = queued(router); err != nil {
			return c, err
		}
	}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c, err
	}
	c.idle, c.count, err = idleTime(string(text), processor)
	return c, err
}

// busy is the processor time that everything has used between two readings.
func busy(from, to counters) time.Duration {
	all := to.at.Sub(from.at) * time.Duration(to.count)
	return max(all-(to.idle-from.idle), 0)
}

// processorTime is what a process has used. It has the clock of clock_getcpuclockid(3), which
// counts nanoseconds where /proc/PID/stat has hundredths of a second. What the kernel does for
// packets in the process's calls, or in an interrupt of it, is in there.
func processorTime(pid int) (time.Duration, error) {
	const cpuclockSched = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|cpuclockSched), &t); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// idleTime is the time that a processor, or all of them together, was idle, or not there (steal),
// from /proc/stat; and of how many that is. The kernel measures it where it only samples what is
// busy.
func idleTime(stat string, processor int) (idle time.Duration, count int, err error) {
	const userHZ = 100
	for line := range strings.Lines(stat) {
		fields := strings.Fields(line)
		number, isProcessor := strings.CutPrefix(fields[0], "cpu")
		if !isProcessor || number == "" || processor != allProcessors && number != strconv.Itoa(processor) {
			continue
		}
		count++
		for _, i := range []int{4, 5, 8} { // idle, iowait, steal
			if i >= len(fields) {
				return 0, 0, fmt.Errorf("/proc/stat has %q", line)
			}
			ticks, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				return 0, 0, fmt.Errorf("/proc/stat: %w", err)
			}
			idle += time.Duration(ticks) * time.Second / userHZ
		}
	}
	if count == 0 {
		return 0, 0, errors.New("/proc/stat does not name the processor")
	}
	return idle, count, nil
}

// queued returns whether a program has bound the lab's queue, and the number of packets queued so far (modulo 1<<32).
func queued(router *netns.Host) (bound bool, packets uint32, err error) {
	err = router.Do(func() error {
		queues, err := nfq.ReadStatus()
		q, found := queues[queueNumber]
		bound, packets = found, q.Last
		return err
	})
	return bound, packets, err
}
