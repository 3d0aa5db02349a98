package parse

import "testing"

// Where an endpoint may begin in a line of which only a part has come. What lies before may
// leave, so the index must never lie behind the first byte of the endpoint that comes; nor
// may it go back when more of the line is there, as what lay before it is gone by then.
func checkPartial(t *testing.T, line []byte, e Endpoint, index func([]byte) int) {
	t.Helper()
	last := 0
	for n := range len(line) + 1 {
		i := index(line[:n:n])
		if i < 0 || i > n {
			t.Fatalf("%q: index %d lies outside", line[:n], i)
		}
		if e.IsValid() && i > e.Span.Start {
			t.Fatalf("%q: index %d lies behind %d, where the endpoint of %q begins", line[:n], i, e.Span.Start, line)
		}
		if i < last {
			t.Fatalf("%q: index %d, and %d for one byte less", line[:n], i, last)
		}
		last = i
	}
}

func TestCommandEndpoint(t *testing.T) {
	for _, tt := range []struct {
		part string
		want int // negative: the end
	}{
		{"", -1},
		{"P", -1},
		{"PORT", -1},
		{"PORT ", -1},
		{"PORT  ", -1},
		{"PORT  1", 6},
		{"port 192,168,0,2,4,1\r", 5},
		{"PORTAL 1", -1},
		{"PORT1", -1},
		{"EPRT ", -1},
		{"EPRT |", -1},
		{"EPRT |1", -1},
		{"EPRT |1|", 8},
		{"EPRT |1|192.168.0.2|10", 8},
		{"EPRT  !2!fd00", 9},
		{"\xff\xf4\xff\xf2PORT 1", 9},
		{"\xff\xfaPORT 1", -1},
		{"RETR PORT 1", -1},
		{"PASV 1", -1},
	} {
		want := tt.want
		if want < 0 {
			want = len(tt.part)
		}
		if got := CommandEndpoint([]byte(tt.part)); got != want {
			t.Errorf("CommandEndpoint(%q) = %d, want %d", tt.part, got, want)
		}
	}
}

func TestReplyEndpoint(t *testing.T) {
	for _, tt := range []struct {
		part string
		want int // negative: the end
	}{
		{"", -1},
		{"22", -1},
		{"227", -1},
		{"227 ", -1},
		{"227 Entering Passive Mode (", -1},
		{"227 Entering Passive Mode (1", 27},
		{"227 Entering Passive Mode (198,51,100,9,4,1).", 27},
		{"227 v2", 5},
		{"227 v2 ", 5},
		{"227 v2 m", -1},
		{"227 v2 mode (198,", 13},
		{"227 1,2,3,4,5,6,7", 4},
		{"227 1,2,3,4,5,6,7 ", 4},
		{"227 1,2,3,4,5,6,7 x", -1},
		{"227 Mode (192, 16", 10},
		{"\x00227 (1", 6},
		{"227-(198,51", -1},
		{"227x(198,51", -1},
		{"226 (198,51", -1},
		{"229 Extended (", -1},
		{"229 Extended (|||", -1},
		{"229 Extended (|||5", 17},
		{"229 (x) (!!!5", 12},
		{"229 (|!|5", -1},
		{"229 (x||5", -1},
		{"229-(|||5", -1},
	} {
		want := tt.want
		if want < 0 {
			want = len(tt.part)
		}
		if got := ReplyEndpoint([]byte(tt.part)); got != want {
			t.Errorf("ReplyEndpoint(%q) = %d, want %d", tt.part, got, want)
		}
	}
}

func TestReplyText(t *testing.T) {
	for _, tt := range []struct {
		part string
		want int // negative: the end
	}{
		{"", -1},
		{"22", -1},
		{"227", -1},
		{"227 ", -1},
		{"227 E", 4},
		{"227 Entering Passive Mode (1", 4},
		{"229\tExtended", 4},
		{"227-Entering", -1},
		{"2270 x", -1},
		{"226 done", -1},
	} {
		want := tt.want
		if want < 0 {
			want = len(tt.part)
		}
		if got := ReplyText([]byte(tt.part)); got != want {
			t.Errorf("ReplyText(%q) = %d, want %d", tt.part, got, want)
		}
	}
}
