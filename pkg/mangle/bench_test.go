package mangle

import (
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

const passiveLine = "227 Entering Passive Mode (192,168,1,2,195,80).\r\n"

// passiveEdit returns the edit of passiveLine sent at seq.
func passiveEdit(t testing.TB, seq Seq) *Edits {
	t.Helper()
	var e Edits
	must.Do(t, e.Add(seq.Add(27), []byte("192,168,1,2,195,80"), []byte("203,0,113,101,195,80")))
	return &e
}

func TestAllocs(t *testing.T) {
	check := func(name string, f func()) {
		t.Helper()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	var p Packet
	buf := make([]byte, 0, 2048)
	line := []byte(passiveLine)
	for _, tt := range packets {
		check("Decode, "+tt.name, func() { _ = p.Decode(tt.bytes) })
		check("Src and Dst, "+tt.name, func() { p.Src(); p.Dst() })
		check("AppendSegment, "+tt.name, func() { _, _ = p.AppendSegment(buf, 1, line) })
	}
	check("Decode, refused", func() { _ = p.Decode(ip4Packet[:30]) })
	e := passiveEdit(t, 1000)
	check("Render, nothing to do", func() { e.Render(buf, 2000, line) })
	check("Render", func() { e.Render(buf, 1000, line) })
	check("Offset", func() { e.Offset(2000) })
	check("Adjustment", func() { e.Adjustment() })
	check("Forget, nothing to do", func() { e.Forget(1000) })
}

func BenchmarkDecode(b *testing.B) {
	for _, tt := range packets {
		b.Run(tt.name, func(b *testing.B) {
			var p Packet
			b.ReportAllocs()
			for b.Loop() {
				must.Do(b, p.Decode(tt.bytes))
			}
		})
	}
}

func BenchmarkRenderNothing(b *testing.B) {
	e := passiveEdit(b, 1000)
	line := []byte(passiveLine)
	b.ReportAllocs()
	for b.Loop() {
		e.Render(nil, 2000, line)
	}
}

func BenchmarkRenderEdit(b *testing.B) {
	e := passiveEdit(b, 1000)
	line := []byte(passiveLine)
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		e.Render(buf, 1000, line)
	}
}

func BenchmarkAppendSegment(b *testing.B) {
	for _, tt := range packets {
		b.Run(tt.name, func(b *testing.B) {
			p := decode(b, tt.bytes)
			line := []byte(passiveLine)
			buf := make([]byte, 0, 2048)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.AppendSegment(buf, 1, line); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
