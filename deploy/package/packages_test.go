// Package packages tests the deb and the rpm that "make packages" builds: it installs, upgrades and
// removes them with dpkg and rpm.
package packages

import (
	"bytes"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// The folders with packages of two versions.
var older, newer string

// mountsEnv is set in the process that has a mount namespace of its own, which is the one that tests:
// whatever ends it, no mount stays.
const mountsEnv = "PACKAGES_TEST_MOUNTS"

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		return m.Run() // which only lists
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests install packages on an overlay: run them as root")
		return 1
	}
	if older = os.Getenv(mountsEnv); older != "" {
		newer = filepath.Join(older, "newer")
		return m.Run()
	}

	folder, err := os.MkdirTemp("", "packages-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(folder)
	for _, make := range [][]string{
		{"packages", "VERSION=v1.2.3-5-gb544e49", "ARCHITECTURES=" + runtime.GOARCH, "PACKAGES=" + filepath.Join(folder, "newer")},
		{"packages", "VERSION=v1.2.3", "ARCHITECTURES=amd64 arm64", "PACKAGES=" + folder},
	} {
		if out, err := exec.Command("make", append([]string{"-C", "../.."}, make...)...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "make %s: %v\n%s", strings.Join(make, " "), err, out)
			return 1
		}
	}
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Env = append(os.Environ(), mountsEnv+"="+folder)
	self.Stdout, self.Stderr = os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // whose death Pdeathsig is about
	err = self.Run()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		return failed.ExitCode()
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// What rpm calls the architectures.
var rpmArchitecture = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// deb and rpm return a package's file.
func deb(folder, version, architecture string) string {
	return filepath.Join(folder, "nfq-ftphelper_"+version+"-1_"+architecture+".deb")
}

func rpm(folder, version, architecture string) string {
	return filepath.Join(folder, "nfq-ftphelper-"+version+"-1."+rpmArchitecture[architecture]+".rpm")
}

// What both packages install that is not there before. Folders of the distribution that a machine
// may lack are in distribution.
var (
	common = []string{
		"-rw-r--r-- /etc/nfq-ftphelper/nfq-ftphelper.yaml",
		"-rw-r--r-- /usr/lib/modules-load.d/nfq-ftphelper.conf",
		"-rw-r--r-- /usr/lib/systemd/system/nfq-ftphelper.service",
		"-rw-r--r-- /usr/share/bash-completion/completions/nfq-ftphelper",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/README.md",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/copyright",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/architecture.md",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/architecture.svg",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/explain.md",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/installation.md",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/json.md",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/kernel.md",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/operations.md",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/overview.svg",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/security.md",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/top.svg",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/docs/troubleshooting.md",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/examples/alerts.yaml",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/examples/compose.yaml",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/examples/grafana.json",
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/examples/nftables.conf",
		"-rw-r--r-- /usr/share/fish/vendor_completions.d/nfq-ftphelper.fish",
		"-rw-r--r-- /usr/share/man/man5/nfq-ftphelper.yaml.5.gz",
		"-rw-r--r-- /usr/share/man/man8/nfq-ftphelper.8.gz",
		"-rw-r--r-- /usr/share/nfq-ftphelper/ftp-cthelper.nft",
		"-rw-r--r-- /usr/share/nfq-ftphelper/ftp-monitor.nft",
		"-rw-r--r-- /usr/share/nfq-ftphelper/ftp-queue-lean.nft",
		"-rw-r--r-- /usr/share/nfq-ftphelper/ftp-queue.nft",
		"-rwxr-xr-x /usr/sbin/nfq-ftphelper",
		"drwxr-xr-x /etc/nfq-ftphelper",
		"drwxr-xr-x /usr/share/doc/nfq-ftphelper",
		"drwxr-xr-x /usr/share/doc/nfq-ftphelper/docs",
		"drwxr-xr-x /usr/share/doc/nfq-ftphelper/examples",
		"drwxr-xr-x /usr/share/nfq-ftphelper",
	}
	onlyDeb = []string{
		"-rw-r--r-- /usr/share/doc/nfq-ftphelper/changelog.Debian.gz",
		"-rw-r--r-- /usr/share/lintian/overrides/nfq-ftphelper",
		"-rw-r--r-- /usr/share/zsh/vendor-completions/_nfq-ftphelper",
		// The unit's links, as deb-systemd-helper knows them.
		"-rw-r--r-- /var/lib/systemd/deb-systemd-helper-enabled/nfq-ftphelper.service.dsh-also",
	}
	onlyRPM = []string{
		"-rw-r--r-- /usr/share/licenses/nfq-ftphelper/LICENSE",
		"-rw-r--r-- /usr/share/zsh/site-functions/_nfq-ftphelper",
		"drwxr-xr-x /usr/share/licenses/nfq-ftphelper",
	}
	distribution = []string{
		"/usr/lib/modules-load.d", "/usr/lib/systemd/system", "/usr/share/bash-completion", "/usr/share/bash-completion/completions",
		"/usr/share/fish", "/usr/share/fish/vendor_completions.d", "/usr/share/licenses", "/usr/share/lintian", "/usr/share/lintian/overrides",
		"/usr/share/man/man5", "/usr/share/man/man8", "/usr/share/zsh", "/usr/share/zsh/site-functions", "/usr/share/zsh/vendor-completions",
		"/var/lib/systemd", "/var/lib/systemd/deb-systemd-helper-enabled",
	}
)

