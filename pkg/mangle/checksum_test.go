package mangle

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// slowSum is the one's complement sum as RFC 1071 section 1 defines it: word by word, a carry
// added at once.
func slowSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
		if s > 0xffff {
			s -= 0xffff
		}
	}
	return uint16(s)
}

func TestSum(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, fill := range []func() byte{
		func() byte { return byte(rnd.Uint32()) },
		func() byte { return 0xff }, // as many carries as there can be
		func() byte { return 0 },
		func() byte { return byte(rnd.Uint32N(2)) * 0xff },
	} {
		b := make([]byte, 1<<16)
		for i := range b {
			b[i] = fill()
		}
		for offset := range 9 {
			for n := range 65 {
				part := b[offset : offset+n]
				if got, want := fold(sum(0, part)), slowSum(part); got != want {
					t.Errorf("%d bytes at %d: %04x, want %04x", n, offset, got, want)
				}
			}
		}
		for _, n := range []int{1499, 1500, 65534, 65535, 65536} {
			if got, want := fold(sum(0, b[:n])), slowSum(b[:n]); got != want {
				t.Errorf("%d bytes: %04x, want %04x", n, got, want)
			}
		}
	}
}

// The example of RFC 1071 section 3.
func TestSumExample(t *testing.T) {
	if got := fold(sum(0, unhex("0001 f203 f4f5 f6f7"))); got != 0xddf2 {
		t.Errorf("%04x, want ddf2", got)
	}
}

func TestFold(t *testing.T) {
	for _, tt := range []struct {
		in   uint64
		want uint16
	}{
		{0, 0}, {0xffff, 0xffff}, {0x10000, 1}, {0x1fffe, 0xffff}, {0x1ffff, 1},
		{0xffff_ffff, 0xffff}, {0xffff_ffff_ffff_ffff, 0xffff}, {0x1_0000_0000_0000, 1}, {0xffff_0001_0000, 1},
	} {
		if got := fold(tt.in); got != tt.want {
			t.Errorf("fold(%x) = %04x, want %04x", tt.in, got, tt.want)
		}
	}
}

// A sum is carried on from one piece to the next.
func TestSumInPieces(t *testing.T) {
	b := unhex("ffff 8001 7fff 0102 fefd 03")
	for cut := 0; cut <= len(b); cut += 2 {
		if got, want := fold(sum(sum(0, b[:cut]), b[cut:])), slowSum(b); got != want {
			t.Errorf("cut at %d: %04x, want %04x", cut, got, want)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{40, 1460} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				fold(sum(0, data))
			}
		})
	}
}
