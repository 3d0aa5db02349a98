package engine

import (
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
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
	Verb Verb
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
func (e *Engine) Tracked() int { return e.flows.count }

// Find returns the control connection that has t for one of its tuples, if it is tracked.
func (e *Engine) Find(t expect.Tuple) (Flow, bool) {
	i, _ := e.flows.lookup(t)
	if i == 0 {
		return Flow{}, false
	}
	f := e.flows.wake(i)
	return f.public(e.config.Monitor), !f.unknown
}

// AppendFlows appends tracked connections to flows, and returns them and where the next call has to
// go on, 0 at the end; from is 0 at first. It looks at n places for one at most, since packets
// wait meanwhile.
func (e *Engine) AppendFlows(flows []Flow, from uint32, n int) ([]Flow, uint32) {
	t := &e.flows
	places := uint32(len(t.chunks)) * chunkLen
	for from = max(from, 1); from < places && n > 0; from, n = from+1, n-1 {
		en := t.at(from)
		if en.tuples == ([2]packedTuple{}) || en.flags&(flagUnknown|flagAwake) == flagUnknown {
			continue
		}
		f := t.wake(from)
		if f.unknown {
			continue
		}
		flows = append(flows, f.public(e.config.Monitor))
	}
	if from >= places {
		from = 0
	}
	return flows, from
}

func (f *flow) public(monitor bool) Flow {
	state := StateRead
	switch {
	case f.opaque && f.auth:
		state = StateEncrypted
	case f.opaque:
		state = StateIgnored
	case monitor:
		state = StateMonitored
	}
	sequence := SameLength
	if f.mayResize {
		sequence = Kernel
	}
	return Flow{Tuples: f.master.Tuples, State: state, Sequence: sequence, Expected: f.expected, Refused: f.refused, Last: f.last}
}
