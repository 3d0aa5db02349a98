package engine

import (
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/ftp"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// Flow is what is known of a control connection that has been seen. It may be over: the engine does
// not see ends, and forgets when it needs the room.
type Flow struct {
	// Tuples are those of its conntrack entry.
	Tuples [2]expect.Tuple
	State  State
	// Sequence says what keeps its sequence numbers right.
	Sequence Sequence
	// Expected is how many of its data connections were expected, or would have been, if it is
	// monitored.
	Expected uint32
	// Refused is how many of its endpoints were refused, or could not be opened.
	Refused uint32
	// Last is what was announced last, if anything was (Announced is not 0).
	Last Last
}

// Last is an endpoint, without its address: as a rule it is that of the side which announced it.
type Last struct {
	Verb parse.Verb
	// Announced is the port announced.
	Announced uint16
	// Advertised is the port that the other side reads, 0 if the endpoint was not opened.
	Advertised uint16
	// Reason is why it was not opened.
	Reason Reason
}

// Master returns the control connection of the flow.
func (f *Flow) Master() *expect.Master { return &expect.Master{Tuples: f.Tuples} }

// Tracked returns how many control connections are tracked.
func (e *Engine) Tracked() int { return e.table.count }

// Find returns the control connection that has t for one of its tuples, if it is tracked.
func (e *Engine) Find(t expect.Tuple) (Flow, bool) {
	c, _ := e.table.lookup(t)
	if c == nil {
		return Flow{}, false
	}
	return c.public(e.mode().monitor), !c.unknown
}

// AppendFlows appends tracked connections to flows, and returns them and where the next call has to
// go on, 0 at the end; from is 0 at first. It looks at n places at most, since packets
// wait meanwhile.
func (e *Engine) AppendFlows(flows []Flow, from uint32, n int) ([]Flow, uint32) {
	places := e.table.places()
	for from = max(from, 1); from < places && n > 0; from, n = from+1, n-1 {
		if c := e.table.at(from); c.number != 0 && !c.unknown {
			flows = append(flows, c.public(e.mode().monitor))
		}
	}
	if from >= places {
		from = 0
	}
	return flows, from
}

func (c *connection) public(monitor bool) Flow {
	state := StateIgnored
	switch c.control.State() {
	case ftp.Encrypted:
		state = StateEncrypted
	case ftp.Reading:
		state = StateRead
		if monitor {
			state = StateMonitored
		}
	}
	sequence := SameLength
	if c.mayResize {
		sequence = Kernel
	}
	return Flow{Tuples: c.master.Tuples, State: state, Sequence: sequence, Expected: c.expected, Refused: c.refused, Last: c.last}
}
