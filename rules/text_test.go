package rules

import (
	"flag"
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

func TestText(t *testing.T) {
	golden(t, "text.golden", Text(example))
}

func TestTextDefaults(t *testing.T) {
	ports, err := ParsePorts(DefaultPorts)
	if err != nil {
		t.Fatal(err)
	}
	if got := Text(Config{Ports: ports, Queue: DefaultQueue}); got != ftpQueue {
		t.Errorf("the file as shipped is not set to the defaults; with them it is\n%s", got)
	}
}

// The queue statement, in the file and in a listing. What nft(8) lists for Compat
// depends on its version and on whether iptables is installed.
var (
	textStatement   = regexp.MustCompile(`queue flags bypass to (\$queue_number|\d+)`)
	listedStatement = regexp.MustCompile(`(?m)(@ih,0,8 >= 0x0( jhash ct id mod \d+ seed 0x1 \d+)?)( .*)?$`)
)

// listing lists the table, with the Native statement in any case.
func listing(t *testing.T, s Statement) string {
	t.Helper()
	l := nft(t, "list table inet nfq_ftphelper")
	if s == Compat {
		l = withStatement(l, "queue flags bypass to 7")
	}
	return l
}

func withStatement(listing, statement string) string {
	return listedStatement.ReplaceAllString(listing, "$1 "+statement)
}

func TestListing(t *testing.T) {
	newNamespace(t)
	s := apply(t, example)
	golden(t, "listing.golden", listing(t, s))
}

// The file and Apply are the same ruleset. Where the kernel has no queue
// statement, everything but that is compared.
func TestTextIsWhatApplyInstalls(t *testing.T) {
	for _, c := range []Config{
		example,
		{Ports: []PortRange{{21, 21}}, Queue: 65535},
		{Ports: []PortRange{{1, 65535}}},
		{Ports: []PortRange{{40000, 65535}, {1, 1}}},
		{Ports: []PortRange{{21, 21}}, Queue: 100, Queues: 4},
	} {
		newNamespace(t)
		s := apply(t, c)
		applied := nft(t, "list table inet nfq_ftphelper")
		if err := Remove(); err != nil {
			t.Fatal(err)
		}

		_, stderr, err := tryNft(Text(c))
		switch {
		case s == Native && err != nil:
			t.Fatalf("nft: %v\n%s", err, stderr)
		case s == Native:
			if err := Check(c); err != nil {
				t.Errorf("Check after nft -f: %v", err)
			}
		case err == nil:
			t.Fatal("nft -f finds a queue statement, Apply did not")
		case strings.Count(stderr, "Error: ") != int(c.queues()) ||
			!strings.Contains(stderr, "No such file or directory") || !strings.Contains(stderr, "queue flags bypass"):
			t.Fatalf("nft fails for another reason than a missing queue statement:\n%s", stderr)
		default:
			t.Logf("this kernel has no queue statement; comparing everything else")
			nft(t, textStatement.ReplaceAllString(Text(c), "accept"))
			applied = withStatement(applied, "accept")
			// Check looks at this rule last, so everything before it was right.
			if err := Check(c); err == nil || !strings.Contains(err.Error(), "chain control: rule 4 is not") {
				t.Errorf("Check after nft -f: %v", err)
			}
		}
		if got := nft(t, "list table inet nfq_ftphelper"); got != applied {
			t.Errorf("nft -f gives\n%s\nApply gives\n%s", got, applied)
		}
	}
}

func TestTextLoadsAgain(t *testing.T) {
	newNamespace(t)
	text := textStatement.ReplaceAllString(Text(example), "accept")
	nft(t, text)
	first := nft(t, "list ruleset")
	nft(t, text)
	if again := nft(t, "list ruleset"); again != first {
		t.Errorf("loaded twice it is\n%s\nloaded once\n%s", again, first)
	}
}
