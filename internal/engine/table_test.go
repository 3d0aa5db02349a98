package engine

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/ftp"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
)

func randomTuple(r *rand.Rand) expect.Tuple {
	ip4 := r.IntN(2) == 0
	address := func() netip.AddrPort {
		var b [16]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		a := netip.AddrFrom16(b)
		if ip4 {
			a = netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrPortFrom(a, uint16(r.Uint32()))
	}
	return expect.Tuple{Src: address(), Dst: address()}
}

// TestTable adds connections, uses them and evicts the least recently used.
func TestTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const most = 100
	table := newTable()
	var order []expect.Tuple // of the original direction, the least recently used first
	reverse := map[expect.Tuple]expect.Tuple{}
	for n := range 5000 {
		if len(order) == most {
			oldest := table.at(table.oldest)
			if oldest.master.Tuples[0] != order[0] {
				t.Fatalf("%v is the oldest, not %v", oldest.master.Tuples[0], order[0])
			}
			table.remove(oldest)
			for _, key := range []expect.Tuple{order[0], reverse[order[0]]} {
				if c, _ := table.lookup(key); c != nil {
					t.Fatalf("%v was removed, and is found", key)
				}
			}
			order = order[1:]
		}
		c := connection{expected: uint32(n)}
		c.master.Tuples = [2]expect.Tuple{randomTuple(r), randomTuple(r)}
		reverse[c.master.Tuples[0]] = c.master.Tuples[1]
		if added := table.add(c); added.expected != uint32(n) || added.number == 0 {
			t.Fatalf("added %+v", added)
		}
		order = append(order, c.master.Tuples[0])
		i := r.IntN(len(order))
		used := order[i]
		dir := expect.Direction(r.IntN(2))
		key := [2]expect.Tuple{used, reverse[used]}[dir]
		if got, d := table.use(key); got == nil || got.master.Tuples[dir] != key || d != dir {
			t.Fatalf("%v is %+v, %v", key, got, d)
		}
		order = append(append(order[:i:i], order[i+1:]...), used)
	}
	if len(table.chunks) != 1 || len(table.byHash) != 2*most || table.count != most {
		t.Errorf("%d chunks, %d hashes for %d connections", len(table.chunks), len(table.byHash), table.count)
	}
}

// TestNothingKept says that nothing is kept of a connection that is not read any more.
func TestNothingKept(t *testing.T) {
	e := New(Config{})
	const text = "GET / HTTP/1.1\r\nHost: example.org\r\n\r\nPORT"
	b := append(make([]byte, 40), text...)
	b[0], b[3], b[9], b[32] = 0x45, byte(len(b)), 6, 0x50
	var p mangle.Packet
	if err := p.Decode(b); err != nil {
		t.Fatal(err)
	}
	c := connection{control: ftp.Open()}
	c.streams[0].Open(0)
	e.read(&c, 0, &p)
	if line := c.streams[0].Unfinished(); c.reads() || len(line.Text) > 0 || c.streams[0].Next() != mangle.Seq(len(text)) {
		t.Errorf("reads: %v, %+v", c.reads(), line)
	}
}

// TestSize says that what is added to a connection is added a million times.
func TestSize(t *testing.T) {
	if n := unsafe.Sizeof(connection{}); n > 352 {
		t.Errorf("a connection has %d bytes", n)
	}
}
