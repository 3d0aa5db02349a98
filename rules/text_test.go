package rules

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant, from %s,\n%s", got, path, want)
	}
}

// example uses everything that can be chosen.
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

// goldenName is "lean.4.text.golden", say.
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
	if err != nil {
		t.Fatal(err)
	}
	for ruleset, file := range files {
		if got := Text(Config{Ports: ports, Queue: DefaultQueue, Ruleset: ruleset}); got != file {
			t.Errorf("the file as shipped is not set to the defaults; with them it is\n%s", got)
		}
	}
}

// The queue statement, in the file and in a listing. What nft(8) lists for Compat
// depends on its version and on whether iptables is installed.
var (
	textStatement   = regexp.MustCompile(`queue flags bypass to (\$queue_number|\d+)`)
	listedStatement = regexp.MustCompile(`(?m)^(\t\tct state established(?: @ih,0,8 >= 0x0| ct direction reply tcp flags syn,ack / syn,ack)?(?: ` +
		pick + `)?)( .*|\t.*)?$`)
)

// pick is what stands before the statement where there are several queues.
const pick = `jhash ct id mod \d+ seed 0x1 \d+`

// listing lists the table, with the Native statement in any case.
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

// The file and Apply are the same ruleset. Where the kernel has no queue
// statement, everything but that is compared.
func TestTextIsWhatApplyInstalls(t *testing.T) {
	for _, c := range append([]Config{
		{Ports: []PortRange{{21, 21}}, Queue: 65535},
		{Ports: []PortRange{{1, 65535}}},
		{Ports: []PortRange{{40000, 65535}, {1, 1}}},
	}, rulesets...) {
		newNamespace(t)
		s := apply(t, c)
		applied := nft(t, "list table inet nfq_ftphelper")
		if err := Remove(); err != nil {
			t.Fatal(err)
		}

		statements := len(textStatement.FindAllString(Text(c), -1))
		_, stderr, err := tryNft(Text(c))
		switch {
		case s != Compat && err != nil:
			t.Fatalf("nft: %v\n%s", err, stderr)
		case s != Compat:
			if err := Check(c); err != nil {
				t.Errorf("Check after nft -f: %v", err)
			}
		case err == nil:
			t.Fatal("nft -f finds a queue statement, Apply did not")
		case strings.Count(stderr, "Error: ") != statements ||
			!strings.Contains(stderr, "No such file or directory") || !strings.Contains(stderr, "queue flags bypass"):
			t.Fatalf("nft fails for another reason than a missing queue statement:\n%s", stderr)
		default:
			t.Logf("this kernel has no queue statement; comparing everything else")
			nft(t, textStatement.ReplaceAllString(Text(c), "accept"))
			applied = withStatement(applied, "accept")
			if got := strings.Count(applied, "accept\n"); got != statements {
				t.Errorf("Apply installs %d queue statements, the file has %d", got, statements)
			}
			// Check says what differs first, so everything before the first statement was right.
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
			t.Errorf("nft -f gives\n%s\nApply gives\n%s", got, applied)
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
			t.Errorf("loaded twice it is\n%s\nloaded once\n%s", again, first)
		}
	}
}
