package systemd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

const unit = "nfq-ftphelper.service"

// units are beside the one under test. nftables.service is Debian's, but for what it loads: nothing.
var units = map[string]string{
	"lab.target": "[Unit]\nDefaultDependencies=no\nRequires=nftables.service\n",
	"nftables.service": `[Unit]
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecReload=/usr/sbin/nft flush ruleset
ExecStop=/usr/sbin/nft flush ruleset
`,
	unit + ".d/lab.conf": `[Service]
StandardOutput=append:%s
StandardError=append:%[1]s
WatchdogSec=8s
RestartSec=3s
`,
}

// machine is a router with systemd.
type machine struct {
	t      *testing.T
	router *netns.Router
	pid    int // of systemd
	log    string
}

// TestService goes through the life of the service: it starts, confined, and helps; it is killed, and comes
// back; so it does when it hangs; it follows nftables.service; it stops. In between, its
// rules go and come with it.
func TestService(t *testing.T) {
	if _, err := os.Stat("/run/job"); err != nil {
		t.Fatal("this starts a systemd, which changes settings of the kernel: run it in a virtual machine, as make test-kernels does")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	lab, err := netns.New(ctx, netns.Config{Situation: netns.DNAT, Family: netns.IPv4, Helper: netns.None})
	must.Do(t, err)
	must.CloseAtEnd(t, lab)
	m := boot(t, lab.ServerRouter())

	m.systemctl("start", unit)
	m.want("Type=notify", "ActiveState=active", "StatusText=serving queue 2121, helper sane")
	m.wantConfined()
	site, err := netns.StartSite(ctx, lab.Server, netns.IPv4, netns.SiteOptions{})
	must.Do(t, err)
	must.CloseAtEnd(t, site)
	transfer := func() {
		t.Helper()
		for _, verb := range []netns.Verb{netns.PORT, netns.PASV} {
			outcome := netns.Transfer{Program: netns.Curl, Verb: verb, Operation: netns.Download,
				Server: lab.ServerAddress, Site: site, Timeout: 5 * time.Second}.Run(ctx, lab.Client)
			if outcome.Err != nil {
				t.Errorf("%s: %v\n%s", verb, outcome.Err, outcome.Transcript)
			}
		}
	}
	transfer()

	first := m.mainPID()
	must.Do(t, m.router.Nft(ctx, "delete table inet nfq_ftphelper"))
	m.configure("rules: true\nmin-port: 2000")
	m.systemctl("reload", unit)
	m.waitFor("the reload", func() bool { return strings.Contains(m.logged(), "msg=reloaded min-port=2000") })
	m.wantTable(true)
	m.want("ActiveState=active", "MainPID="+first)

	m.systemctl("kill", "--kill-whom=main", "--signal=KILL", unit)
	m.await("ActiveState=activating", "SubState=auto-restart", "Result=signal")
	m.wantTable(false)
	m.await("ActiveState=active", "NRestarts=1")
	m.wantTable(true)
	transfer()

	second := m.mainPID()
	if second == first {
		t.Errorf("process %s is still there", first)
	}
	m.systemctl("kill", "--kill-whom=main", "--signal=STOP", unit)
	m.await("ActiveState=active", "NRestarts=2")
	m.wantTable(true)

	m.systemctl("restart", "nftables.service") // which flushes the ruleset, and does not wait for others
	m.await("ActiveState=active")
	m.wantTable(true)
	if m.mainPID() == second {
		t.Errorf("process %s is still there", second)
	}

	m.systemctl("reload", "nftables.service") // which flushes it, too
	m.waitFor("the table to come back", func() bool {
		tables, err := m.router.Run(ctx, "", "nft", "list", "tables")
		return err == nil && strings.Contains(tables, "table inet nfq_ftphelper\n")
	})

	m.systemctl("stop", unit)
	m.want("ActiveState=inactive", "Result=success")
	m.wantTable(false)
}

// boot starts systemd on the router.
func boot(t *testing.T, router *netns.Router) *machine {
	t.Helper()
	binary := os.Getenv("FTPHELPER_BIN")
	if binary == "" {
		t.Fatal("FTPHELPER_BIN has to name the daemon")
	}
	dir := t.TempDir()
	m := &machine{t: t, router: router, log: filepath.Join(dir, "log")}
	service, err := os.ReadFile("../../deploy/systemd/" + unit)
	must.Do(t, err)
	files := map[string]string{unit: string(service)}
	for name, text := range units {
		if strings.Contains(text, "%s") {
			text = fmt.Sprintf(text, m.log)
		}
		files[name] = text
	}
	write := func(name, text string, mode os.FileMode) {
		name = filepath.Join(dir, name)
		must.Do(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must.Do(t, os.WriteFile(name, []byte(text), mode))
	}
	for name, text := range files {
		write(filepath.Join("units", name), text, 0o644)
	}

	// A cgroup of systemd's own: it can't have one with other processes in it.
	cgroup := filepath.Join("/sys/fs/cgroup", fmt.Sprintf("systemd-%d", os.Getpid()))
	must.Do(t, os.Mkdir(cgroup, 0o755))
	const enter = `echo $$ >"$1/cgroup.procs"
		shift
		exec unshare --fork --kill-child --pid --mount --cgroup --uts --ipc ./boot.sh "$@"`
	cmd := exec.Command("sh", "-euc", enter, "sh", cgroup, filepath.Join(dir, "units"))
	process, err := router.Start(cmd)
	must.Do(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			text, err := os.ReadFile(m.log)
			t.Logf("%v, the service has logged\n%s", err, text)
		}
	})
	m.waitFor("systemd to start", func() bool {
		if !process.Running() {
			t.Fatalf("systemd has ended:\n%s", process.Output())
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", process.Pid()))
		if err == nil {
			m.pid, err = strconv.Atoi(strings.TrimSpace(string(children)))
		}
		if err != nil {
			return false
		}
		state, _ := m.run("systemctl", "is-active", "lab.target")
		return strings.TrimSpace(state) == "active"
	})
	m.sh("install -m 755 " + binary + " /usr/sbin/nfq-ftphelper && mkdir -p /etc/nfq-ftphelper")
	m.configure("rules: true")
	return m
}

// run runs a program among systemd's files.
func (m *machine) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 2*time.Minute)
	defer cancel()
	enter := []string{"--target", strconv.Itoa(m.pid), "--mount", "--pid", "--cgroup"}
	return m.router.Run(ctx, "", "nsenter", append(enter, args...)...)
}

