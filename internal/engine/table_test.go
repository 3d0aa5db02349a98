package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"
	"unsafe"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// randomFlow is one that can rest.
func randomFlow(r *rand.Rand) flow {
	address := func(ip4 bool) netip.AddrPort {
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
	var f flow
	ip4 := r.IntN(2) == 0
	for d := range f.sides {
		f.master.Tuples[d] = expect.Tuple{Src: address(ip4), Dst: address(ip4)}
		f.master.SeqAdj[d] = expect.SeqAdj{Position: r.Uint32(), Before: r.Int32(), After: -r.Int32()}
		s := &f.sides[d]
		s.begun, s.gone = parse.Seq(r.Uint32()), parse.Seq(r.Uint32())
		s.edits.Resume(r.Int32() - r.Int32())
		s.had = parse.Seq(r.Uint32())
		s.stream.Start(s.had, r.IntN(2) == 0)
	}
	for _, b := range f.bits() {
		*b.value = r.IntN(2) == 0
	}
	if f.unknown {
		f.retry = time.Unix(0, r.Int64())
	} else {
		f.asked = commands{r.Uint64(), r.IntN(65)}
	}
	f.reported = uint16(r.Uint32())
	return f
}

// TestRest puts flows to rest and wakes them: nothing may have changed.
func TestRest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const most = 100
	table := newFlowTable()
	resting := map[expect.Tuple]flow{}
	for range 1000 {
		f := randomFlow(r)
		if table.count == most {
			oldest := table.wake(table.oldest)
			delete(resting, oldest.master.Tuples[0])
			table.remove(oldest)
		}
		added := table.add(f)
		f.number = added.number
		resting[f.master.Tuples[0]] = f
		table.rest(added)
		if len(table.awake) != 0 {
			t.Fatalf("%+v does not rest", f)
		}
		for _, want := range resting {
			for d, key := range want.master.Tuples {
				got, dir := table.find(key)
				if got == nil || !reflect.DeepEqual(*got, want) || int(dir) != d {
					t.Fatalf("got %+v, %v, want %+v", got, dir, want)
				}
				table.rest(got)
			}
			break
		}
	}
	if len(table.chunks) != 1 || len(table.byHash) != 200 {
		t.Errorf("%d chunks, %d hashes for 100 flows", len(table.chunks), len(table.byHash))
	}
}

// TestAwake keeps flows awake of which there is more to know, and finds them as they are.
func TestAwake(t *testing.T) {
	for name, disturb := range map[string]func(f *flow){
		"unfinished line": func(f *flow) {
			f.sides[1].stream.Start(1, true)
			f.sides[1].stream.Push(1, []byte("227"))
			f.sides[1].stream.Next()
		},
		"edit":             func(f *flow) { _ = f.sides[0].edits.Add(1, []byte("x"), []byte("xy")) },
		"bytes not seen":   func(f *flow) { f.sides[1].started, f.sides[1].had = true, f.sides[1].had.Add(2) },
		"held packet":      func(f *flow) { f.sides[0].held = make([]heldPacket, 1) },
		"multi-line reply": func(f *flow) { _, _, _ = f.replies.Next([]byte("220-hello")) },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 4))
			table := newFlowTable()
			f := randomFlow(r)
			added := table.add(f)
			disturb(added)
			table.rest(added)
			kept, _ := table.find(f.master.Tuples[0])
			if len(table.awake) != 1 || kept == &table.woken {
				t.Fatal("the flow went to rest")
			}
			want := fmt.Sprintf("%+v", *kept)
			other := table.add(randomFlow(r))
			table.rest(other)
			again, _ := table.find(f.master.Tuples[1])
			if got := fmt.Sprintf("%+v", *again); again != kept || got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			table.remove(again)
			table.rest(again)
			if found, _ := table.find(f.master.Tuples[0]); found != nil || len(table.awake) != 0 || table.count != 1 {
				t.Errorf("it is still there: %+v", found)
			}
		})
	}
}

// TestOpaqueRests says that nothing is kept of a connection that is not read any more.
func TestOpaqueRests(t *testing.T) {
	e := New(Config{})
	const text = "GET / HTTP/1.1\r\nHost: example.org\r\n\r\nPORT"
	b := append(make([]byte, 40), text...)
	b[0], b[3], b[9], b[32] = 0x45, byte(len(b)), 6, 0x50
	var p mangle.Packet
	if err := p.Decode(b); err != nil {
		t.Fatal(err)
	}
	f := flow{head: true}
	f.sides[0].begin(0)
	e.read(&f, 0, &p)
	if !f.opaque || !f.rests() {
		t.Errorf("opaque: %v, %+v", f.opaque, f.sides[0].stream)
	}
}

// TestEntrySize says that what is added to an entry is added a million times.
func TestEntrySize(t *testing.T) {
	if n := unsafe.Sizeof(entry{}); n > 168 {
		t.Errorf("an entry has %d bytes", n)
	}
}
