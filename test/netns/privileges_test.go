package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// asService is what deploy/systemd/nfq-ftphelper.service has systemd do, as far as other programs can: the
// daemon runs as nobody with CAP_NET_ADMIN alone, cannot get anything else, sees no other
// process, and finds nothing to write to but its runtime folder.
const asService = `
	mount -t tmpfs -o mode=755 run /run
	install -d -o nobody /run/nfq-ftphelper
	install "$1" /run/daemon
	shift
	mount -o remount,bind,ro /run
	mount -t tmpfs -o mode=700,uid=65534 runtime /run/nfq-ftphelper
	for folder in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o ro private "$folder"; done
	mount -o remount,bind,ro /
	mount -t proc -o subset=pid,hidepid=invisible,ro proc /proc
	cd /
	exec setpriv --reuid=nobody --regid=nogroup --clear-groups --pdeathsig=KILL --no-new-privs \
		--bounding-set=-all,+net_admin --inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin /run/daemon "$@"
`

// TestPrivileges runs the daemon as root, and as its systemd unit does. Either way it ends up with
// CAP_NET_ADMIN alone, in every thread; it applies its rules, helps, tells the service manager how it
// fares, and removes its rules.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	for name, under := range map[string][]string{
		"root":    nil,
		"service": {"unshare", "--mount", "--propagation=private", "sh", "-euc", asService, "sh"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: None})
			site := startSite(t, lab.Server, IPv4, SiteOptions{})
			router, ctx := lab.ServerRouter(), testContext(t, 2*time.Minute)
			manager := listenManager(t, router)

			d := daemon(t, BackEnd{})
			d.Rules = RulesOwn
			if name == "service" {
				d.Flags = []string{"--control", control.DefaultPath}
			}
			watchdog := Scale(2 * time.Second)
			d.Under = append([]string{"env", "NOTIFY_SOCKET=" + manager.LocalAddr().String(),
				"WATCHDOG_USEC=" + strconv.FormatInt(watchdog.Microseconds(), 10)}, under...)
			must.Do(t, router.StartHelper(ctx, Ours, d))
			if got := wantMessage(t, manager, "READY=1\n"); !strings.Contains(got, fmt.Sprintf("STATUS=serving queue %d, helper ", d.Queue)) {
				t.Errorf("the service manager was told %q", got)
			}
			wantConfined(t, router.DaemonProcess().Pid())

			lab.wantDownloads(t, site, Verbs...)
			// It answers those who ask, and can still read what it tells them.
			asked := router.Control()
			if name == "service" {
				asked = fmt.Sprintf("/proc/%d/root%s", router.DaemonProcess().Pid(), control.DefaultPath)
			}
			client := control.NewClient(asked)
			flows, err := client.Flows(ctx)
			if err = errors.Join(err, client.Ready(ctx)); err != nil || len(flows.Flows) != len(Verbs) {
				t.Errorf("the control socket: %v, %+v", err, flows)
			}
			err = client.Metrics(ctx, func(body io.Reader) error {
				text, err := io.ReadAll(body)
				for _, name := range []string{"packets_total{", "process_resident_memory_bytes "} {
					if !strings.Contains(string(text), name) {
						t.Errorf("there is no %s in\n%s", name, text)
					}
				}
				if name == "service" {
					wantKnown(t, string(text))
				}
				return err
			})
			must.Do(t, err)
			// There is no other message, and the first was due at once.
			for range 3 {
				wantMessage(t, manager, "WATCHDOG=1")
			}
			must.Do(t, router.DaemonProcess().Signal(syscall.SIGTERM))
			for wantMessage(t, manager, "WATCHDOG=1", "STOPPING=1\n") == "WATCHDOG=1" {
			}
			must.Do(t, router.DaemonProcess().Wait(ctx))
			wantNoRules(t, router.Host)
			if _, err := os.Lstat(router.Control()); err == nil {
				t.Error("it left its control socket")
			}
			wantNothingInvalid(t, lab.Routers...)
		})
	}
}

// listenManager makes a service manager's socket on the router.
func listenManager(t *testing.T, r *Router) *net.UnixConn {
	t.Helper()
	var conn *net.UnixConn
	err := r.Do(func() (err error) {
		conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@manager", Net: "unixgram"})
		return err
	})
	must.Do(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// wantMessage waits for the next message, which has to begin with one of those.
func wantMessage(t *testing.T, manager *net.UnixConn, want ...string) string {
	t.Helper()
	must.Do(t, manager.SetReadDeadline(time.Now().Add(Scale(10*time.Second))))
	b := make([]byte, 4096)
	n, err := manager.Read(b)
	for _, w := range want {
		if err == nil && strings.HasPrefix(string(b[:n]), w) {
			return string(b[:n])
		}
	}
	t.Fatalf("the service manager was told %q (%v), want %q", b[:n], err, want)
	return ""
}

// wantConfined wants all threads of a process to have CAP_NET_ADMIN, and no way to more.
func wantConfined(t *testing.T, pid int) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads: %v", len(threads), err)
	}
	const netAdmin = 1 << unix.CAP_NET_ADMIN
	want := map[string]uint64{"CapInh": 0, "CapPrm": netAdmin, "CapEff": netAdmin, "CapBnd": netAdmin, "CapAmb": 0, "NoNewPrivs": 1}
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		must.Do(t, err)
		found := 0
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			bits, there := want[name]
			if !there {
				continue
			}
			found++
			if got, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err != nil || got != bits {
				t.Errorf("%s: %s is %q, want %#x", thread, name, strings.TrimSpace(value), bits)
			}
		}
		if found != len(want) {
			t.Errorf("%s has %d of %d lines:\n%s", thread, found, len(want), text)
		}
	}
}
