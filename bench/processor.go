package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// allProcessors stands for no processor in particular.
const allProcessors = -1

// pin binds this process, and all that it will start, to one processor. With several, it is
// chance what runs beside what, and it changes from second to second whether a packet must wake
// an idle processor: that takes longer than any helper.
func pin(processor int) error {
	var one unix.CPUSet
	one.Set(processor)
	// A thread inherits this from the one that makes it, which may just have been missed.
	for missed := true; missed; {
		missed = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil {
				return err
			}
			var now unix.CPUSet
			if err := unix.SchedGetaffinity(id, &now); err != nil || now == one {
				continue // it has ended, or is bound
			}
			missed = true
			if err := unix.SchedSetaffinity(id, &one); err != nil {
				return fmt.Errorf("run on processor %d only (-processor): %w", processor, err)
			}
		}
	}
	return nil
}