// wantChanged compares what differs on the host with what is to.
func wantChanged(t *testing.T, h host, when string, want ...[]string) {
	t.Helper()
	got := slices.DeleteFunc(h.changed(), func(entry string) bool {
		folder, is := strings.CutPrefix(entry, "drwxr-xr-x ")
		return is && slices.Contains(distribution, folder)
	})
	slices.Sort(got)
	all := slices.Sorted(slices.Values(slices.Concat(want...)))
	if !slices.Equal(got, all) {
		t.Errorf("%s there is\n%s\nand not\n%s", when, strings.Join(got, "\n"), strings.Join(all, "\n"))
	}
}

// wantCalls compares how systemctl was called.
func wantCalls(t *testing.T, h host, when string, want ...string) {
	t.Helper()
	if got := h.called(); !slices.Equal(got, want) {
		t.Errorf("%s, systemctl is called %q, not %q", when, got, want)
	}
}

func TestDeb(t *testing.T) {
	h := newHost(t)
	dpkg := func(command ...string) string {
		t.Helper()
		// Other packages' triggers, such as man-db's, are not what is tested.
		return h.do(append([]string{"dpkg", "--no-triggers", "--force-confold"}, command...)...)
	}
	out := dpkg("--install", h.take(deb(older, "1.2.3", runtime.GOARCH)))
	wantChanged(t, h, "installed,", common, onlyDeb)
	wantCalls(t, h, "installed", "--system daemon-reload")
	if hint := "systemctl enable --now nfq-ftphelper\n"; !strings.Contains(out, hint) {
		t.Errorf("dpkg says nothing of %q:\n%s", hint, out)
	}
	tryInstalled(t, h)

	// What an administrator does stays: settings, and that the service is enabled.
	const config, link = "/etc/nfq-ftphelper/nfq-ftphelper.yaml", "/etc/systemd/system/multi-user.target.wants/nfq-ftphelper.service"
	settings := h.read(config) + "# and a comment\n"
	h.write(config, settings, 0o600)
	must.Do(t, os.MkdirAll(filepath.Dir(h.path(link)), 0o755))
	must.Do(t, os.Symlink("/usr/lib/systemd/system/nfq-ftphelper.service", h.path(link)))
	dpkg("--install", h.take(deb(newer, "1.2.3+5.gb544e49", runtime.GOARCH)))
	wantCalls(t, h, "upgraded", "--system daemon-reload", "try-restart nfq-ftphelper.service")
	if got := h.read(config); got != settings {
		t.Errorf("after an upgrade the configuration is\n%s", got)
	}
	if out := h.do("/usr/sbin/nfq-ftphelper", "version"); !strings.HasPrefix(out, "nfq-ftphelper v1.2.3-5-gb544e49") {
		t.Errorf("after an upgrade it says %s", out)
	}

	dpkg("--remove", "nfq-ftphelper")
	wantCalls(t, h, "removed", "stop nfq-ftphelper.service", "--system daemon-reload")
	if got := h.read(config); got != settings {
		t.Errorf("after a removal the configuration is\n%s", got)
	}
	h.write("/etc/nfq-ftphelper/own.yaml", "", 0o644)
	dpkg("--purge", "nfq-ftphelper")
	wantChanged(t, h, "purged,", []string{"drwxr-xr-x /etc/nfq-ftphelper", "-rw-r--r-- /etc/nfq-ftphelper/own.yaml"})

	// Nothing is left where nobody has put anything.
	h.do("rm", "-r", "/etc/nfq-ftphelper")
	dpkg("--install", h.take(deb(older, "1.2.3", runtime.GOARCH)))
	dpkg("--purge", "nfq-ftphelper")
	wantChanged(t, h, "installed and purged,")
}

