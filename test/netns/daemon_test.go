package netns

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestAnotherPort adds a port to the set of control ports while the daemon runs.
func TestAnotherPort(t *testing.T) {
	t.Parallel()
	const port = 2121
	for _, family := range Families {
		t.Run(family.String(), func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: family, Helper: Ours, Ports: []uint16{21, port}})
			site := startSite(t, lab.Server, family, SiteOptions{Port: port})
			ctx := testContext(t, 2*time.Minute)
			// The port is not in the set yet.
			wantNoData(t, family, func(verb Verb) Outcome { return lab.download(t, site, verb, failingTimeout) })
			add := fmt.Sprintf("add element inet nfq_ftphelper ports { %d }\n", port)
			must.Do(t, lab.ServerRouter().Nft(ctx, add))
			lab.wantDownloads(t, site, family.Verbs()...)
			wantNothingInvalid(t, lab.Routers...)
		})
	}
}

// TestDaemonGone takes the daemon away from under a control connection whose
// sequence numbers have been adjusted. The connection goes on, without help, and
// with help again once there is a daemon again.
func TestDaemonGone(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"killed", "stopped"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
			site := startSite(t, lab.Server, IPv4, SiteOptions{})
			router, ctx := lab.ServerRouter(), testContext(t, time.Minute)
			client := lab.login(t)
			fetch := func() {
				t.Helper()
				wantContent(t, siteFile, client.fetchBy(PASV, siteFile, lab.ServerAddress), site.Content)
			}
			fetch()
			fetch()

			var err error
			if how == "killed" {
				err = router.KillDaemon()
			} else {
				err = router.StopDaemon(ctx)
			}
			must.Do(t, err)
			for range 3 {
				client.do("200", "NOOP")
				client.do("257", "PWD")
			}
			// This shows that there really is no daemon now.
			if at := client.passive(PASV); at.Addr() != lab.Addresses.Server.Addr() {
				t.Errorf("without a daemon the client was told %s", at)
			}
			client.do("200", "NOOP")

			must.Do(t, router.StartDaemon(ctx))
			fetch()
			client.do("257", "PWD")
			fetch()
			client.quit()
			wantNothingInvalid(t, lab.Routers...)
		})
	}
}

// TestQueueTaken starts a second daemon on the same queue: it names the first one.
func TestQueueTaken(t *testing.T) {
	t.Parallel()
	host := newRouter(t, "host", Ours, 21)
	queues, err := host.QueuedByQueue()
	if err != nil || len(queues) != 1 {
		t.Fatalf("%v, queues %v", err, queues)
	}
	for number := range queues {
		want := fmt.Sprintf("nfq-ftphelper: bind queue %d: another program is bound to it, nfq-ftphelper (process %d): stop it, or choose another number with --queue",
			number, host.DaemonProcess().Pid())
		output, err := host.Run(testContext(t, 20*time.Second), "", host.daemon.Binary, "run", "--rules", "--queue", strconv.Itoa(number), "--control", "")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\n%s\nwant %s", err, output, want)
		}
	}
}

var countInLog = regexp.MustCompile(`\b(\w+)=(\d+)\b`)

// stopAndCount stops a router's daemon and returns what it has counted in all queues, by the
// names in its log.
func stopAndCount(t testing.TB, r *Router) map[string]int {
	t.Helper()
	must.Do(t, r.StopDaemon(testContext(t, 20*time.Second)))
	return countsInLog(t, r)
}

// countsInLog is what a daemon that has stopped has counted.
func countsInLog(t testing.TB, r *Router) map[string]int {
	t.Helper()
	total := make(map[string]int)
	for _, counts := range queuesInLog(t, r) {
		for name, n := range counts {
			total[name] += n
		}
	}
	return total
}

// stopAndCountQueues is the same by the number of the queue.
func stopAndCountQueues(t testing.TB, r *Router) map[int]map[string]int {
	t.Helper()
	must.Do(t, r.StopDaemon(testContext(t, 20*time.Second)))
	return queuesInLog(t, r)
}

func queuesInLog(t testing.TB, r *Router) map[int]map[string]int {
	t.Helper()
	queues := make(map[int]map[string]int)
	for line := range strings.Lines(r.DaemonProcess().Output()) {
		_, line, found := strings.Cut(line, "msg=stopped")
		if !found {
			continue
		}
		counts := make(map[string]int)
		for _, match := range countInLog.FindAllStringSubmatch(line, -1) {
			counts[match[1]], _ = strconv.Atoi(match[2])
		}
		number := counts["queue"]
		delete(counts, "queue")
		queues[number] = counts
	}
	if want := max(1, r.BackEnd().Queues); len(queues) != want {
		t.Fatalf("the daemon logged what it has counted in %d queues, want %d", len(queues), want)
	}
	return queues
}

// wantAllHelped stops the routers' daemons and wants them to have helped wherever
// there was something to help. It returns how many packets they have held.
func wantAllHelped(t testing.TB, routers ...*Router) (held int) {
	t.Helper()
	for _, r := range routers {
		counts := stopAndCount(t, r)
		if counts["expected"] == 0 || counts["failed"] > 0 || counts["hold_timeouts"] > 0 || counts["overflows"] > 0 ||
			strings.Contains(r.DaemonProcess().Output(), "refused") {
			t.Errorf("the daemon on the %s has not helped everywhere: %v", r.Name, counts)
		}
		held += counts["held"]
	}
	return held
}

// TestStalledLog lets nobody read the daemon's log while it helps more transfers than the pipe has
// room for lines. No packet waits for that, and the log is complete in the end.
func TestStalledLog(t *testing.T) {
	t.Parallel()
	const transfers = 60
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: None})
	lab.serve(t, script{})
	router, d := lab.ServerRouter(), daemon(t, BackEnd{})
	r, w, err := os.Pipe()
	must.Do(t, err)
	defer r.Close()
	const room = 4096 // bytes
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, room); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(d.Binary, append([]string{"run", "--config", "none", "--rules", "--log-level", "debug",
		"--control", filepath.Join(t.TempDir(), "control.sock")}, d.queueFlags()...)...)
	cmd.Stderr = w
	process, err := router.Start(cmd)
	w.Close()
	must.Do(t, err)
	log := bufio.NewScanner(r)
	for log.Scan() && !strings.Contains(log.Text(), "msg=ready") {
	}

	client := lab.login(t)
	for range transfers {
		client.wantFiles(lab.ServerAddress, PASV)
	}
	client.quit()

	must.Do(t, process.Signal(syscall.SIGTERM))
	expected, bytes := 0, 0
	for log.Scan() {
		bytes += len(log.Text())
		if strings.Contains(log.Text(), `msg="data connection expected"`) {
			expected++
		}
	}
	if err := process.Wait(testContext(t, 10*time.Second)); err != nil || log.Err() != nil {
		t.Errorf("the daemon: %v; its log: %v", err, log.Err())
	}
	if expected != transfers || bytes < 2*room {
		t.Errorf("the log has %d bytes, and tells of %d of %d transfers", bytes, expected, transfers)
	}
}
