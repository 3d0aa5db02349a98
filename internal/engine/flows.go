package engine

import (
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// State is what becomes of the text of a control connection.
type State uint8

// The states.
const (
	StateRead      State = iota // it is read
	StateEncrypted              // it is encrypted, and passes unread
	StateIgnored                // it is not FTP, and passes unread
)

// String returns the state as one word.
func (s State) String() string { return [...]string{"read", "encrypted", "ignored"}[s] }

// Flow is what is known of a control connection that has been seen. It may be over: the engine does
// not see ends, and forgets when it needs the room.
type Flow struct {
	// Tuples are those of its conntrack entry.
	Tuples [2]expect.Tuple
	State  State
	// SameLength is set where the kernel adjusts no sequence numbers, so that lines keep their length.
	SameLength bool
	// Expected is how many of its data connections were expected.
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
	// Told is the port that the other side was told, 0 if the endpoint was not opened.
	Told uint16
}

// Master returns the control connection of the flow.
func (f *Flow) Master() *expect.Master { return &expect.Master{Tuples: f.Tuples} }

// Tracked returns how many control connections are tracked.
func (e *Engine) Tracked() int { return e.flows.count }

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
		flows = append(flows, f.public())
	}
	if from >= places {
		from = 0
	}
	return flows, from
}

func (f *flow) public() Flow {
	state := StateRead
	switch {
	case f.opaque && f.auth:
		state = StateEncrypted
	case f.opaque:
		state = StateIgnored
	}
	return Flow{Tuples: f.master.Tuples, State: state, SameLength: !f.mayResize, Expected: f.expected, Refused: f.refused, Last: f.last}
}
