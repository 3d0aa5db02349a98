package rules

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestInclude loads the packages' example of /etc/nftables.conf, with each of the files, twice.
func TestInclude(t *testing.T) {
	newNamespace(t)
	example, err := os.ReadFile("../deploy/package/nftables.conf")
	must.Do(t, err)
	const included = "/usr/share/nfq-ftphelper/ftp-queue.nft"
	if strings.Count(string(example), included) != 1 {
		t.Fatalf("want %s in the example", included)
	}
	statement, err := ProbeStatement()
	must.Do(t, err)
	folder := t.TempDir()
	for _, c := range []Config{{Ruleset: Full}, {Ruleset: Lean}, {Ruleset: CTHelper}, {Ruleset: Monitor}} {
		text := files[c.Ruleset]
		if statement == Compat {
			text = textStatement.ReplaceAllString(text, "accept")
		}
		path := filepath.Join(folder, string(c.Ruleset)+".nft")
		must.Do(t, os.WriteFile(path, []byte(text), 0o644))
		config := filepath.Join(folder, "nftables.conf")
		must.Do(t, os.WriteFile(config, []byte(strings.ReplaceAll(string(example), included, path)), 0o644))
		for _, args := range [][]string{{"--check", "--file", config}, {"--file", config}, {"--file", config}} {
			if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
				t.Fatalf("%s: nft %s: %v\n%s", c.Ruleset, args[0], err, out)
			}
		}
		if list := nft(t, "list ruleset"); !strings.Contains(list, "elements = { 21, 2121 }") || !strings.Contains(list, "table inet filter {") {
			t.Errorf("%s: got\n%s\nwant both tables and the ports", c.Ruleset, list)
		}
		c.Ports, c.Queue = []PortRange{{21, 21}}, DefaultQueue
		if err := Check(c); err != nil && statement == Native {
			t.Errorf("%s: Check after nft -f: got %v, want no error", c.Ruleset, err)
		}
	}
}
