package explain

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// gathered is what a capture has: the control connections, and what opens, accepts or refuses
// others.
type gathered struct {
	control []*packet
	other   []*packet

	start   time.Time // of the first packet, of whatever kind
	end     time.Time
	packets int
	short   int  // of these, without whole headers
	broken  bool // the file ends within a packet
	madeUp  int  // bytes in place of those that the capture has cut
}

// maxMadeUp is how many bytes may stand for those that a capture has cut: it claims how many.
const maxMadeUp = 64 << 20

// gather reads a capture. Of the connections that are not on the control ports, it keeps what
// has the flags SYN or RST.
func gather(r io.Reader, ports []rules.PortRange) (*gathered, error) {
	c, err := openCapture(r)
	if err != nil {
		return nil, err
	}
	g := &gathered{}
	var unread error
	for {
		rec, err := c.next()
		if errors.Is(err, io.EOF) {
			break
		} else if errors.Is(err, io.ErrUnexpectedEOF) {
			g.broken = true
			break
		} else if err != nil {
			return nil, err
		}
		if g.packets == 0 || rec.at.Before(g.start) {
			g.start = rec.at
		}
		if rec.at.After(g.end) {
			g.end = rec.at
		}
		g.packets++
		ip, at, err := rec.network()
		if err != nil {
			unread = err
		}
		if ip == nil {
			continue
		}
		if g.add(ip, rec, at, ports); g.madeUp > maxMadeUp {
			return nil, fmt.Errorf("%d MiB of its packets are missing: have tcpdump keep whole ones (-s 0)", g.madeUp>>20)
		}
	}
	switch {
	case len(g.control) > 0:
	case unread != nil:
		return nil, unread
	case g.packets == 0 && g.broken:
		return nil, errors.New("it ends before its first packet does")
	case g.packets == 0:
		return nil, errors.New("it has no packets")
	default:
		return nil, fmt.Errorf("none of its %d packets is of a control connection: name the control ports with --ports", g.packets)
	}
	slices.SortFunc(g.control, inTime)
	slices.SortFunc(g.other, inTime)
	return g, nil
}

func (g *gathered) add(ip []byte, rec record, at place, ports []rules.PortRange) {
	p, ok := decodePacket(ip)
	g.madeUp += p.missing
	if !ok {
		if len(rec.data) < rec.original {
			g.short++
		}
		return
	}
	control := isControl(ports, p.Src().Port()) || isControl(ports, p.Dst().Port())
	if !control && !p.SYN() && !p.RST() {
		return
	}
	p.at, p.number, p.place = rec.at, g.packets, at
	p.keep()
	if control {
		g.control = append(g.control, &p)
	} else {
		g.other = append(g.other, &p)
	}
}

// inTime compares packets by their time, and those of one time by their place in the file.
func inTime(a, b *packet) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.number, b.number)) }

func isControl(ports []rules.PortRange, port uint16) bool {
	return slices.ContainsFunc(ports, func(r rules.PortRange) bool { return r.First <= port && port <= r.Last })
}

// view is a control connection as it looks at one side of the NAT, if there is any: all its
// packets have these addresses.
type view struct {
	tuple   expect.Tuple  // of the client's packets
	packets [2][]*packet  // by direction
	isn     [2]mangle.Seq // of the SYNs
	hasISN  [2]bool
	of      *sides
}

// sides are the views of one connection, from the client's side to the server's.
type sides struct{ views []*view }

// moment is the most that may lie between a packet's coming in and its going out.
const moment = time.Second

// segment is what NAT leaves alone of a packet that begins a connection, or says something.
type segment struct {
	dir     expect.Direction
	syn     bool
	seq     mangle.Seq
	payload string
}

type sighting struct {
	view *view
	at   time.Time
}

// viewer sorts packets into views, and finds out which of these belong together.
type viewer struct {
	ports  []rules.PortRange
	latest map[expect.Tuple]*view
	seen   map[segment]sighting
	all    []*view
}

// connections sorts the packets of control connections, which come in the order of time.
func connections(packets []*packet, ports []rules.PortRange) []*sides {
	w := &viewer{ports: ports, latest: make(map[expect.Tuple]*view), seen: make(map[segment]sighting)}
	for _, p := range packets {
		w.add(p)
	}
	var found []*sides
	for _, v := range w.all {
		if v.of.views[0] == v {
			found = append(found, v.of)
		}
	}
	return found
}

