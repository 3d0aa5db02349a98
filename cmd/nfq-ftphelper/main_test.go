package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// TestMain has no test read the settings of the machine that it runs on.
func TestMain(m *testing.M) {
	defaultFile = "/nonexistent/nfq-ftphelper.yaml"
	os.Exit(m.Run())
}

// call runs a command line in this process.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = execute(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// TestUsage checks that a wrong command line ends with 2 and a sentence that names the fault.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"nonsense"}, `unknown command "nonsense"`},
		{[]string{"run", "now"}, `unknown command "now"`},
		{[]string{"run", "--ports", "0"}, `"0" is not a port`},
		{[]string{"run", "--ports", "21,x"}, `"x" is not a port`},
		{[]string{"run", "--queue", "65536"}, `invalid argument "65536" for "--queue"`},
		{[]string{"run", "--log-format", "xml"}, "must be text or json"},
		{[]string{"run", "--log-level", "loud"}, `invalid argument "loud"`},
		{[]string{"run", "--min-port", "0"}, "--min-port must be at least 1"},
		{[]string{"run", "--queues", "0"}, "--queues must be at least 1"},
		{[]string{"run", "--queues", "2", "--queue", "65535"}, "the last number is 65535"},
		{[]string{"run", "--helper", "kernel"}, "must be auto, carrier or cthelper"},
		{[]string{"run", "--helper-name", "pptp"}, "whether it is a carrier or a cthelper"},
		{[]string{"run", "--helper", "carrier", "--helper-name", "ftp"}, "reads FTP itself"},
		{[]string{"run", "--helper", "cthelper", "--queues", "2"}, "the kernel fills one"},
		{[]string{"run", "--ruleset", "user"}, "must be full or lean"},
		{[]string{"rules", "apply", "--ruleset", "lean", "--helper", "cthelper"}, "lean does not go with a cthelper"},
		{[]string{"run", "--sequence", "user"}, "unknown flag: --sequence"},
		{[]string{"doctor", "--helper", "kernel"}, "must be auto, carrier or cthelper"},
		{[]string{"run", "--rate", "0"}, "--rate must be at least 1"},
		{[]string{"run", "--hold-time", "-1s"}, "--hold-time must be longer"},
		{[]string{"run", "--max-connections", "0"}, "--max-connections must be at least 1"},
		{[]string{"run", "--allow", "192.0.2.7,x"}, `"x" is neither an address nor a network`},
		{[]string{"run", "--advertise", "192.0.2.7,192.0.2.8"}, "are of the same family"},
		{[]string{"run", "--advertise", "fe80::1%eth0"}, "is not an address"},
		{[]string{"rules", "print", "--ports", ""}, "a port is missing"},
		{[]string{"rules", "bend"}, `unknown command "bend"`},
		{[]string{"explain"}, "explain takes one capture"},
		{[]string{"explain", "--nat", "192.0.2.7", "x.pcap"}, `"192.0.2.7" is not REAL=TRANSLATED`},
		{[]string{"explain", "--ports", "x", "x.pcap"}, `"x" is not a port`},
		{[]string{"explain", "--min-port", "0", "x.pcap"}, "--min-port must be at least 1"},
		{[]string{"explain", "--connection", "0", "--svg", "x.svg", "x.pcap"}, "counts from 1"},
		{[]string{"explain", "--connection", "2", "x.pcap"}, "--connection needs --svg"},
		{[]string{"run", "--metrics", "everywhere"}, `invalid argument "everywhere" for "--metrics"`},
		{[]string{"run", "--metrics", "127.0.0.1"}, `"127.0.0.1" has no port: write it 127.0.0.1:9921`},
		{[]string{"run", "--metrics", "::1"}, `"::1" has no port: write it [::1]:9921`},
		{[]string{"run", "--metrics", ":9921"}, `":9921" has no address: write 127.0.0.1:9921 for this host only`},
		{[]string{"run", "--metrics", "localhost:9921"}, `"localhost" is not an address`},
		{[]string{"run", "--metrics", "127.0.0.1:99999"}, `"99999" is not a port`},
		{[]string{"flows", "--sort", "age"}, "it must be client, server, state, transfers or refused"},
		{[]string{"flows", "--filter", "port=21"}, `unknown field "port": the fields are client, server, nat`},
		{[]string{"events", "--kind", "refused,denied"}, `"denied" is not a kind of event: it must be tracked, expected, would-open, used`},
		{[]string{"events", "--client", "ftp.example"}, "neither an address nor a network"},
		{[]string{"events", "--since", "yesterday"}, "it must be a duration such as 10m"},
		{[]string{"events", "--no-follow"}, "--no-follow needs --since"},
		{[]string{"status", "now"}, `unknown command "now"`},
		{[]string{"flows", "21"}, `unknown command "21"`},
		{[]string{"version", "--long"}, "unknown flag: --long"},
		{[]string{"run", "--port", "21"}, "unknown flag --port; did you mean --ports?"},
		{[]string{"rules", "apply", "--rulset=lean"}, "unknown flag --rulset; did you mean --ruleset?"},
		{[]string{"run", "-x"}, "unknown shorthand flag: 'x'"},
	} {
		code, stdout, stderr := call(t, c.args...)
		if code != exitUsage || !strings.Contains(stderr, c.want) || stdout != "" {
			t.Errorf("%q: got exit code %d, want 2; output\n%s%s\nwant %q", c.args, code, stdout, stderr, c.want)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"run", "--help"}, {"rules", "--help"}, {"rules", "apply", "--help"}, {"explain", "--help"}, {"flows", "--help"}, {"events", "--help"}, {"status", "--help"}, {"top", "--help"}, {"rules"}} {
		code, stdout, stderr := call(t, args...)
		if code != 0 || !strings.Contains(stdout, "Usage:") || stderr != "" {
			t.Errorf("%q: got exit code %d, output\n%s%s", args, code, stdout, stderr)
		}
	}
}

