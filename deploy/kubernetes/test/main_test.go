// Package kubernetes tests the manifests: that kustomize renders them into objects that Kubernetes
// knows, that these agree with each other and with the daemon, and that they carry FTP when podman
// runs them. It is a module of its own so that the daemon's has nothing of Kubernetes.
package kubernetes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// top is the repository.
const top = "../../.."

var buildDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make network namespaces and containers: run them as root")
		return 1
	}
	release, err := holdCgroups()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := release(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	if buildDir, err = os.MkdirTemp("", "ftphelper-build-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(buildDir)
	return m.Run()
}

// build builds the daemon as the image has it, and returns its path.
var build = sync.OnceValues(func() (string, error) {
	binary, err := filepath.Abs(filepath.Join(buildDir, "nfq-ftphelper"))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-C", top, "-trimpath", "-o", binary, "./cmd/nfq-ftphelper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the daemon: %w\n%s", err, output)
	}
	return binary, nil
})

func daemon(t *testing.T) string {
	t.Helper()
	binary, err := build()
	must.Do(t, err)
	return binary
}