// TestDebElsewhere installs into the root of another system: the scripts leave this one alone.
func TestDebElsewhere(t *testing.T) {
	h := newHost(t)
	h.do("mkdir", "-p", "/run/other/var/lib/dpkg/info", "/run/other/var/lib/dpkg/updates")
	h.write("/run/other/var/lib/dpkg/status", "", 0o644)
	dpkg := []string{"dpkg", "--root=/run/other", "--force-script-chrootless"}
	h.do(append(dpkg, "--install", h.take(deb(older, "1.2.3", runtime.GOARCH)))...)
	if out := h.do("/run/other/usr/sbin/nfq-ftphelper", "version"); !strings.HasPrefix(out, "nfq-ftphelper v1.2.3") {
		t.Errorf("it says %s", out)
	}
	h.do(append(dpkg, "--purge", "nfq-ftphelper")...)
	if left := h.do("find", "/run/other", "-not", "-type", "d", "-not", "-path", "/run/other/var/lib/dpkg/*", "-not", "-path", "/run/other/var/log/*"); left != "" {
		t.Errorf("purged, there is\n%s", left)
	}
	wantCalls(t, h, "installed and purged elsewhere")
	wantChanged(t, h, "installed and purged elsewhere,")
}

func TestRPM(t *testing.T) {
	h := newHost(t)
	file := h.take(rpm(older, "1.2.3", runtime.GOARCH))
	h.do("rpm", "--checksig", file)
	const config = "/etc/nfq-ftphelper/nfq-ftphelper.yaml"
	flags := h.do("rpm", "-qp", "--queryformat", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", file)
	for _, want := range []string{config + " cn\n", "/usr/share/licenses/nfq-ftphelper/LICENSE l\n"} { // config(noreplace), license
		if !strings.Contains(flags, want) {
			t.Errorf("the files are not marked as %s, but\n%s", want, flags)
		}
	}
	// Debian's rpm installs only if it is told twice.
	install := []string{"rpm", "--force-debian", "--nodeps"}
	out := h.do(append(install, "--install", file)...)
	wantChanged(t, h, "installed,", common, onlyRPM)
	wantCalls(t, h, "installed", "daemon-reload")
	if hint := "systemctl enable --now nfq-ftphelper\n"; !strings.Contains(out, hint) {
		t.Errorf("rpm says nothing of %q:\n%s", hint, out)
	}
	h.do("rpm", "--verify", "--nodeps", "nfq-ftphelper")
	tryInstalled(t, h)

	settings := h.read(config) + "# and a comment\n"
	h.write(config, settings, 0o644)
	h.do(append(install, "--upgrade", h.take(rpm(newer, "1.2.3+5.gb544e49", runtime.GOARCH)))...)
	wantCalls(t, h, "upgraded", "daemon-reload", "daemon-reload", "try-restart nfq-ftphelper.service")
	if got := h.read(config); got != settings {
		t.Errorf("after an upgrade the configuration is\n%s", got)
	}

	h.do(append(install, "--erase", "nfq-ftphelper")...)
	wantCalls(t, h, "removed", "--no-reload disable --now nfq-ftphelper.service", "daemon-reload")
	wantChanged(t, h, "removed,", []string{"drwxr-xr-x /etc/nfq-ftphelper", "-rw-r--r-- " + config + ".rpmsave"})
}

// tryInstalled uses what a package has installed, as one who has installed it would.
func tryInstalled(t *testing.T, h host) {
	t.Helper()
	if out := h.do("nfq-ftphelper", "version"); !strings.HasPrefix(out, "nfq-ftphelper v1.2.3") {
		t.Errorf("it says %s", out)
	}
	h.do("nfq-ftphelper", "config", "check")
	wantLinks(t, h, "/usr/share/doc/nfq-ftphelper")
	// What the Apache License of a module wants passed on.
	if text := h.read("/usr/share/doc/nfq-ftphelper/copyright"); !strings.Contains(text, "SoundCloud Ltd. (http://soundcloud.com/)") {
		t.Errorf("the copyright lacks the modules' notices:\n%s", text)
	}
	for _, page := range []string{"8", "5"} {
		name := map[string]string{"8": "nfq-ftphelper", "5": "nfq-ftphelper.yaml"}[page]
		file := strings.TrimSpace(h.do("man", "--where", page, name))
		for _, check := range [][]string{
			{"mandoc", "-Tlint", "-Wwarning", file},
			{"sh", "-c", "man --warnings -E UTF-8 -l -Tutf8 -Z " + file + " 2>&1 >/dev/null"},
		} {
			if out, err := h.try(check...); err != nil || out != "" {
				t.Errorf("%s: %v\n%s", strings.Join(check, " "), err, out)
			}
		}
	}
	for typed, want := range map[string]string{"rules pr": "print", "run --helper ": "auto carrier cthelper", "run --helper c": "carrier cthelper"} {
		out := h.do("bash", "-c", `. /usr/share/bash-completion/bash_completion
			. /usr/share/bash-completion/completions/nfq-ftphelper
			IFS=' ' read -ra COMP_WORDS <<<"nfq-ftphelper $1"
			[[ $1 != *' ' ]] || COMP_WORDS+=('')
			COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE="nfq-ftphelper $1" COMP_POINT=$((14 + ${#1}))
			__start_nfq-ftphelper nfq-ftphelper "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}" 2>/dev/null # compopt's complaint
			printf '%s' "${COMPREPLY[*]}"`, "bash", typed)
		if got := strings.Join(strings.Fields(out), " "); got != want {
			t.Errorf("bash completes \"nfq-ftphelper %s\" to %q, want %q", typed, got, want)
		}
	}

	// The example of /etc/nftables.conf finds the rules. What it does is tested in package rules.
	const example = "/usr/share/doc/nfq-ftphelper/examples/nftables.conf"
	ruleset, err := os.ReadFile("../../rules/ftp-queue.nft")
	must.Do(t, err)
	const queueStatement = "queue flags bypass"
	statements := strings.Count(string(ruleset), queueStatement)
	out, err := h.try("nft", "--check", "--file", example)
	switch statement := probe(t); {
	case statement == rules.Native && err != nil:
		t.Errorf("nft: %v\n%s", err, out)
	case statement == rules.Compat && (strings.Count(out, "Error: ") != statements || !strings.Contains(out, "/usr/share/nfq-ftphelper/ftp-queue.nft:") ||
		strings.Count(out, queueStatement) != statements):
		t.Errorf("nft fails for another reason than a missing queue statement: %v\n%s", err, out)
	}
}

var markdownLink = regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)