func TestVersion(t *testing.T) {
	code, stdout, _ := call(t, "version")
	if code != 0 || !strings.HasPrefix(stdout, "nfq-ftphelper "+version) {
		t.Errorf("got exit code %d, output %q", code, stdout)
	}
}

// TestRules applies, checks and removes rules on a host.
func TestRules(t *testing.T) {
	host := netns.NewTestHost(t, "host")
	flags := []string{"--ports", "21,2200-2210", "--queue", "9"}
	for _, c := range []struct {
		command string
		code    int
		want    string
	}{
		{"check", exitFailure, rules.ErrMissing.Error()},
		{"apply", 0, "ports 21,2200-2210 go to queue 9"},
		{"apply", 0, "is in place"},
		{"check", 0, "is right, for ports"},
		{"remove", 0, ""},
		{"remove", 0, ""},
		{"check", exitFailure, rules.ErrMissing.Error()},
		{"print", 0, "define queue_number = 9"},
		{"apply --ruleset lean", 0, "ports 21,2200-2210 go to queue 9"},
		{"check --ruleset lean", 0, "is right, for ports"},
		{"check --ruleset full", exitFailure, "chain control: rule 3 is not"},
		{"check", 0, "is right, for ports"},
		{"print --ruleset lean", 0, "goto commands"},
		{"remove --own", 0, "left in place: table inet nfq_ftphelper: chain control: rule 3 is not"},
		{"check --ruleset lean", 0, "is right, for ports"},
		{"remove --own --ruleset lean", 0, ""},
		{"check", exitFailure, rules.ErrMissing.Error()},
		{"remove --own", 0, ""},
		{"apply", 0, "is in place"},
		{"remove --own", 0, ""},
		{"check", exitFailure, rules.ErrMissing.Error()},
	} {
		err := host.Do(func() error {
			code, stdout, stderr := call(t, append(strings.Fields("rules "+c.command), flags...)...)
			if code != c.code || !strings.Contains(stdout+stderr, c.want) {
				t.Errorf("rules %s: got exit code %d, want %d; output\n%s%swant %q", c.command, code, c.code, stdout, stderr, c.want)
			}
			return nil
		})
		must.Do(t, err)
	}
}

// TestRefuse checks that the daemon does not start where it could help no connection, and leaves
// the host unchanged.
func TestRefuse(t *testing.T) {
	host := netns.NewTestHost(t, "host")
	err := host.Do(func() error {
		for _, flags := range [][]string{{"--rules"}, {}} {
			code, _, stderr := call(t, append([]string{"run", "--helper", "carrier", "--helper-name", "none-such"}, flags...)...)
			const want = `no connection could be helped: helper: trying the helper "none-such"`
			if code != exitFailure || !strings.Contains(stderr, want) {
				t.Errorf("run %q: got exit code %d, output\n%s", flags, code, stderr)
			}
		}
		return nil
	})
	must.Do(t, err)
	if left, err := host.Run(t.Context(), "", "nft", "list", "ruleset"); err != nil || left != "" {
		t.Errorf("got %v, with the host changed to\n%s", err, left)
	}
}

// TestRemoveOwn checks that rules which the daemon does not apply stay.
func TestRemoveOwn(t *testing.T) {
	host, file := netns.NewTestHost(t, "host"), filepath.Join(t.TempDir(), "nfq-ftphelper.yaml")
	err := host.Do(func() error {
		if code, _, stderr := call(t, "rules", "apply"); code != 0 {
			t.Fatal(stderr)
		}
		for _, c := range []struct {
			config string
			left   bool
		}{{"rules: false\n", true}, {"rules: true\n", false}} {
			must.Do(t, os.WriteFile(file, []byte(c.config), 0o600))
			if code, stdout, stderr := call(t, "rules", "remove", "--own", "--config", file); code != 0 || stdout+stderr != "" {
				t.Errorf("%s: got exit code %d, output\n%s%s", c.config, code, stdout, stderr)
			}
			if code, _, _ := call(t, "rules", "check"); (code == 0) != c.left {
				t.Errorf("%s: left in place: %v, want %v", c.config, code == 0, c.left)
			}
		}
		return nil
	})
	must.Do(t, err)
}

// TestNoTables: gopacket's layers have 6 MB of tables, which the garbage collector brings into the memory of a daemon that
// needs none of them.
func TestNoTables(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	must.Do(t, err)
	if packages := strings.Fields(string(out)); slices.Contains(packages, "github.com/google/gopacket/layers") {
		t.Error("got github.com/google/gopacket/layers in the program, want it not linked")
	}
}
