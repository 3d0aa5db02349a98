package systemd

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestModules loads what the package has loaded at boot: a stock kernel has each of these modules.
func TestModules(t *testing.T) {
	text, err := os.ReadFile("../../deploy/package/modules-load.conf")
	must.Do(t, err)
	args := []string{"--all"}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			args = append(args, strings.TrimSpace(line))
		}
	}
	if out, err := exec.Command("modprobe", args...).CombinedOutput(); err != nil || len(args) < 2 {
		t.Errorf("modprobe %q: %v\n%s", args, err, out)
	}
}