// wantLinks wants the documents of a folder to be those of the source tree, with links that lead to what
// the package has, or to the web.
func wantLinks(t *testing.T, h host, folder string) {
	t.Helper()
	links := 0
	for _, pattern := range []string{"README.md", "docs/*.md"} {
		sources, err := filepath.Glob("../../" + pattern)
		if err != nil || len(sources) == 0 {
			t.Fatalf("%s: %v, %v", pattern, sources, err)
		}
		for _, source := range sources {
			name := filepath.Join(folder, filepath.Dir(pattern), filepath.Base(source))
			for _, link := range markdownLink.FindAllStringSubmatch(h.read(name), -1) {
				links++
				if strings.HasPrefix(link[1], "https://") {
					if path, ours := strings.CutPrefix(link[1], "https://github.com/nfq-ftphelper/nfq-ftphelper/blob/main/"); ours {
						if _, err := os.Stat(filepath.Join("../..", path)); err != nil {
							t.Errorf("%s leads to %s: %v", name, link[1], err)
						}
					}
				} else if _, err := os.Stat(h.path(filepath.Join(filepath.Dir(name), link[1]))); err != nil {
					t.Errorf("%s leads to what is not in the package: %s", name, link[1])
				}
			}
		}
	}
	if links < 20 {
		t.Errorf("the documents have only %d links", links)
	}
}

