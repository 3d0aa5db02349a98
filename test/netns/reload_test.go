package netns

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// configuredDaemon is a router's daemon with a configuration file.
type configuredDaemon struct {
	t       testing.TB
	router  *Router
	file    string
	reloads int
}

// startConfigured starts a daemon with rules of its own and a configuration file.
func startConfigured(t testing.TB, r *Router, b BackEnd, settings string) *configuredDaemon {
	t.Helper()
	c := &configuredDaemon{t: t, router: r, file: filepath.Join(t.TempDir(), "nfq-ftphelper.yaml")}
	c.write(settings)
	d := daemon(t, b)
	d.Rules, d.Flags = RulesOwn, []string{"--config", c.file}
	must.Do(t, r.StartHelper(testContext(t, 30*time.Second), Ours, d))
	return c
}

// write puts another file in place of the one that is there, as editors do.
func (c *configuredDaemon) write(settings string) {
	c.t.Helper()
	must.Do(c.t, os.WriteFile(c.file+".new", []byte(settings), 0o600))
	must.Do(c.t, os.Rename(c.file+".new", c.file))
}

// outcomes are the lines of the daemon's log that say what became of a reload.
func outcomes(log string) []string {
	var lines []string
	for line := range strings.Lines(log) {
		if strings.Contains(line, "msg=reloaded") || strings.Contains(line, `msg="reload refused`) {
			lines = append(lines, line)
		}
	}
	return lines
}

// reload changes the file and wants the daemon to say this of it.
func (c *configuredDaemon) reload(settings, want string) {
	c.t.Helper()
	c.write(settings)
	if got := c.again(); !strings.Contains(got, strings.ReplaceAll(want, "FILE", c.file)) {
		c.t.Fatalf("of\n%sthe daemon says\n%swant %s", settings, got, want)
	}
}

// again has the daemon read the file, and returns what it says of it.
func (c *configuredDaemon) again() (outcome string) {
	c.t.Helper()
	process := c.router.DaemonProcess()
	must.Do(c.t, process.Signal(syscall.SIGHUP))
	err := process.WaitOutput(testContext(c.t, 10*time.Second), func(log string) bool {
		if all := outcomes(log); len(all) > c.reloads {
			outcome = all[c.reloads]
			return true
		}
		return false
	})
	must.Do(c.t, err)
	c.reloads++
	return outcome
}

