package netns

import (
	"context"
	"flag"
	"fmt"
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
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(lab.Logs() + whereabouts(lab))
		}
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
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
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.Logs())
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx := testContext(t, 30*time.Second)
	must.Do(t, r.LoadFirewall(ctx, ports))
	var d Daemon
	if helper == Ours {
		d = daemon(t, b)
	}
	must.Do(t, r.StartHelper(ctx, helper, d))
	return r
}

// attachHost makes a host that has a router, by one more interface of it, for its gateway.
func attachHost(t testing.TB, r *Router, routerInterface, name string, address, gateway netip.Prefix) *Host {
	t.Helper()
	h, err := NewHost(name)
	must.Do(t, err)
	must.CloseAtEnd(t, h)
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

// needKernelHelper is for tests that compare with the kernel's helper.
func needKernelHelper(t testing.TB) {
	t.Helper()
	if err := CheckKernelHelper(); err != nil {
		t.Fatalf("this kernel has no FTP helper to compare with (CONFIG_NF_CONNTRACK_FTP): %v", err)
	}
}
