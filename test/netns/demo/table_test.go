package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

func TestTable(t *testing.T) {
	all := func(worked bool) map[netns.Verb]bool {
		return map[netns.Verb]bool{netns.PORT: worked, netns.EPRT: worked, netns.PASV: worked, netns.EPSV: worked}
	}
	rows := []row{
		{client: "public", server: "public", without: all(false), with: all(true)},
		{client: "behind NAT", server: "public", without: all(true), with: all(false)},
	}
	const want = `┌────────────┬────────┬───────────────┬───────────────┬───────────────┬───────────────┐
│ client     │ server │ PORT          │ EPRT          │ PASV          │ EPSV          │
├────────────┼────────┼───────────────┼───────────────┼───────────────┼───────────────┤
│ public     │ public │ fails → works │ fails → works │ fails → works │ fails → works │
│ behind NAT │ public │ works → fails │ works → fails │ works → fails │ works → fails │
└────────────┴────────┴───────────────┴───────────────┴───────────────┴───────────────┘
`
	if got := table(rows, false); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	coloured := table(rows, true)
	if coloured == want {
		t.Error("no colours")
	}
	if got := regexp.MustCompile(`\x1b\[\d+m`).ReplaceAllString(coloured, ""); got != want {
		t.Errorf("without its colours it is\n%swant\n%s", got, want)
	}
}

// TestReadme wants the README to show what the demo prints when everything works.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../../README.md")
	must.Do(t, err)
	var rows []row
	all := map[netns.Verb]bool{netns.PORT: true, netns.EPRT: true, netns.PASV: true, netns.EPSV: true}
	for _, server := range []string{"public", "behind NAT"} {
		for _, client := range []string{"public", "behind NAT"} {
			rows = append(rows, row{client: client, server: server, with: all})
		}
	}
	if want := table(rows, false); !strings.Contains(string(readme), want) {
		t.Errorf("README.md does not have the table\n%s", want)
	}
}

func TestCount(t *testing.T) {
	rows := []row{{
		without:   map[netns.Verb]bool{netns.PASV: true},
		with:      map[netns.Verb]bool{netns.PASV: true, netns.EPSV: true},
		transfers: 6,
	}}
	if got, want := count(rows), (totals{cells: 4, without: 1, with: 2, transfers: 6}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
