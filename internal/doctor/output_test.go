package doctor

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

var sample = []Finding{
	{Check: "kernel", What: "Linux 6.12"},
	{Check: "rules", Level: Problem, What: "missing", Why: "nothing is queued", Fix: "nfq-ftphelper rules apply '<>'"},
	{Check: "queue", Level: Warning, What: "unbound", Why: "packets pass"},
}

func TestWriteText(t *testing.T) {
	const want = `ok       kernel  Linux 6.12
problem  rules   missing
                 nothing is queued
                 => nfq-ftphelper rules apply '<>'
warning  queue   unbound
                 packets pass
`
	if got := text(sample); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var coloured strings.Builder
	must.Do(t, WriteText(&coloured, sample, true))
	got := coloured.String()
	for _, colour := range colours {
		if !strings.Contains(got, colour) {
			t.Errorf("got %q, want colour %q", got, colour)
		}
		got = strings.ReplaceAll(got, colour, "")
	}
	if got = strings.ReplaceAll(got, plain, ""); got != want {
		t.Errorf("without colours: got\n%s\nwant\n%s", got, want)
	}
}

func TestWriteJSON(t *testing.T) {
	var b strings.Builder
	must.Do(t, WriteJSON(&b, sample))
	var got struct {
		Problems, Warnings int
		Findings           []map[string]string
	}
	must.Do(t, json.Unmarshal([]byte(b.String()), &got))
	if got.Problems != 1 || got.Warnings != 1 || len(got.Findings) != 3 || got.Findings[1]["level"] != "problem" ||
		got.Findings[1]["fix"] != "nfq-ftphelper rules apply '<>'" {
		t.Errorf("got %+v, want the sample, of\n%s", got, b.String())
	}
	if strings.Contains(b.String(), `"why": ""`) {
		t.Errorf("want no empty texts, got\n%s", b.String())
	}
}
