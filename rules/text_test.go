package rules

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		must.Do(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	must.Do(t, err)
	if got != string(want) {
		t.Errorf("got\n%s\nwant, from %s,\n%s", got, path, want)
	}
}

// example has several ranges of ports.
var example = Config{Ports: []PortRange{{21, 21}, {2121, 2121}, {2200, 2210}}, Queue: 7}

// rulesets has each of them, with one queue and with several where that is possible.
var rulesets = []Config{
	example,
	{Ports: example.Ports, Queue: 7, Queues: 4},
	{Ports: example.Ports, Queue: 7, Ruleset: Lean},
	{Ports: example.Ports, Queue: 7, Queues: 4, Ruleset: Lean},
	{Ports: example.Ports, Ruleset: CTHelper},
	{Ports: example.Ports, Queue: 7, Ruleset: Monitor},
	{Ports: example.Ports, Queue: 7, Queues: 4, Ruleset: Monitor},
}

// goldenName returns "lean.4.text.golden", say.
func goldenName(c Config, kind string) string {
	return fmt.Sprintf("%s.%d.%s.golden", c.ruleset(), c.queues(), kind)
}

func TestText(t *testing.T) {
	for _, c := range rulesets {
		golden(t, goldenName(c, "text"), Text(c))
	}
}

func TestTextDefaults(t *testing.T) {
	ports, err := ParsePorts(DefaultPorts)
	must.Do(t, err)
	for ruleset, file := range files {
		if got := Text(Config{Ports: ports, Queue: DefaultQueue, Ruleset: ruleset}); got != file {
			t.Errorf("got\n%s\nwant the file as shipped\n%s", got, file)
		}
	}
}

// The queue statement in the file and in a listing. nft(8) lists Compat differently with its version and with iptables.
var (
	textStatement   = regexp.MustCompile(`queue flags bypass to (\$queue_number|\d+)`)
	listedStatement = regexp.MustCompile(`(?m)^(\t\tct state established(?: @ih,0,8 >= 0x0| ct direction reply tcp flags syn,ack / syn,ack)?(?: ` +
		pick + `)?)( .*|\t.*)?$`)
)

// pick is the match before the statement of one of several queues.
const pick = `jhash ct id mod \d+ seed 0x1 \d+`

// listing lists the table, with Native in place of Compat.
func listing(t *testing.T, s Statement) string {
	t.Helper()
	l := nft(t, "list table inet nfq_ftphelper")
	if s == Compat {
		l = withStatement(l, "queue flags bypass to 7")
	}
	return l
}

// withStatement replaces the queue statements of a listing.
func withStatement(listing, statement string) string {
	return listedStatement.ReplaceAllString(listing, "${1} "+statement)
}

func TestListing(t *testing.T) {
	newNamespace(t)
	for _, c := range rulesets {
		if c.queues() == 1 { // withStatement knows no other number
			s := apply(t, c)
			golden(t, goldenName(c, "listing"), listing(t, s))
		}
	}
}

// TestTextIsWhatApplyInstalls compares the file with Apply, without the queue statement if the kernel lacks it.
func TestTextIsWhatApplyInstalls(t *testing.T) {
	for _, c := range append([]Config{
		{Ports: []PortRange{{21, 21}}, Queue: 65535},
		{Ports: []PortRange{{1, 65535}}},
		{Ports: []PortRange{{40000, 65535}, {1, 1}}},
	}, rulesets...) {
		newNamespace(t)
		s := apply(t, c)
		applied := nft(t, "list table inet nfq_ftphelper")
		must.Do(t, Remove())

		statements := len(textStatement.FindAllString(Text(c), -1))
		_, stderr, err := tryNft(Text(c))
		switch {
		case s != Compat && err != nil:
			t.Fatalf("nft: %v\n%s", err, stderr)
		case s != Compat:
			if err := Check(c); err != nil {
				t.Errorf("Check after nft -f: got %v, want no error", err)
			}
		case err == nil:
			t.Fatal("nft -f: got no error, want that the queue statement is missing")
		case strings.Count(stderr, "Error: ") != statements ||
			!strings.Contains(stderr, "No such file or directory") || !strings.Contains(stderr, "queue flags bypass"):
			t.Fatalf("nft -f: got\n%s\nwant that the queue statement is missing", stderr)
		default:
			t.Logf("this kernel has no queue statement; comparing everything else")
			nft(t, textStatement.ReplaceAllString(Text(c), "accept"))
			applied = withStatement(applied, "accept")
			if got := strings.Count(applied, "accept\n"); got != statements {
				t.Errorf("got %d queue statements, want %d as in the file", got, statements)
			}
			// Check returns the first difference, so all rules before the first statement are equal.
			first := "chain control: rule 4 is not"
			switch c.Ruleset {
			case Lean:
				first = "chain read: rule 1 is not"
			case Monitor:
				first = "chain control: rule 3 is not"
			}
			wantError(t, Check(c), first)
		}
		if got := nft(t, "list table inet nfq_ftphelper"); got != applied {
			t.Errorf("nft -f: got\n%s\nwant as of Apply\n%s", got, applied)
		}
	}
}

func TestTextLoadsAgain(t *testing.T) {
	newNamespace(t)
	for _, c := range rulesets {
		text := textStatement.ReplaceAllString(Text(c), "accept")
		nft(t, text)
		first := nft(t, "list ruleset")
		nft(t, text)
		if again := nft(t, "list ruleset"); again != first {
			t.Errorf("loaded twice: got\n%s\nwant\n%s", again, first)
		}
	}
}
