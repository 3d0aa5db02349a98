package explain

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"
)

// record is one packet of a capture, from its link layer on.
type record struct {
	at       time.Time
	link     uint32 // LINKTYPE_… of https://www.tcpdump.org/linktypes.html
	iface    int    // which of the capture's interfaces
	way      way
	data     []byte // valid until the next one is read
	original int    // its length on the wire; data is shorter if the capture cut it
}

// capture reads the packets of a file, one after the other.
type capture interface {
	// next returns io.EOF at the end, and io.ErrUnexpectedEOF where the file ends within a packet.
	next() (record, error)
}

// maxPacket is more than any packet is long, and maxBlock than any block of a file that somebody
// wrote on purpose.
const (
	maxPacket = 1 << 20
	maxBlock  = 1 << 24
)

var errNotCapture = errors.New("it is no capture: neither pcap nor pcapng")

// openCapture reads the head of a file in the format pcap or pcapng.
//
// gopacket's pcapgo would, too, but its link types have 8 bits (version 2 of Linux cooked is 276),
// it trusts the lengths and clocks in a file, and the tables of the package that it needs would
// cost the daemon 8 MiB and 19 ms at its start.
func openCapture(r io.Reader) (capture, error) {
	b := bufio.NewReaderSize(r, 1<<16)
	magic, err := b.Peek(4)
	switch {
	case err == io.EOF && len(magic) == 0:
		return nil, errors.New("it is empty")
	case err == io.EOF:
		return nil, errNotCapture
	case err != nil:
		return nil, err
	}
	if binary.BigEndian.Uint32(magic) == sectionHeader {
		return &pcapng{r: b}, nil
	}
	return openPcap(b)
}

// pcap is the classic format (draft-ietf-opsawg-pcap).
type pcap struct {
	r     *bufio.Reader
	order binary.ByteOrder
	tick  time.Duration
	link  uint32
	count int
	buf   []byte
}

func openPcap(r *bufio.Reader) (*pcap, error) {
	var head [24]byte
	if _, err := io.ReadFull(r, head[:]); err == io.ErrUnexpectedEOF {
		return nil, errNotCapture
	} else if err != nil {
		return nil, err
	}
	p := &pcap{r: r}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(head[:]) {
		case 0xa1b2c3d4:
			p.order, p.tick = order, time.Microsecond
		case 0xa1b23c4d:
			p.order, p.tick = order, time.Nanosecond
		}
	}
	if p.order == nil {
		return nil, errNotCapture
	}
	const linkBits = 0xffff // above them is the length of a frame check sequence
	p.link = p.order.Uint32(head[20:]) & linkBits
	return p, nil
}

func (p *pcap) next() (record, error) {
	var head [16]byte
	if _, err := io.ReadFull(p.r, head[:]); err != nil {
		return record{}, err
	}
	p.count++
	length := p.order.Uint32(head[8:])
	if length > maxPacket {
		return record{}, fmt.Errorf("it is damaged: packet %d would have %d bytes", p.count, length)
	}
	if err := readFull(p.r, &p.buf, int(length)); err != nil {
		return record{}, err
	}
	seconds, ticks := p.order.Uint32(head[:]), p.order.Uint32(head[4:])
	return record{
		at:   time.Unix(int64(seconds), int64(ticks)*int64(p.tick)),
		link: p.link, data: p.buf, original: int(p.order.Uint32(head[12:])),
	}, nil
}

// Types of blocks of pcapng (draft-ietf-opsawg-pcapng section 11.1).
const (
	sectionHeader        = 0x0a0d0d0a
	interfaceDescription = 1
	obsoletePacket       = 2
	simplePacket         = 3
	enhancedPacket       = 6
)

// pcapng is the format of draft-ietf-opsawg-pcapng.
type pcapng struct {
	r      *bufio.Reader
	order  binary.ByteOrder
	ifaces []iface // of the section
	before int     // interfaces in the sections before
	count  int     // of blocks
	buf    []byte
}

// iface is an interface of a section.
type iface struct {
	link   uint32
	snap   uint32
	ticks  resolution
	offset int64 // seconds
}

func (p *pcapng) next() (record, error) {
	for {
		kind, body, err := p.block()
		if err != nil {
			return record{}, err
		}
		switch kind {
		case sectionHeader:
			p.before, p.ifaces = p.before+len(p.ifaces), nil
		case interfaceDescription:
			err = p.addInterface(body)
		case enhancedPacket, obsoletePacket, simplePacket:
			var r record
			if r, err = p.packet(kind, body); err == nil {
				return r, nil
			}
		}
		if err != nil {
			return record{}, err
		}
	}
}

func (p *pcapng) damaged(what string) error {
	return fmt.Errorf("it is damaged: block %d %s", p.count, what)
}

