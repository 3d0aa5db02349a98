package main

import (
	"bytes"
	"testing"
)

func TestProgress(t *testing.T) {
	for _, test := range []struct {
		terminal bool
		want     string
	}{
		{true, "\r0 of 8 transfers tried\r1 of 8 transfers tried\r2 of 8 transfers tried\r3 of 8 transfers tried\n\n"},
		{false, "2 of 8 transfers tried\n\n"},
	} {
		var got bytes.Buffer
		p := progress{w: &got, terminal: test.terminal}
		p.start(8)
		for range 3 {
			p.done()
		}
		p.end()
		if got.String() != test.want {
			t.Errorf("terminal %v: got %q, want %q", test.terminal, got.String(), test.want)
		}
	}
}
