package nfq

import (
	"strings"
	"testing"
)

func TestParseStatus(t *testing.T) {
	const text = "   21  30114     0 2 65535     0     0       12  1\n" +
		"  100  30115     3 2 65535     4     5 4294967295  1\n"
	queues, err := ParseStatus(text)
	want := Status{Number: 100, Portid: 30115, Waiting: 3, Full: 4, Lost: 5, Last: 1<<32 - 1}
	if err != nil || len(queues) != 2 || queues[100] != want {
		t.Errorf("got %+v, %v", queues, err)
	}
	for _, broken := range []string{"100 1 0 2 65535 0 0 many 1\n", "65536 1 0 2 65535 0 0 1 1\n", "100 1 0\n"} {
		if _, err := ParseStatus(text + broken); err == nil || !strings.Contains(err.Error(), StatusFile) {
			t.Errorf("%q: got %v, want an error", broken, err)
		}
	}
	if queues, err := ParseStatus(""); err != nil || len(queues) != 0 {
		t.Errorf("empty: got %+v, %v; want none", queues, err)
	}
}
