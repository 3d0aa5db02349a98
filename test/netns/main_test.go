package netns

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// binaryEnv names the environment variable with the path of the daemon to test.
// Without it, the tests build one.
const binaryEnv = "FTPHELPER_BIN"

// rulesetFile is the ruleset that a user edits and loads.
const rulesetFile Rules = "../../rules/ftp-queue.nft"

var buildDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make network namespaces: run them as root")
		return 1
	}
	if err := CheckPrograms("nft", "conntrack", "curl", "lftp", "tcpdump", "vsftpd"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var err error
	if buildDir, err = os.MkdirTemp("", "ftphelper-build-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(buildDir)
	flag.Parse()
	if err := moreParallel(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// moreParallel lets more tests run at the same time than there are processors,
// unless the command line says how many: these tests mostly wait.
func moreParallel() error {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(3*runtime.GOMAXPROCS(0)))
}

var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(binaryEnv); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(buildDir, "nfq-ftphelper")
	args := []string{"build", "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	output, err := exec.Command("go", append(args, "../../cmd/nfq-ftphelper")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the daemon (or name one in %s): %w\n%s", binaryEnv, err, output)
	}
	return path, nil
})

// daemon is our daemon with a back end, and with the rules that this kernel can have: those that
// nft loads, from the file or as printed, or those that the daemon applies.
func daemon(t testing.TB, b BackEnd) Daemon {
	t.Helper()
	path, err := binary()
	must.Do(t, err)
	d := Daemon{Binary: path, BackEnd: b, Queue: 100}
	switch {
	case CheckQueueStatement() != nil, b.Helper == CTHelper:
		d.Rules = RulesOwn
	case b == BackEnd{}:
		d.Rules = rulesetFile
	default:
		d.Rules = RulesPrinted
	}
	return d
}

// testContext is done after a time-out, stretched by [Scale], and at the test's end.
func testContext(t testing.TB, timeout time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Scale(timeout))
	t.Cleanup(cancel)
	return ctx
}

// newLab builds a lab that is gone at the test's end. Of the daemon, only the back
// end and the flags are the caller's. On a slow machine it waits longer for the rest of a line.
// A failed test shows what the programs in the lab have printed, and where packets are.
func newLab(t testing.TB, c Config) *Lab {
	t.Helper()
	if c.Helper == Ours {
		flags := c.Daemon.Flags
		c.Daemon = daemon(t, c.Daemon.BackEnd)
		if patience := Scale(engine.DefaultHoldTime); patience > engine.DefaultHoldTime {
			flags = append([]string{"--hold-time", patience.String()}, flags...) // the last one counts
		}
		c.Daemon.Flags = flags
	}
	lab, err := New(testContext(t, 30*time.Second), c)
	must.Do(t, err)
	closeWithLogs(t, lab, func() string { return lab.Logs() + whereabouts(lab) })
	return lab
}

// closeWithLogs closes c when the test ends. A failed test shows the logs first.
func closeWithLogs(t testing.TB, c io.Closer, logs func() string) {
	must.CloseAtEnd(t, c)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(logs())
		}
	})
}

// serve starts a scripted server on the lab's server until the test's end.
func (l *Lab) serve(t testing.TB, how script) *scriptedServer {
	t.Helper()
	return startScripted(t, l.Server, netip.AddrPortFrom(l.Addresses.Server.Addr(), 21), how)
}

// dial opens a control connection from the lab's client to its server and reads the greeting.
func (l *Lab) dial(t testing.TB) *scriptedClient {
	t.Helper()
	return dialScripted(t, l.Client, netip.AddrPort{}, netip.AddrPortFrom(l.ServerAddress, 21))
}

// login is dial with a login.
func (l *Lab) login(t testing.TB) *scriptedClient {
	t.Helper()
	c := l.dial(t)
	c.login()
	return c
}

// download has curl on the lab's client download a site's file by a verb.
func (l *Lab) download(t testing.TB, site *Site, verb Verb, timeout time.Duration) Outcome {
	t.Helper()
	return download(t, l.Client, l.ServerAddress, site, verb, timeout)
}

// download has curl on a host download the file of a site, which it reaches at an address, by a verb.
func download(t testing.TB, from *Host, at netip.Addr, site *Site, verb Verb, timeout time.Duration) Outcome {
	t.Helper()
	return Transfer{Program: Curl, Verb: verb, Operation: Download, Server: at, Site: site, Timeout: timeout}.Run(testContext(t, time.Minute), from)
}

// wantTransfers wants downloads, uploads and listings by each verb to work.
func wantTransfers(t testing.TB, from *Host, at netip.Addr, site *Site, f Family) {
	t.Helper()
	ctx := testContext(t, 2*time.Minute)
	for _, verb := range f.Verbs() {
		for _, operation := range Operations {
			outcome := Transfer{Program: Curl, Verb: verb, Operation: operation, Server: at, Site: site, Timeout: workingTimeout}.Run(ctx, from)
			if outcome.Err != nil {
				t.Errorf("%s, %s from the %s: %v\n%s", verb, operation, from.Name, outcome.Err, outcome.Transcript)
			}
		}
	}
}

