package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	v1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// machine is podman on a host of the lab. It has processes and mounts that nobody else has, and that
// end with the test, however that ends; all that podman writes is in the mounts.
type machine struct {
	host *netns.Host
	init *netns.Process
	conf string
}

// podman's usual places; overlays of the image lie in memory, too.
const machineScript = `mount -t proc proc /proc || exit
for dir in /run /dev/shm /var/lib/containers; do
	mkdir -p $dir && mount -t tmpfs tmpfs $dir || exit
done
echo ready
exec catatonit -P
`

// The limits are those that a container's first process may have without CAP_SYS_RESOURCE.
const containersConf = `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
`

func newMachine(t *testing.T, host *netns.Host) *machine {
	t.Helper()
	for _, program := range []string{"podman", "runc", "catatonit"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v; install it with: apt-get install podman runc catatonit", err)
		}
	}
	m := &machine{host: host, conf: filepath.Join(t.TempDir(), "containers.conf")}
	must.Do(t, os.WriteFile(m.conf, []byte(containersConf), 0o600))
	cmd := exec.Command("/bin/sh", "-c", machineScript)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS}
	var err error
	m.init, err = host.Start(cmd)
	must.Do(t, err)
	err = m.init.WaitOutput(testContext(t, 10*time.Second), func(output string) bool { return output == "ready\n" })
	must.Do(t, err)
	t.Cleanup(func() {
		// This removes the control groups; the rest goes with the first process.
		if _, err := m.podman(context.Background(), "pod", "rm", "--all", "--force", "--time", "10"); err != nil {
			t.Error(err)
		}
		if err := m.init.Kill(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// podman runs podman to its end and returns its standard output.
func (m *machine) podman(ctx context.Context, args ...string) (string, error) {
	return m.on(ctx, append([]string{"podman"}, args...)...)
}

// on runs a program on the machine, with its podman, and returns its standard output.
func (m *machine) on(ctx context.Context, command ...string) (string, error) {
	pid := strconv.Itoa(m.init.Pid())
	return m.host.Run(ctx, "", "nsenter", append([]string{"--target", pid, "--pid", "--mount",
		"env", "CONTAINERS_CONF=" + m.conf}, command...)...)
}

// buildImage builds the image of the daemon, from the Containerfile that users have.
func (m *machine) buildImage(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	must.Do(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	must.Do(t, os.Link(daemon(t), filepath.Join(dir, "bin", "nfq-ftphelper")))
	m.build(t, image, filepath.Join(top, "Containerfile"), dir)
}

func (m *machine) build(t *testing.T, tag, file, dir string) {
	t.Helper()
	file, err := filepath.Abs(file)
	must.Do(t, err)
	_, err = m.podman(testContext(t, time.Minute), "build", "--quiet", "--tag", tag, "--file", file, dir)
	must.Do(t, err)
}

// play runs the pod of the manifests that has the daemon, with their ConfigMaps, and waits until
// the daemon says that it is ready. It returns the container with the daemon.
func (m *machine) play(t *testing.T, all objects) container {
	t.Helper()
	w, c := all.helped(t)
	var text []byte
	for _, o := range append(all.configMaps(), w.podmanPod()) {
		y, err := yaml.Marshal(o)
		must.Do(t, err)
		text = append(append(text, "---\n"...), y...)
	}
	file := filepath.Join(t.TempDir(), "pod.yaml")
	must.Do(t, os.WriteFile(file, text, 0o600))
	ctx := testContext(t, 30*time.Second)
	if _, err := m.podman(ctx, "kube", "play", file); err != nil {
		t.Fatal(err)
	}
	d := container{m, w.name + "-" + c.Name}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon says:\n%s", d.logs(context.Background()))
		}
	})
	for !strings.Contains(d.logs(ctx), "msg=ready") {
		select {
		case <-ctx.Done():
			t.Fatalf("the daemon does not become ready:\n%s", d.logs(context.Background()))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return d
}

func (all objects) configMaps() []v1.Object {
	var found []v1.Object
	for _, m := range of[*corev1.ConfigMap](all) {
		found = append(found, m)
	}
	return found
}

// podmanPod is the pod that Kubernetes would make, but for what podman 4.3 cannot do: a pod's network
// is that of the host of the lab, for which it has no network plugin, so that ports, which it would
// forward, are left out; and a container that runs beside the others is one of them. Of kinds it
// knows Pod, and no DaemonSet.
func (w workload) podmanPod() *corev1.Pod {
	pod := &corev1.Pod{
		TypeMeta:   v1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: *w.template.ObjectMeta.DeepCopy(),
		Spec:       *w.template.Spec.DeepCopy(),
	}
	pod.Name = w.name
	pod.Spec.HostNetwork = true
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.RestartPolicy != nil
	})
	pod.Spec.Containers = nil
	for _, c := range w.containers() {
		c.Ports, c.RestartPolicy = nil, nil
		pod.Spec.Containers = append(pod.Spec.Containers, c)
	}
	return pod
}

// container is one that podman runs.
type container struct {
	machine *machine
	name    string
}

// logs is what it has printed.
func (c container) logs(ctx context.Context) string {
	// podman prints each stream of the container to its own.
	text, err := c.machine.on(ctx, "sh", "-c", `podman logs "$0" 2>&1`, c.name)
	if err != nil {
		return err.Error()
	}
	return text
}

// status is that of the container's first process, from /proc.
func (c container) status(t *testing.T) map[string]string {
	t.Helper()
	ctx := testContext(t, 10*time.Second)
	inspected, err := c.machine.podman(ctx, "inspect", c.name)
	must.Do(t, err)
	var containers []struct{ State struct{ Pid int } }
	if err := json.Unmarshal([]byte(inspected), &containers); err != nil || len(containers) != 1 {
		t.Fatalf("podman inspect says %v: %s", err, inspected)
	}
	text, err := c.machine.on(ctx, "cat", fmt.Sprintf("/proc/%d/status", containers[0].State.Pid))
	must.Do(t, err)
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

// wantConfined wants the daemon to have the privileges that the manifests give it, and no others.
func (c container) wantConfined(t *testing.T) {
	t.Helper()
	const netAdmin = "0000000000001000"
	status := c.status(t)
	for name, want := range map[string]string{
		"CapPrm": netAdmin, "CapEff": netAdmin, "CapBnd": netAdmin, "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if status[name] != want {
			t.Errorf("%s is %s, want %s", name, status[name], want)
		}
	}
	t.Logf("memory: %s, at most %s", status["VmRSS"], status["VmHWM"])
}

// cgroups are where podman makes control groups: in one hierarchy (version 2), or in each of several.
const cgroups = "/sys/fs/cgroup"

// holdCgroups says, to other runs of these tests, that podman's control groups are in use. What it
// returns removes those that podman leaves behind, all empty by then, unless such a run goes on.
func holdCgroups() (release func() error, err error) {
	lock, err := os.Open(cgroups)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_SH); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", cgroups, err), lock.Close())
	}
	return func() error {
		defer lock.Close()
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			return nil // the other run removes them
		}
		return removeCgroups()
	}, nil
}

func removeCgroups() error {
	var dirs []string
	for _, pattern := range []string{cgroups + "/libpod_parent", cgroups + "/*/libpod_parent"} {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, root := range roots {
			err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	slices.Reverse(dirs) // those inside first
	for _, dir := range dirs {
		// Busy is one in which somebody else's podman is at work.
		if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("remove the control group %s: %w", dir, err)
		}
	}
	return nil
}

// testContext is done after a time-out, stretched as the lab's are, and at the test's end.
func testContext(t *testing.T, timeout time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), netns.Scale(timeout))
	t.Cleanup(cancel)
	return ctx
}