func (m *machine) sh(script string) {
	m.t.Helper()
	if _, err := m.run("sh", "-euc", script); err != nil {
		m.t.Fatal(err)
	}
}

// configure writes the daemon's configuration file.
func (m *machine) configure(text string) {
	m.t.Helper()
	m.sh("echo '" + text + "' >/etc/nfq-ftphelper/nfq-ftphelper.yaml")
}

func (m *machine) systemctl(args ...string) {
	m.t.Helper()
	if _, err := m.run(append([]string{"systemctl"}, args...)...); err != nil {
		m.t.Fatal(err)
	}
}

// show returns the service's properties, such as ActiveState=active.
func (m *machine) show() string {
	m.t.Helper()
	text, err := m.run("systemctl", "show", unit, "--property=Type,ActiveState,SubState,StatusText,Result,NRestarts,MainPID")
	must.Do(m.t, err)
	return "\n" + text
}

func has(text string, lines []string) bool {
	for _, l := range lines {
		if !strings.Contains(text, "\n"+l+"\n") {
			return false
		}
	}
	return true
}

func (m *machine) want(lines ...string) {
	m.t.Helper()
	if text := m.show(); !has(text, lines) {
		m.t.Fatalf("want %q, it is %s", lines, text)
	}
}

func (m *machine) await(lines ...string) {
	m.t.Helper()
	m.waitFor(fmt.Sprint(lines), func() bool { return has(m.show(), lines) })
}

// waitFor waits until something has come true.
func (m *machine) waitFor(what string, isTrue func() bool) {
	m.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !isTrue(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("waited too long for %s", what)
		}
	}
}

func (m *machine) mainPID() string {
	m.t.Helper()
	_, after, _ := strings.Cut(m.show(), "\nMainPID=")
	pid, _, _ := strings.Cut(after, "\n")
	return pid
}

// logged is what the daemon has logged.
func (m *machine) logged() string {
	m.t.Helper()
	text, err := os.ReadFile(m.log)
	must.Do(m.t, err)
	return string(text)
}

// wantTable wants the daemon's rules to be there, or not.
func (m *machine) wantTable(there bool) {
	m.t.Helper()
	tables, err := m.router.Run(m.t.Context(), "", "nft", "list", "tables")
	if err != nil || strings.Contains(tables, "table inet nfq_ftphelper\n") != there {
		m.t.Fatalf("%v, want the daemon's table: %t, there are\n%s", err, there, tables)
	}
}

// wantConfined wants all threads of the daemon to have CAP_NET_ADMIN alone, and a filter for system
// calls, and not to be root's.
func (m *machine) wantConfined() {
	m.t.Helper()
	text, err := m.run("sh", "-c", "cat /proc/"+m.mainPID()+"/task/*/status")
	must.Do(m.t, err)
	threads := strings.Count(text, "\nPid:\t")
	const netAdmin = 1 << unix.CAP_NET_ADMIN
	for _, line := range []string{
		fmt.Sprintf("CapPrm:\t%016x", netAdmin), fmt.Sprintf("CapEff:\t%016x", netAdmin), fmt.Sprintf("CapBnd:\t%016x", netAdmin),
		fmt.Sprintf("CapInh:\t%016x", 0), fmt.Sprintf("CapAmb:\t%016x", 0), "NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if n := strings.Count(text, "\n"+line+"\n"); n != threads || n < 2 {
			m.t.Errorf("%d of %d threads have %q", n, threads, line)
		}
	}
	if strings.Contains(text, "\nUid:\t0\t") {
		m.t.Errorf("it runs as root:\n%s", text)
	}
}