// block reads the next block, and returns what is between its head and its tail.
func (p *pcapng) block() (kind uint32, body []byte, err error) {
	head, err := p.r.Peek(12)
	switch {
	case err == io.EOF && len(head) == 0:
		return 0, nil, io.EOF
	case err == io.EOF:
		return 0, nil, io.ErrUnexpectedEOF
	case err != nil:
		return 0, nil, err
	}
	p.count++
	if binary.BigEndian.Uint32(head) == sectionHeader { // the same in both orders
		const byteOrderMagic uint32 = 0x1a2b3c4d
		switch byteOrderMagic {
		case binary.LittleEndian.Uint32(head[8:]):
			p.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]):
			p.order = binary.BigEndian
		default:
			return 0, nil, p.damaged("has no byte order")
		}
	}
	kind, length := p.order.Uint32(head), p.order.Uint32(head[4:])
	if length < 12 || length > maxBlock {
		return 0, nil, p.damaged(fmt.Sprintf("would have %d bytes", length))
	}
	length = (length + 3) &^ 3
	if err := readFull(p.r, &p.buf, int(length)); err != nil {
		return 0, nil, err
	}
	return kind, p.buf[8 : length-4], nil
}

func (p *pcapng) addInterface(body []byte) error {
	if len(body) < 8 {
		return p.damaged("is too short to describe an interface")
	}
	i := iface{link: uint32(p.order.Uint16(body)), snap: p.order.Uint32(body[4:]), ticks: microseconds}
	for code, value := range p.options(body[8:]) {
		const resolutionCode, offsetCode = 9, 14
		switch {
		case code == resolutionCode && len(value) == 1:
			i.ticks = resolution(value[0])
		case code == offsetCode && len(value) == 8:
			i.offset = int64(p.order.Uint64(value))
		}
	}
	p.ifaces = append(p.ifaces, i)
	return nil
}

// packet reads a block that holds one.
func (p *pcapng) packet(kind uint32, body []byte) (record, error) {
	// What stands in front of the data, and where in it the interface and the lengths are.
	head := map[uint32]int{enhancedPacket: 20, obsoletePacket: 20, simplePacket: 4}[kind]
	if len(body) < head {
		return record{}, p.damaged("is too short for a packet")
	}
	number := 0
	switch kind {
	case enhancedPacket:
		number = int(p.order.Uint32(body))
	case obsoletePacket:
		number = int(p.order.Uint16(body))
	}
	if number >= len(p.ifaces) {
		return record{}, p.damaged(fmt.Sprintf("is of interface %d, which there is not", number))
	}
	i := p.ifaces[number]
	r := record{link: i.link, iface: p.before + number, original: int(p.order.Uint32(body[head-4:]))}
	captured := uint32(r.original)
	if kind == simplePacket {
		r.at = time.Unix(0, 0)
		if i.snap != 0 {
			captured = min(captured, i.snap)
		}
	} else {
		captured = p.order.Uint32(body[12:])
		r.at = i.ticks.time(uint64(p.order.Uint32(body[4:]))<<32|uint64(p.order.Uint32(body[8:])), i.offset)
	}
	data := body[head:]
	if int64(captured) > int64(len(data)) {
		return record{}, p.damaged("is shorter than its packet")
	}
	r.data = data[:captured]
	if kind == enhancedPacket {
		r.way = p.flags(data[min((int(captured)+3)&^3, len(data)):])
	}
	return r, nil
}

// flags reads from the options of a packet which way it went (epb_flags).
func (p *pcapng) flags(options []byte) way {
	for code, value := range p.options(options) {
		const flagsCode, inbound, outbound = 2, 1, 2
		if code != flagsCode || len(value) != 4 {
			continue
		}
		switch p.order.Uint32(value) & 3 {
		case inbound:
			return in
		case outbound:
			return out
		}
	}
	return anyWay
}

// options goes through a list of options.
func (p *pcapng) options(b []byte) func(yield func(code uint16, value []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			code, length := p.order.Uint16(b), int(p.order.Uint16(b[2:]))
			if code == 0 || 4+length > len(b) || !yield(code, b[4:4+length]) {
				return
			}
			b = b[min(4+(length+3)&^3, len(b)):]
		}
	}
}

// resolution is how many ticks a second has: a power of 10, or with its top bit one of 2
// (if_tsresol).
type resolution uint8

const microseconds resolution = 6

// time converts ticks since 1970. A resolution that no clock has makes it 1970.
func (r resolution) time(ticks uint64, offset int64) time.Time {
	const binaryBit, billion = 0x80, 1_000_000_000
	if e := uint(r &^ binaryBit); r&binaryBit != 0 && e < 64 {
		part := ticks & (1<<e - 1)
		high, low := bits.Mul64(part, billion)
		return time.Unix(int64(ticks>>e)+offset, int64(high<<(64-e)|low>>e))
	} else if r&binaryBit == 0 && e < 20 {
		unit := uint64(1)
		for range e {
			unit *= 10
		}
		part := ticks % unit
		for ; e < 9; e++ {
			part *= 10
		}
		for ; e > 9; e-- {
			part /= 10
		}
		return time.Unix(int64(ticks/unit)+offset, int64(part))
	}
	return time.Unix(0, 0)
}

// readFull fills *buf with the next n bytes. The memory grows with what is there, not with what
// the file says.
func readFull(r io.Reader, buf *[]byte, n int) error {
	b := (*buf)[:0]
	for len(b) < n {
		const step = 1 << 16
		start := len(b)
		b = append(b, make([]byte, min(step, n-start))...)
		if _, err := io.ReadFull(r, b[start:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	*buf = b
	return nil
}
