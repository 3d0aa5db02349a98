package nfq

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// StatusFile has a line for every bound queue. It exists where the kernel has NFQUEUE, from the first queue
// on. (/proc/net would be that of the main thread.)
const StatusFile = "/proc/thread-self/net/netfilter/nfnetlink_queue"

// Status is the kernel's state of a queue (seq_show of net/netfilter/nfnetlink_queue.c).
type Status struct {
	Number  uint16
	Portid  uint32 // of the netlink socket that is bound to the queue
	Waiting int    // packets without a verdict
	Full    int    // packets dropped because the queue was full; 0 where it fails open
	Lost    int    // packets dropped because they did not fit into the socket; 0 where it fails open
	Last    uint32 // number of the last queued packet, from 1 on, modulo 1<<32
}

// ReadStatus returns the queues bound in the network namespace of the calling thread, by their numbers.
func ReadStatus() (map[uint16]Status, error) {
	text, err := os.ReadFile(StatusFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the list of queues: %w", err)
	}
	return ParseStatus(string(text))
}

// ParseStatus parses the text of StatusFile. It returns an error for a malformed line.
func ParseStatus(text string) (map[uint16]Status, error) {
	queues := make(map[uint16]Status)
	for row := range strings.Lines(text) {
		var s Status
		var mode, length int
		if _, err := fmt.Sscan(row, &s.Number, &s.Portid, &s.Waiting, &mode, &length, &s.Full, &s.Lost, &s.Last); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", StatusFile, strings.TrimSpace(row), err)
		}
		queues[s.Number] = s
	}
	return queues, nil
}