func (w *viewer) add(p *packet) {
	t, dir := w.direction(p)
	_, acks := p.Ack()
	v := w.latest[t]
	opens := p.SYN() && !acks
	if v == nil || opens && (!v.hasISN[expect.Original] || v.isn[expect.Original] != p.Seq()) {
		v = &view{tuple: t}
		v.of = &sides{views: []*view{v}}
		w.latest[t] = v
		w.all = append(w.all, v)
	}
	if p.SYN() && (opens || acks && dir == expect.Reply) && !v.hasISN[dir] {
		v.isn[dir], v.hasISN[dir] = p.Seq(), true
	}
	v.packets[dir] = append(v.packets[dir], p)
	w.pair(p, v, dir)
}

// direction returns the tuple of the client's packets, and which direction p has.
func (w *viewer) direction(p *packet) (expect.Tuple, expect.Direction) {
	t := p.tuple()
	back := reverse(t)
	from, to := isControl(w.ports, t.Src.Port()), isControl(w.ports, t.Dst.Port())
	if _, acks := p.Ack(); from && to && p.SYN() {
		from = acks
	} else if from && to {
		from = w.latest[t] == nil && w.latest[back] != nil
	}
	if from {
		return back, expect.Reply
	}
	return t, expect.Original
}

// pair looks for another view in which the same has been seen a moment ago. NAT keeps what a
// sender's numbers begin with, so that SYNs tell; as do the numbers and bytes of what is said, as
// long as nothing has been rewritten.
func (w *viewer) pair(p *packet, v *view, dir expect.Direction) {
	if !p.SYN() && len(p.Payload()) < 2 {
		return
	}
	key := segment{dir, p.SYN(), p.Seq(), string(p.Payload())}
	s, ok := w.seen[key]
	w.seen[key] = sighting{v, p.at}
	if !ok || s.view.of == v.of || p.at.Sub(s.at) > moment {
		return
	}
	for d := range v.isn {
		if v.hasISN[d] && s.view.hasISN[d] && v.isn[d] != s.view.isn[d] {
			return
		}
	}
	// What the client sends is seen at its own side first.
	near, far := s.view.of, v.of
	if dir == expect.Reply {
		near, far = far, near
	}
	near.views = append(near.views, far.views...)
	for _, v := range far.views {
		v.of = near
	}
}

// client and server are the views of the two sides: the same if only one was captured, or
// there is no NAT.
func (s *sides) client() *view { return s.views[0] }
func (s *sides) server() *view { return s.views[len(s.views)-1] }

// came returns the packets of a direction as they came in, each once.
func (s *sides) came(dir expect.Direction) []*packet {
	v := s.client()
	if dir == expect.Reply {
		v = s.server()
	}
	from, ok := firstPlace(v.packets[dir], func(p place) bool { return p.way == in })
	if !ok {
		from, _ = firstPlace(v.packets[dir], func(place) bool { return true })
	}
	return at(v.packets[dir], from)
}

// left returns the packets of a direction as they went out, behind NAT and with what a helper
// has rewritten; none if the capture does not have them.
func (s *sides) left(dir expect.Direction) []*packet {
	near, far := s.client(), s.server()
	if dir == expect.Reply {
		near, far = far, near
	}
	var from place
	if came := s.came(dir); len(came) > 0 {
		from = came[0].place
	}
	elsewhere := func(p place) bool { return near != far || p != from }
	packets := far.packets[dir]
	to, ok := firstPlace(packets, func(p place) bool { return elsewhere(p) && p.way == out })
	if !ok {
		to, ok = firstPlace(packets, func(p place) bool { return elsewhere(p) && (near != far || p.way == anyWay) })
	}
	if !ok {
		return nil
	}
	return at(packets, to)
}

// forwarded reports whether the capture has packets both as they come in and as they go out.
func (s *sides) forwarded() bool {
	return len(s.left(expect.Original)) > 0 || len(s.left(expect.Reply)) > 0
}

func firstPlace(packets []*packet, is func(place) bool) (place, bool) {
	for _, p := range packets {
		if is(p.place) {
			return p.place, true
		}
	}
	return place{}, false
}

// at returns the packets that were captured there, each once: version 1 of Linux cooked does not
// say at which interface, so that a bridge and its port look like one place.
func at(packets []*packet, where place) []*packet {
	const passing = time.Millisecond
	var found []*packet
	for _, p := range packets {
		if p.place != where {
			continue
		}
		if n := len(found); n > 0 && where.way != anyWay && where.index == 0 &&
			p.at.Sub(found[n-1].at) < passing && p.sameSegment(found[n-1]) {
			continue
		}
		found = append(found, p)
	}
	return found
}
