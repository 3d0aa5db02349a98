// Package systemd tests the unit file beside it with systemd's own tools.
package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

const unitFile = "nfq-ftphelper.service"

// analyze runs systemd-analyze, with units of the folder before those of the system.
func analyze(t *testing.T, dir string, args ...string) (output string, err error) {
	t.Helper()
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatalf("%v; install it with: apt-get install systemd", err)
	}
	cmd := exec.Command(path, append([]string{"--no-pager", "--man=no"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SYSTEMD_UNIT_PATH=" + dir + ":", "LC_ALL=C"}
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// enabled returns a folder in which the unit is enabled, on a host where something waits for the
// network before sysinit.target is reached, as cloud-init does. The unit may be changed before.
func enabled(t *testing.T, change ...string) string {
	t.Helper()
	unit, err := os.ReadFile(unitFile)
	must.Do(t, err)
	if !strings.Contains(string(unit), "\nWantedBy=multi-user.target nftables.service\n") {
		t.Fatal("it is enabled elsewhere than this test believes")
	}
	// The programs have to be there.
	text := strings.NewReplacer(append(change, "/usr/sbin/nfq-ftphelper", "/bin/true")...).Replace(string(unit))
	dir := t.TempDir()
	for name, text := range map[string]string{
		unitFile: text,
		"nftables.service": `# as Debian's
[Unit]
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecReload=/bin/true
`,
		"early-network.service": `[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/true
`,
	} {
		must.Do(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	for _, link := range []string{
		"multi-user.target.wants/" + unitFile, "nftables.service.wants/" + unitFile,
		"sysinit.target.wants/nftables.service", "sysinit.target.wants/early-network.service",
	} {
		must.Do(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(link)), 0o755))
		must.Do(t, os.Symlink(filepath.Join(dir, filepath.Base(link)), filepath.Join(dir, link)))
	}
	// This machine's firewalld, if it has one, waits for sysinit.target, which waits for early-network.service here.
	must.Do(t, os.Symlink("/dev/null", filepath.Join(dir, "firewalld.service")))
	return dir
}

// TestVerify has systemd read the unit, and plan a boot with it.
func TestVerify(t *testing.T) {
	dir := enabled(t)
	for _, unit := range []string{filepath.Join(dir, unitFile), "multi-user.target"} {
		if output, err := analyze(t, dir, "verify", unit); err != nil || output != "" {
			t.Errorf("verify %s: %v\n%s", unit, err, output)
		}
	}
}

// TestVerifyFindsCycle says that a service with the default dependencies could not come before the network.
func TestVerifyFindsCycle(t *testing.T) {
	output, err := analyze(t, enabled(t, "\nDefaultDependencies=no\n", "\n"), "verify", "multi-user.target")
	if !strings.Contains(output, "ordering cycle") {
		t.Errorf("verify: %v\n%s", err, output)
	}
}

// TestSecurity wants systemd's own measure of what the service is exposed to be 2.0 of 10 at most.
func TestSecurity(t *testing.T) {
	measure := func(dir string) (string, error) {
		return analyze(t, dir, "security", "--offline=true", "--threshold=20", filepath.Join(dir, unitFile))
	}
	if output, err := measure(enabled(t)); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
	// This shows that it is measured.
	if output, err := measure(enabled(t, "\nDynamicUser=yes\n", "\n")); err == nil {
		t.Errorf("as root it is not exposed to more:\n%s", output)
	}
}
