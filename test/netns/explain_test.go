package netns

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

var capturesDir = flag.String("captures", "", "leave the captures of TestExplain in this `folder`")

// explainCases are the labs of which there is a capture in internal/explain/testdata, too.
var explainCases = []struct {
	name      string
	situation Situation
	family    Family
	helper    Helper
	verbs     []Verb
	want      []string // in what explain says
}{
	{"dnat", DNAT, IPv4, Ours, []Verb{PASV, PORT}, []string{
		"NAT: the server is 192.168.1.2:21, and the client knows it as 192.0.2.2:21 (the capture has both sides of the router)",
		"expects a connection from 203.0.113.101 to 192.0.2.2:", "rewrites: 227 Entering Passive Mode (192,0,2,2,",
		"expects a connection from 192.168.1.2 to 203.0.113.101:",
		"2 endpoints announced: 2 expected, 0 refused, 0 could not be helped. 1 line to rewrite; the router sent the same once, and something else 0 times.",
		"2 data connections: 2 expected, 0 not.",
	}},
	{"masquerade-ipv6", DNATMasquerade, IPv6, Kernel, []Verb{EPRT, EPSV}, []string{
		"NAT: the server is [fd00:1::2]:21, and the client knows it as [2001:db8:2::2]:21",
		"and the server knows it as [fd00:1::1]:",
		"rewrites: EPRT |2|fd00:1::1|", "the router sent the same in other words: EPRT |2|fd00:0001:0000:0000:0000:0000:0000:0001|",
		"2 endpoints announced: 2 expected, 0 refused, 0 could not be helped. 1 line to rewrite; the router sent the same once, and something else 0 times.",
		"2 data connections: 2 expected, 0 not.",
	}},
	{"no-helper", DNAT, IPv4, None, []Verb{PASV, PORT}, []string{
		"would rewrite: 227 Entering Passive Mode (192,0,2,2,", "the router sent it as it was: no helper rewrote it there",
		"no helper was at work on the router", "NOT EXPECTED: it goes to the address that the 227 at ", "the router did not let it through",
		"would be expected: the PORT at ", "=> no helper had the router expect it", "2 data connections: 1 would be expected, 1 not; the router did not let 2 of them through.",
	}},
}

var documentedFilter = regexp.MustCompile(`(?s)tcpdump [^']*-c [0-9]+ -w ftp.pcap \\\n *'([^']*)'`)

// captureFilter is the filter of captures that the documents and the manual name: one for all of them.
func captureFilter(t *testing.T) string {
	t.Helper()
	path := daemon(t, BackEnd{}).Binary
	help, err := exec.Command(path, "explain", "--help").Output()
	must.Do(t, err)
	texts := map[string]string{"explain --help": string(help)}
	for _, name := range []string{"README.md", "docs/explain.md", "docs/troubleshooting.md"} {
		text, err := os.ReadFile(filepath.Join("../..", name))
		must.Do(t, err)
		texts[name] = string(text)
	}
	filter := ""
	for name, text := range texts {
		m := documentedFilter.FindStringSubmatch(text)
		if m == nil || filter != "" && m[1] != filter {
			t.Fatalf("%s has no bounded capture, or another filter than %q: %q", name, filter, m)
		}
		filter = m[1]
	}
	return filter
}

// TestExplain captures transfers on a router and has them explained. Without a helper they fail,
// and explain says why.
func TestExplain(t *testing.T) {
	t.Parallel()
	filter := captureFilter(t)
	for _, c := range explainCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.helper == Kernel {
				needKernelHelper(t)
			}
			lab := newLab(t, Config{Situation: c.situation, Family: c.family, Helper: c.helper})
			site := startSite(t, lab.Server, c.family, SiteOptions{})
			router := lab.ServerRouter()
			path, err := FindProgram("tcpdump")
			must.Do(t, err)
			var file bytes.Buffer
			cmd := exec.Command(path, "-i", "any", "-s", "256", "-n", "-U", "--immediate-mode", "-w", "-", filter)
			cmd.Stdout = &file
			tcpdump, err := router.Start(cmd)
			must.Do(t, err)
			ctx := testContext(t, 60*time.Second)
			must.Do(t, tcpdump.WaitOutput(ctx, func(s string) bool { return strings.Contains(s, "listening on") }))
			for _, verb := range c.verbs {
				timeout := 8 * time.Second
				if c.helper == None {
					timeout = 2 * time.Second
				}
				outcome := Transfer{Program: Curl, Verb: verb, Operation: Listing, Server: lab.ServerAddress, Site: site, Timeout: timeout}.Run(ctx, lab.Client)
				if helped := c.helper != None; helped != (outcome.Err == nil) {
					t.Fatalf("%s: %v\n%s", verb, outcome.Err, outcome.Transcript)
				}
			}
			time.Sleep(Scale(200 * time.Millisecond)) // what was captured last
			must.Do(t, tcpdump.Signal(syscall.SIGINT))
			must.Do(t, tcpdump.Wait(ctx))
			if *capturesDir != "" {
				must.Do(t, os.WriteFile(filepath.Join(*capturesDir, c.name+".pcap"), file.Bytes(), 0o644))
			}

			// The data, of several packets, is not in it.
			if first, _, _ := strings.Cut(site.Listing, "\n"); len(first) < 20 || bytes.Contains(file.Bytes(), []byte(first)) {
				t.Errorf("the capture has data, such as %q", first)
			}

			drawing := filepath.Join(t.TempDir(), "ladder.svg")
			text, err := router.Run(ctx, file.String(), daemon(t, BackEnd{}).Binary, "explain", "--config", "none", "--svg", drawing, "-")
			must.Do(t, err)
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("explain does not say %q:\n%s", want, text)
				}
			}
			if svg, err := os.ReadFile(drawing); err != nil || !bytes.HasPrefix(svg, []byte("<svg")) {
				t.Errorf("there is no ladder diagram: %v", err)
			}
		})
	}
}