// TestReload changes settings under connections that are open, some that can change and some that can't.
func TestReload(t *testing.T) {
	t.Parallel()
	const other = 2121
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: None, Ports: []uint16{21, other}})
	router, own := lab.ServerRouter(), lab.Addresses.Server.Addr()
	d := startConfigured(t, router, BackEnd{}, "rules: true\n")
	for _, port := range []uint16{21, other} {
		startScripted(t, lab.Server, netip.AddrPortFrom(own, port), script{})
	}
	dial := func(port uint16) *scriptedClient {
		c := dialScripted(t, lab.Client, netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, port))
		c.login()
		return c
	}
	helped := func(c *scriptedClient) {
		t.Helper()
		c.wantFiles(lab.ServerAddress, Verbs...)
	}
	told := func(c *scriptedClient, want netip.Addr) {
		t.Helper()
		if at := c.passive(PASV); at.Addr() != want {
			t.Fatalf("the client was told %s, want %s", at, want)
		}
	}

	first := dial(21)
	helped(first)
	second := dial(other)
	told(second, own)
	second.quit()

	d.reload("rules: true\nports: [21, 2121-2130]\n", "msg=reloaded ports=21,2121-2130\n")
	helped(first)
	second = dial(other)
	helped(second)

	d.reload("rules: true\nports: [21, 2121]\nmin-port: 61000\n", "msg=reloaded ports=21,2121 min-port=61000\n")
	told(first, own)
	told(second, own)

	// What is refused changes nothing.
	d.reload("rules: true\nports: [21, x]\nmin-port: 1024\n",
		`why="FILE:2:13: ports: \"x\" is not a port, a number from 1 to 65535"`)
	// What needs a restart is named each time, and what does not is applied.
	d.reload("rules: true\nports: [21, 2121]\nmin-port: 62000\nqueues: 2\nlog-format: json\n", "msg=reloaded min-port=62000 needs_restart=queues,log-format\n")
	d.reload("rules: true\nports: [21, 2121]\nmin-port: 61000\nqueues: 2\n", "msg=reloaded min-port=61000 needs_restart=queues\n")
	// The command line, which names the queue, still wins.
	d.reload("rules: true\nports: [21, 2121]\nmin-port: 61000\nqueue: 7\n", "msg=reloaded changed=nothing\n")
	must.Do(t, os.Remove(d.file))
	if got := d.again(); !strings.Contains(got, "the configuration file cannot be read") {
		t.Errorf("without its file the daemon says %s", got)
	}
	told(first, own)

	// A port that is removed gets no new control connections; those that it has are still helped. One that
	// was added by hand stays.
	must.Do(t, router.Nft(t.Context(), "add element inet nfq_ftphelper ports { 2122 }"))
	d.reload("rules: true\nports: 2121\nlog-level: debug\n", "msg=reloaded ports=2121 min-port=1024 log-level=debug\n")
	helped(first)
	helped(second)
	unknown := dial(21)
	told(unknown, own)
	unknown.quit()
	must.Do(t, router.DaemonProcess().WaitOutput(testContext(t, 5*time.Second), func(log string) bool {
		return strings.Contains(log, "level=DEBUG")
	}))
	set, err := router.Run(t.Context(), "", "nft", "list", "set", "inet", "nfq_ftphelper", "ports")
	if err != nil || !strings.Contains(set, "elements = { 2121, 2122 }") {
		t.Errorf("%v, the set is\n%s", err, set)
	}

	advertised := netip.MustParseAddr("198.51.100.77")
	d.reload("rules: true\nports: 2121\nadvertise: "+advertised.String()+"\n", "msg=reloaded advertise="+advertised.String()+" log-level=info\n")
	told(second, advertised)

	// Rules that another program has changed are reported and left in place. Removed rules are restored.
	must.Do(t, router.Nft(t.Context(), "flush chain inet nfq_ftphelper prerouting"))
	d.reload("rules: true\nports: 2121\nadvertise: "+advertised.String()+"\n", "msg=reloaded changed=nothing\n")
	if got := router.DaemonProcess().Output(); !strings.Contains(got, "another program has changed the rules") || !strings.Contains(got, "chain prerouting: rule 1 is not") {
		t.Errorf("after a chain was emptied the daemon logged\n%s", got)
	}
	must.Do(t, router.Nft(t.Context(), "delete table inet nfq_ftphelper"))
	d.reload("rules: true\n", "msg=reloaded ports=21 advertise=\"\"\n")
	third := dial(21)
	helped(third)
	for _, c := range []*scriptedClient{first, second, third} {
		c.quit()
	}
	wantNothingInvalid(t, router)

	// Reloads that come with the stop are nothing to it.
	for _, signal := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGHUP} {
		must.Do(t, router.DaemonProcess().Signal(signal))
	}
	must.Do(t, router.DaemonProcess().Wait(testContext(t, 10*time.Second)))
	if got := router.DaemonProcess().Output(); strings.Contains(got, "context canceled") {
		t.Errorf("of a reload that came too late the daemon says\n%s", got)
	}
	wantNoRules(t, router.Host)
}

// TestReloadOthersRules has rules that are not the daemon's: other ports are for somebody else to add.
func TestReloadOthersRules(t *testing.T) {
	t.Parallel()
	host := newRouter(t, "host", None, 21)
	d := &configuredDaemon{t: t, router: host, file: filepath.Join(t.TempDir(), "nfq-ftphelper.yaml")}
	d.write("ports: [21]\n")
	ctx := testContext(t, 20*time.Second)
	_, err := host.Run(ctx, "", daemon(t, BackEnd{}).Binary, "rules", "apply", "--config", d.file)
	must.Do(t, err)
	host.runDaemon(t, "--config", d.file)
	const warning = "set ports lacks 2121"
	d.reload("ports: [21, 2121]\n", "msg=reloaded ports=21,2121")
	if n := strings.Count(host.process.Output(), warning); n != 1 {
		t.Errorf("it has warned %d times that the rules lack a port", n)
	}
	must.Do(t, host.Nft(ctx, "add element inet nfq_ftphelper ports { 2121 }"))
	d.reload("ports: [21, 2121]\n", "msg=reloaded changed=nothing")
	if n := strings.Count(host.process.Output(), warning); n != 1 {
		t.Errorf("it has warned again, of rules that are as they should be")
	}
	must.Do(t, host.StopDaemon(testContext(t, 20*time.Second)))
}

