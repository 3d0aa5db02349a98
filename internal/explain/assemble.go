package explain

import (
	"bytes"
	"slices"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/stream"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// assembler makes lines of the segments of one direction, whatever their order.
type assembler struct {
	stream  stream.Stream
	waiting []piece // behind a gap, in the order of the stream
}

// piece is a segment, with the step to which the lines belong that end in it.
type piece struct {
	at   time.Time
	seq  mangle.Seq
	data []byte
	step *Step
}

// line is one line of a direction, without its end.
type line struct {
	seq  mangle.Seq
	text []byte
	step *Step
}

// maxWaiting is how many segments wait behind a gap at most, as in the engine: with one more, what is
// missing is given up.
const maxWaiting = 512

// start begins at a byte that is taken to begin a line, unless it has begun.
func (a *assembler) start(seq mangle.Seq) {
	if !a.stream.Begun() {
		a.stream.Open(seq)
	}
}

// push takes a segment and returns the lines that are whole with it.
func (a *assembler) push(p piece) []line {
	a.start(p.seq)
	if a.stream.Next().Before(p.seq) {
		i, _ := slices.BinarySearchFunc(a.waiting, p.seq, func(w piece, seq mangle.Seq) int {
			if w.seq.Sub(seq) <= 0 {
				return -1
			}
			return 1
		})
		a.waiting = slices.Insert(a.waiting, i, p)
		if len(a.waiting) > maxWaiting {
			return a.skip()
		}
		return nil
	}
	return append(a.read(p), a.drain()...)
}

// drain reads what waits, up to the next gap.
func (a *assembler) drain() []line {
	var lines []line
	for len(a.waiting) > 0 && !a.stream.Next().Before(a.waiting[0].seq) {
		lines = append(lines, a.read(a.waiting[0])...)
		a.waiting = a.waiting[1:]
	}
	return lines
}

// giveUp reads what has waited since before a time, without what is missing in front of it.
func (a *assembler) giveUp(since time.Time) []line {
	var lines []line
	for slices.ContainsFunc(a.waiting, func(p piece) bool { return !p.at.After(since) }) {
		lines = append(lines, a.skip()...)
	}
	return lines
}

// skip reads what waits behind the next gap, without what is missing.
func (a *assembler) skip() []line {
	p := a.waiting[0]
	a.waiting = a.waiting[1:]
	return append(a.read(p), a.drain()...)
}

func (a *assembler) read(p piece) []line {
	var lines []line
	rest := a.stream.Push(p.seq, p.data)
	for {
		l, ok := a.stream.Line(&rest)
		if !ok {
			return lines
		}
		if l.Tail {
			continue
		}
		lines = append(lines, line{seq: l.Seq, text: bytes.Clone(bytes.TrimRight(l.Text, "\r\n")), step: p.step})
	}
}

// linesOf returns those of whole packets, in their order.
func linesOf(packets []*packet) []line {
	var a assembler
	var lines []line
	for _, p := range packets {
		if p.SYN() {
			a.start(p.first())
		} else if len(p.Payload()) > 0 {
			lines = append(lines, a.push(piece{at: p.at, seq: p.Seq(), data: p.Payload()})...)
		}
	}
	return append(lines, a.giveUp(packets[len(packets)-1].at)...)
}

// counterparts finds for each of the lines that came in the one that it left as, nil if there is
// none: the next one that is the same, or begins with the same command or code.
func counterparts(came, left []line) []*line {
	const near = 16
	found := make([]*line, len(came))
	next := 0
	for i, l := range came {
		ahead := left[next:min(next+near, len(left))]
		j := slices.IndexFunc(ahead, func(o line) bool {
			return bytes.Equal(o.text, l.text) || endpointVerb(l.text) != "" && endpointVerb(o.text) == endpointVerb(l.text)
		})
		if j < 0 {
			continue
		}
		found[i] = &ahead[j]
		next += j + 1
	}
	return found
}

// endpointVerb returns the command or code with which a line begins that announces where a data
// connection goes to, and "" for any other line.
func endpointVerb(text []byte) string {
	if r, _ := parse.ParseReply(text); r.Verb.Announces() {
		return r.Verb.String()
	}
	if c, _ := parse.ParseCommand(text); c.Verb.Announces() {
		return c.Verb.String()
	}
	return ""
}