// probe returns the kernel's queue statement.
func probe(t *testing.T) rules.Statement {
	t.Helper()
	var statement rules.Statement
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			statement, err = rules.ProbeStatement()
		}
	}()
	<-done
	must.Do(t, err)
	return statement
}

// TestLintian has nothing to override but what deb/lintian-overrides says.
func TestLintian(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning", deb(older, "1.2.3", runtime.GOARCH)).CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) != 0 {
		t.Errorf("lintian: %v\n%s", err, out)
	}
}

// TestArchitectures looks at the packages for every processor.
func TestArchitectures(t *testing.T) {
	h := newHost(t)
	for architecture, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		debian, redhat := h.take(deb(older, "1.2.3", architecture)), h.take(rpm(older, "1.2.3", architecture))
		if got := h.do("dpkg-deb", "--field", debian, "Architecture"); got != architecture+"\n" {
			t.Errorf("the deb for %s is for %s", architecture, got)
		}
		if got := h.do("rpm", "-qp", "--queryformat", "%{ARCH}", redhat); got != rpmArchitecture[architecture] {
			t.Errorf("the rpm for %s is for %s", architecture, got)
		}
		h.do("dpkg-deb", "--extract", debian, "/run/"+architecture)
		binary, err := elf.Open(h.path("/run/" + architecture + "/usr/sbin/nfq-ftphelper"))
		must.Do(t, err)
		defer binary.Close()
		if binary.Machine != machine {
			t.Errorf("the binary for %s is for %s", architecture, binary.Machine)
		}
	}
}

// TestVersion: both dpkg and rpm sort versions in the order in which they are made.
func TestVersion(t *testing.T) {
	order := [][2]string{
		{"b544e49", "0~git20261120.b544e49"},
		{"b544e49-dirty", "0~git20261120.b544e49.dirty"},
		{"v0.9", "0.9"},
		{"v1.2.0-rc.1", "1.2.0~rc.1"},
		{"v1.2.0-rc.1-7-gb544e49", "1.2.0~rc.1+7.gb544e49"},
		{"v1.2.0-rc.2", "1.2.0~rc.2"},
		{"v1.2.0", "1.2.0"},
		{"v1.2.0-dirty", "1.2.0+dirty"},
		{"v1.2.1-rc.1", "1.2.1~rc.1"},
		{"v1.2.1", "1.2.1"},
		{"v1.2.1-5-gb544e49", "1.2.1+5.gb544e49"},
		{"v1.2.1-5-gb544e49-dirty", "1.2.1+5.gb544e49.dirty"},
		{"v1.2.1-12-gb544e49", "1.2.1+12.gb544e49"},
		{"v1.10.0", "1.10.0"},
	}
	t.Setenv("SOURCE_DATE_EPOCH", "1795185442")
	for i, v := range order {
		out, err := exec.Command("./version", v[0]).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != v[1] {
			t.Errorf("version %s: %v, %s, not %s", v[0], err, got, v[1])
		}
		if i == 0 {
			continue
		}
		before := order[i-1][1]
		if err := exec.Command("dpkg", "--compare-versions", before+"-1", "lt", v[1]+"-1").Run(); err != nil {
			t.Errorf("dpkg takes %s for older than %s: %v", v[1], before, err)
		}
		out, err = exec.Command("rpm", "--eval", fmt.Sprintf("%%{lua:print(rpm.vercmp(%q, %q))}", before, v[1])).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "-1" {
			t.Errorf("rpm compares %s with %s: %v, %s", before, v[1], err, out)
		}
	}
	for _, wrong := range []string{"", "next", "v1", "v1.2.0-rc-1", "v1.2.0 "} {
		if out, err := exec.Command("./version", wrong).CombinedOutput(); err == nil {
			t.Errorf("version %q: %s", wrong, out)
		}
	}
}