// TestReloadLink has the file be a link to one in another folder, which the daemon has to be able to read
// later, too.
func TestReloadLink(t *testing.T) {
	t.Parallel()
	host := newRouter(t, "host", None, 21)
	d := &configuredDaemon{t: t, router: host, file: filepath.Join(t.TempDir(), "nfq-ftphelper.yaml")}
	d.write("rules: true\n")
	link := filepath.Join(t.TempDir(), "nfq-ftphelper.yaml")
	must.Do(t, os.Symlink(d.file, link))
	host.runDaemon(t, "--config", link)
	d.reload("rules: true\nrate: 7\n", "msg=reloaded rate=7\n")
	// What it cannot read, it says why.
	elsewhere := filepath.Join(t.TempDir(), "nfq-ftphelper.yaml")
	must.Do(t, os.WriteFile(elsewhere, nil, 0o600))
	must.Do(t, os.Remove(link))
	must.Do(t, os.Symlink(elsewhere, link))
	if got := d.again(); !strings.Contains(got, "permission denied: the daemon has given up the right to read") {
		t.Errorf("of a file in another folder the daemon says %s", got)
	}
	must.Do(t, host.StopDaemon(testContext(t, 20*time.Second)))
}

// TestReloadWithoutFile has a daemon without a file reload: that changes nothing, and is no error.
func TestReloadWithoutFile(t *testing.T) {
	t.Parallel()
	host := newRouter(t, "host", Ours, 21)
	d := &configuredDaemon{t: t, router: host}
	const want = `level=INFO msg=reloaded changed="nothing: the daemon has no configuration file"`
	if got := d.again(); !strings.Contains(got, want) {
		t.Errorf("the daemon says %s", got)
	}
	must.Do(t, host.StopDaemon(t.Context()))
}

// TestReloadUnderLoad reads settings again and again, others each time, while 200 connections transfer.
// Nothing is lost, and nobody sends anything twice to make up for it.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	const connections = 200
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	lab := newLab(t, Config{Situation: DNATMasquerade, Family: IPv4, Helper: None})
	neverRetransmit(t, lab.Client)
	neverRetransmit(t, lab.Server)
	router := lab.ServerRouter()
	// The port of the connections is among those that stay, alone or within others.
	variants := []string{
		"rules: true\nrate: 100000\n",
		"rules: true\nrate: 200000\nports: [20-30, 2121]\nmin-port: 1025\nhold-time: 2s\nallow: 198.51.100.0/24\n",
		"rules: true\nrate: 100000\nports: [21-25]\nmax-connections: 10000\nadvertise-except: 198.51.100.0/24\nlog-level: debug\n",
		"rules: true\nrate: 200000\nports: [1-21, 990]\nloose: true\nhold-time: 3s\n",
		"rates: 0\n",
	}
	d := startConfigured(t, router, BackEnd{Queues: 2}, variants[0])
	lab.serve(t, script{})

	var clients []*scriptedClient
	for range connections {
		c := lab.login(t)
		clients = append(clients, c)
	}
	begin := time.Now()
	var all sync.WaitGroup
	for _, c := range clients {
		c.t = onGoroutine{t}
		all.Go(func() {
			for range rounds {
				c.wantFiles(lab.ServerAddress, Verbs...)
			}
			c.quit()
		})
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	for transferring := true; transferring; {
		for _, settings := range variants {
			d.write(settings)
			d.again()
			// Two at once are one, or two.
			must.Do(t, router.DaemonProcess().Signal(syscall.SIGHUP))
		}
		select {
		case <-done:
			transferring = false
		default:
		}
	}
	took := time.Since(begin)

	wantNothingInvalid(t, router)
	const droppedFull, droppedLost = 5, 6
	for _, column := range []int{droppedFull, droppedLost} {
		if n, err := router.sumOverQueues(column); err != nil || n > 0 {
			t.Errorf("%v, the kernel has dropped %d packets", err, n)
		}
	}
	must.Do(t, router.StopDaemon(testContext(t, 20*time.Second)))
	log := router.DaemonProcess().Output()
	var refused int
	for _, outcome := range outcomes(log) {
		if strings.Contains(outcome, "refused") {
			refused++
			if !strings.Contains(outcome, `there is no setting \"rates\"; did you mean rate?`) {
				t.Errorf("this was refused for another reason: %s", outcome)
			}
		}
	}
	counts := countsInLog(t, router)
	if counts["expected"] != connections*rounds*len(Verbs) || counts["failed"]+counts["hold_timeouts"]+counts["overflows"]+counts["unknown"] > 0 {
		t.Errorf("the daemon is to have helped %d times: %v", connections*rounds*len(Verbs), counts)
	}
	reloads := len(outcomes(log))
	if reloads < 2*len(variants) || refused == 0 {
		t.Errorf("there were only %d reloads, and %d were refused", reloads, refused)
	}
	t.Logf("%d transfers on %d connections in %s, %d reloads, %d of them refused", counts["expected"], connections, took.Round(time.Millisecond), reloads, refused)
}
