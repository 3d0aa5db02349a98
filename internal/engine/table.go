package engine

import (
	"hash/maphash"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// table has the control connections, by the tuples of their packets and in the order in which they were used.
type table struct {
	max    int
	count  int
	seed   maphash.Seed
	byHash map[uint64]uint32 // of the tuples; numbers of connections
	chunks []*[chunkLen]connection
	free   uint32 // the first of those that are not in use, by their older; 0 is none
	newest uint32
	oldest uint32
}

// chunkLen is how many connections are allocated at a time.
const chunkLen = 256

func newTable() table {
	return table{seed: maphash.MakeSeed(), byHash: make(map[uint64]uint32)}
}

func (t *table) hash(tu expect.Tuple) uint64 {
	var b [36]byte
	src, dst := tu.Src.Addr().As16(), tu.Dst.Addr().As16()
	copy(b[:], src[:])
	copy(b[16:], dst[:])
	for i, port := range [...]uint16{tu.Src.Port(), tu.Dst.Port()} {
		b[32+2*i], b[33+2*i] = byte(port>>8), byte(port)
	}
	return maphash.Bytes(t.seed, b[:])
}

// at returns the connection with a number, in use or not.
func (t *table) at(i uint32) *connection { return &t.chunks[i/chunkLen][i%chunkLen] }

// places returns the first number that no connection has.
func (t *table) places() uint32 { return uint32(len(t.chunks)) * chunkLen }

// lookup returns the connection with that tuple, and which of its two it is; nil for none.
func (t *table) lookup(key expect.Tuple) (*connection, expect.Direction) {
	i := t.byHash[t.hash(key)]
	if i == 0 {
		return nil, 0
	}
	c := t.at(i)
	for d := range c.master.Tuples {
		if c.master.Tuples[d] == key {
			return c, expect.Direction(d)
		}
	}
	return nil, 0
}

// use is lookup for a packet: the connection becomes the newest one.
func (t *table) use(key expect.Tuple) (*connection, expect.Direction) {
	c, dir := t.lookup(key)
	if c != nil && c.number != t.newest {
		t.unlink(c)
		t.link(c)
	}
	return c, dir
}

// add makes c the newest connection and returns it. There has to be room, and none with its tuples.
func (t *table) add(c connection) *connection {
	if t.free == 0 {
		first := t.places()
		t.chunks = append(t.chunks, new([chunkLen]connection))
		for n := first + chunkLen - 1; n > first; n-- {
			t.release(n)
		}
		if first > 0 { // the number 0 is none
			t.release(first)
		}
	}
	i := t.free
	place := t.at(i)
	t.free = place.older
	*place = c
	place.number = i
	for _, tu := range c.master.Tuples {
		t.byHash[t.hash(tu)] = i
	}
	t.link(place)
	t.count++
	return place
}

// remove forgets a connection.
func (t *table) remove(c *connection) {
	i := c.number
	for _, tu := range c.master.Tuples {
		if h := t.hash(tu); t.byHash[h] == i {
			delete(t.byHash, h)
		}
	}
	t.unlink(c)
	t.release(i)
	t.count--
}

func (t *table) release(i uint32) {
	*t.at(i) = connection{older: t.free}
	t.free = i
}

func (t *table) link(c *connection) {
	c.older, c.newer = t.newest, 0
	if t.newest != 0 {
		t.at(t.newest).newer = c.number
	} else {
		t.oldest = c.number
	}
	t.newest = c.number
}

func (t *table) unlink(c *connection) {
	if c.newer != 0 {
		t.at(c.newer).older = c.older
	} else {
		t.newest = c.older
	}
	if c.older != 0 {
		t.at(c.older).newer = c.newer
	} else {
		t.oldest = c.newer
	}
}