// wantDownloads wants downloads by verbs to work.
func (l *Lab) wantDownloads(t testing.TB, site *Site, verbs ...Verb) {
	t.Helper()
	for _, verb := range verbs {
		if outcome := l.download(t, site, verb, workingTimeout); outcome.Err != nil {
			t.Errorf("%s: %v\n%s", verb, outcome.Err, outcome.Transcript)
		}
	}
}

// whereabouts is what the kernel says of packets and connections in a lab whose test has failed: a packet
// that is missing waits in a queue, was dropped, or is still to be acknowledged.
func whereabouts(lab *Lab) string {
	ctx, cancel := context.WithTimeout(context.Background(), Scale(5*time.Second))
	defer cancel()
	var text strings.Builder
	for _, h := range lab.hosts() {
		for _, command := range []string{
			"ss -tnoi", "cat /proc/net/netfilter/nfnetlink_queue", "conntrack -L 2>&1 | head -n 50",
			"nft list counters", "nstat -s | grep -v Octets", "cat /proc/net/softnet_stat", "ip -s neigh",
		} {
			output, err := h.Run(ctx, "", "sh", "-c", command)
			if err != nil {
				output += err.Error() + "\n"
			}
			fmt.Fprintf(&text, "--- %s on the %s:\n%s", command, h.Name, output)
		}
	}
	return text.String()
}

// newRouter makes a host with firewall and helper that stands alone.
func newRouter(t testing.TB, name string, helper Helper, ports ...uint16) *Router {
	t.Helper()
	return newRouterWith(t, name, helper, BackEnd{}, ports...)
}

func newRouterWith(t testing.TB, name string, helper Helper, b BackEnd, ports ...uint16) *Router {
	t.Helper()
	r, err := NewRouter(name)
	must.Do(t, err)
	closeWithLogs(t, r, r.Logs)
	ctx := testContext(t, 30*time.Second)
	must.Do(t, r.LoadFirewall(ctx, ports))
	var d Daemon
	if helper == Ours {
		d = daemon(t, b)
	}
	must.Do(t, r.StartHelper(ctx, helper, d))
	return r
}

// runDaemon starts the daemon with these flags and no others, and waits until it is ready.
func (r *Router) runDaemon(t testing.TB, flags ...string) {
	t.Helper()
	args := append([]string{"run", "--control", filepath.Join(t.TempDir(), "control.sock")}, flags...)
	process, err := r.Start(exec.Command(daemon(t, BackEnd{}).Binary, args...))
	must.Do(t, err)
	r.process = process
	must.Do(t, process.WaitOutput(testContext(t, 20*time.Second), isReady))
}

// attachHost makes a host that has a router, by one more interface of it, for its gateway.
func attachHost(t testing.TB, r *Router, routerInterface, name string, address, gateway netip.Prefix) *Host {
	t.Helper()
	h := NewTestHost(t, name)
	must.Do(t, h.attach(r, routerInterface, address, gateway))
	return h
}

// startSite starts vsftpd until the test's end.
func startSite(t testing.TB, h *Host, f Family, options SiteOptions) *Site {
	t.Helper()
	site, err := StartSite(testContext(t, 30*time.Second), h, f, options)
	must.Do(t, err)
	must.CloseAtEnd(t, site)
	return site
}

// command runs one of the program's commands that ask the router's daemon, such as "flows", and returns
// what it prints.
func (r *Router) command(t testing.TB, name string, flags ...string) string {
	t.Helper()
	text, err := r.Run(testContext(t, 20*time.Second), "", r.daemon.Binary, append([]string{name, "--control", r.Control()}, flags...)...)
	must.Do(t, err)
	return text
}

// decodeStrictly reads a value from JSON that has no other fields.
func decodeStrictly(t testing.TB, text string, value any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(value); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// wantNoRules wants a daemon that has ended to have left no rules on its host.
func wantNoRules(t testing.TB, h *Host) {
	t.Helper()
	left, err := h.Run(testContext(t, 20*time.Second), "", "nft", "list", "tables")
	if err != nil || strings.Contains(left, "nfq_ftphelper") {
		t.Errorf("%v, it left\n%s", err, left)
	}
}

// needKernelHelper is for tests that compare with the kernel's helper.
func needKernelHelper(t testing.TB) {
	t.Helper()
	if err := CheckKernelHelper(); err != nil {
		t.Fatalf("this kernel has no FTP helper to compare with (CONFIG_NF_CONNTRACK_FTP): %v", err)
	}
}
