package engine

import (
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// Most control connections say nothing most of the time, and there may be a million of them. So
// the table keeps an entry of fixed size for each, and a flow only while there is more to know of
// it than has room in an entry: an unfinished line, packets that wait, edits that may have to be
// made again. A flow at rest is woken by its next packet, and put to rest again behind it.

// flowTable finds flows by the tuples of their packets, and knows in which order they were used.
type flowTable struct {
	max    int
	count  int
	seed   maphash.Seed
	byHash map[uint64]uint32 // of the tuples; numbers of entries
	chunks []*[chunkLen]entry
	free   uint32 // the first of those that are not in use, by their older; 0 is none
	newest uint32
	oldest uint32

	awake map[uint32]*flow // that can't rest, by the number of their entry
	woken flow             // that of the call which is under way, if it was at rest
	spare []*flow          // to be used again
}

// chunkLen is how many entries are allocated at a time.
const chunkLen = 1024

// entry is a flow at rest, or the place of one that is awake.
type entry struct {
	tuples [2]packedTuple
	adj    [2]expect.SeqAdj
	sides  [2]packedSide
	// passive are the unanswered commands of that kind; of a connection that conntrack does not
	// know, when to ask it again, in ns since 1970.
	passive  uint64
	newer    uint32
	older    uint32
	expected uint32
	refused  uint32
	last     Last
	reported uint16
	commands uint8 // unanswered; 64 at most
	junk     uint8
	flags    uint32
}

type packedSide struct {
	expected, begun, gone parse.Seq
	base                  int32
}

// packedTuple has the addresses in 16 bytes each, as netip.Addr.As16 returns them, and the ports.
type packedTuple [36]byte

// Flags of an entry. Those of a side are for the client's, and one further for the server's.
const (
	flagIP4 = 1 << iota
	flagAwake
	flagUnknown
	flagGreeted
	flagHead
	flagRecognised
	flagAuth
	flagEPSVAll
	flagOpaque
	flagLabelled
	flagMayResize
	flagMarked
	flagAdjustable
	flagStarted
	_
	flagSkips
	_
)

func newFlowTable() flowTable {
	return flowTable{seed: maphash.MakeSeed(), byHash: make(map[uint64]uint32), awake: make(map[uint32]*flow)}
}

func pack(t expect.Tuple) packedTuple {
	var p packedTuple
	src, dst := t.Src.Addr().As16(), t.Dst.Addr().As16()
	copy(p[:], src[:])
	copy(p[16:], dst[:])
	for i, port := range [...]uint16{t.Src.Port(), t.Dst.Port()} {
		p[32+2*i], p[33+2*i] = byte(port>>8), byte(port)
	}
	return p
}

func (p *packedTuple) unpack(ip4 bool) expect.Tuple {
	src, dst := netip.AddrFrom16([16]byte(p[:16])), netip.AddrFrom16([16]byte(p[16:32]))
	if ip4 {
		src, dst = src.Unmap(), dst.Unmap()
	}
	return expect.Tuple{
		Src: netip.AddrPortFrom(src, uint16(p[32])<<8|uint16(p[33])),
		Dst: netip.AddrPortFrom(dst, uint16(p[34])<<8|uint16(p[35])),
	}
}

func (t *flowTable) hash(p packedTuple) uint64 { return maphash.Bytes(t.seed, p[:]) }

func (t *flowTable) at(i uint32) *entry { return &t.chunks[i/chunkLen][i%chunkLen] }

// lookup returns the number of the entry with that tuple, and which of its two it is; 0 for none.
func (t *flowTable) lookup(key expect.Tuple) (uint32, expect.Direction) {
	p := pack(key)
	i := t.byHash[t.hash(p)]
	if i == 0 {
		return 0, 0
	}
	en := t.at(i)
	if en.flags&flagIP4 != 0 != key.Src.Addr().Is4() {
		return 0, 0
	}
	for d := range en.tuples {
		if en.tuples[d] == p {
			return i, expect.Direction(d)
		}
	}
	return 0, 0
}

// find returns the flow to which packets with that tuple belong, and their direction; nil for
// none. The flow has to be put to rest.
func (t *flowTable) find(key expect.Tuple) (*flow, expect.Direction) {
	i, dir := t.lookup(key)
	if i == 0 {
		return nil, 0
	}
	if i != t.newest {
		t.unlink(i)
		t.link(i)
	}
	return t.wake(i), dir
}

// wake returns the flow of an entry.
func (t *flowTable) wake(i uint32) *flow {
	en := t.at(i)
	if en.flags&flagAwake != 0 {
		return t.awake[i]
	}
	t.woken = flow{number: i}
	en.unpack(&t.woken)
	return &t.woken
}

// rest puts a flow to rest that was found or added, if it can.
func (t *flowTable) rest(f *flow) {
	if f.number == 0 {
		return // it has been removed
	}
	en := t.at(f.number)
	switch rests := f.rests(); {
	case rests && f == &t.woken:
		en.pack(f)
	case rests:
		delete(t.awake, f.number)
		en.pack(f)
		*f = flow{}
		if len(t.spare) < maxSpare {
			t.spare = append(t.spare, f)
		}
	case f == &t.woken:
		kept := &flow{}
		if n := len(t.spare); n > 0 {
			kept, t.spare = t.spare[n-1], t.spare[:n-1]
		}
		*kept = *f
		t.awake[f.number] = kept
		en.flags |= flagAwake
	}
}

// maxSpare is how many flows are kept for those that wake up next.
const maxSpare = 1024

// add gives a flow an entry, which is the newest one. There has to be room, and none with its
// tuples. The flow that it returns is that one from now on.
func (t *flowTable) add(f flow) *flow {
	i := t.free
	if i == 0 {
		i = uint32(len(t.chunks)) * chunkLen
		t.chunks = append(t.chunks, new([chunkLen]entry))
		for n := i + chunkLen - 1; n > i; n-- {
			t.release(n)
		}
		if i == 0 { // the number 0 is no entry
			i, t.free = t.free, t.at(t.free).older
		}
	} else {
		t.free = t.at(i).older
	}
	en := t.at(i)
	*en = entry{tuples: [2]packedTuple{pack(f.master.Tuples[0]), pack(f.master.Tuples[1])}}
	if f.master.Tuples[0].Src.Addr().Is4() {
		en.flags |= flagIP4
	}
	for _, p := range en.tuples {
		t.byHash[t.hash(p)] = i
	}
	t.link(i)
	t.count++
	t.woken = f
	t.woken.number = i
	return &t.woken
}

// remove forgets a flow.
func (t *flowTable) remove(f *flow) {
	i := f.number
	en := t.at(i)
	for _, p := range en.tuples {
		if h := t.hash(p); t.byHash[h] == i {
			delete(t.byHash, h)
		}
	}
	delete(t.awake, i)
	t.unlink(i)
	t.release(i)
	t.count--
	f.number = 0
}

func (t *flowTable) release(i uint32) {
	*t.at(i) = entry{older: t.free}
	t.free = i
}

func (t *flowTable) link(i uint32) {
	en := t.at(i)
	en.older, en.newer = t.newest, 0
	if t.newest != 0 {
		t.at(t.newest).newer = i
	} else {
		t.oldest = i
	}
	t.newest = i
}

func (t *flowTable) unlink(i uint32) {
	en := t.at(i)
	if en.newer != 0 {
		t.at(en.newer).older = en.older
	} else {
		t.newest = en.older
	}
	if en.older != 0 {
		t.at(en.older).newer = en.newer
	} else {
		t.oldest = en.newer
	}
}

// rests tells whether an entry has room for all there is to know of the flow.
func (f *flow) rests() bool {
	if f.replies.Open() {
		return false
	}
	for d := range f.sides {
		if s := &f.sides[d]; len(s.held) > 0 || s.edits.Len() > 0 || !s.stream.Idle() || s.started && s.lacks() {
			return false
		}
	}
	return true
}

// pack leaves out the helper and the labels, which matter only when the flow is new.
func (en *entry) pack(f *flow) {
	en.adj = f.master.SeqAdj
	for d := range f.sides {
		s := &f.sides[d]
		en.sides[d] = packedSide{s.stream.Expected(), s.begun, s.gone, s.edits.Base()}
	}
	en.passive, en.commands = f.asked.passive, uint8(f.asked.n)
	if f.unknown {
		en.passive = uint64(f.retry.UnixNano())
	}
	en.reported, en.junk = f.reported, f.junk
	en.expected, en.refused, en.last = f.expected, f.refused, f.last
	flags := en.flags & flagIP4
	for _, b := range f.bits() {
		if *b.value {
			flags |= b.flag
		}
	}
	for d := range f.sides {
		if f.sides[d].stream.Skips() {
			flags |= flagSkips << d
		}
	}
	en.flags = flags
}

func (en *entry) unpack(f *flow) {
	ip4 := en.flags&flagIP4 != 0
	f.master.Tuples = [2]expect.Tuple{en.tuples[0].unpack(ip4), en.tuples[1].unpack(ip4)}
	f.master.SeqAdj = en.adj
	for d, p := range en.sides {
		s := &f.sides[d]
		s.begun, s.gone, s.had = p.begun, p.gone, p.expected
		s.edits.Resume(p.base)
		s.stream.Start(p.expected, en.flags&(flagSkips<<d) == 0)
	}
	for _, b := range f.bits() {
		*b.value = en.flags&b.flag != 0
	}
	if f.unknown {
		f.retry = time.Unix(0, int64(en.passive))
	} else {
		f.asked = commands{en.passive, int(en.commands)}
	}
	f.reported, f.junk = en.reported, en.junk
	f.expected, f.refused, f.last = en.expected, en.refused, en.last
}

type bit struct {
	flag  uint32
	value *bool
}

// bits are what is true or false of a flow.
func (f *flow) bits() [13]bit {
	return [...]bit{
		{flagUnknown, &f.unknown}, {flagGreeted, &f.greeted}, {flagHead, &f.head}, {flagRecognised, &f.recognised}, {flagAuth, &f.auth},
		{flagEPSVAll, &f.epsvAll}, {flagOpaque, &f.opaque}, {flagLabelled, &f.labelled}, {flagMayResize, &f.mayResize},
		{flagMarked, &f.marked}, {flagAdjustable, &f.master.Adjustable},
		{flagStarted, &f.sides[0].started}, {flagStarted << 1, &f.sides[1].started},
	}
}
