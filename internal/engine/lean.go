package engine

import (
	"bytes"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// With the lean rules the engine gets few segments of a connection: those that begin with a
// command or an answer that matters. Each is read by itself, as if a line began there, and nothing
// waits for anything; the kernel remembers whether the client has asked for an answer.

// maxLeanEdits is how many edits of one direction are kept. Nobody says that the receiver has them,
// but a client does not ask again before it has its answer.
const maxLeanEdits = 4

func (e *Engine) lean() bool { return e.config.AskedLabel != 0 }

// readAlone reads the packet, unless it has been read before.
func (e *Engine) readAlone(f *flow, dir expect.Direction) {
	s := &f.sides[dir]
	if !s.started {
		e.start(f, dir)
	}
	if e.again || !s.stream.Expected().Before(end(&e.pkt)) {
		return
	}
	// What is believed of a connection that is not seen whole.
	f.greeted, f.head, f.recognised = true, false, true
	f.replies, f.asked = parse.Replies{}, commands{}
	f.asked.push(bytes.HasPrefix(e.pkt.Payload(), []byte("22"))) // or else it were not queued
	if s.stream.Expected().Before(e.pkt.Seq()) {
		s.stream.Start(e.pkt.Seq(), true)
	}
	e.read(f, dir, &e.pkt)
}
