package kubernetes

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// TestSidecar runs the Deployment's pod, an FTP server with the daemon beside it. The node, in front
// of it, maps the ports of the Service to the pod, and knows nothing of FTP.
func TestSidecar(t *testing.T) {
	t.Parallel()
	all := render(t, overlay("sidecar"))
	w, c := all.helped(t)
	var ports []uint16
	for _, container := range w.template.Spec.Containers {
		for _, p := range container.Ports {
			ports = append(ports, uint16(p.ContainerPort))
		}
	}
	ctx := testContext(t, 2*time.Minute)
	lab, err := netns.New(ctx, netns.Config{Situation: netns.DNAT, Family: netns.IPv4, Helper: netns.None, Ports: ports})
	must.Do(t, err)
	must.CloseAtEnd(t, lab)
	// In the pod, too, a data connection gets through only if it is expected.
	pod := &netns.Router{Host: lab.Server}
	must.Do(t, pod.LoadFirewall(ctx, []uint16{21, 9921}))
	m := newMachine(t, lab.Server)
	m.buildImage(t)
	content := bytes.Repeat([]byte("sidecar\n"), 10_000)
	m.buildServer(t, w.template.Spec.Containers[0].Image, content)
	daemon := m.play(t, all)

	own := lab.Addresses.Server.Addr()
	node := lab.Routers[0].Host
	// The firewall of the lab lets in new connections to these ports only, from the node itself, too.
	must.Do(t, node.Nft(ctx, "add element inet filter ftp { 9921 }"))
	probe(t, node, c, own)
	for _, from := range []struct {
		*netns.Host
		url  string
		told string // in the 227
	}{
		{lab.Client, "ftp://" + lab.ServerAddress.String() + "/f1", "(192,0,2,2,"},
		{node, "ftp://" + own.String() + "/f1", "(192,168,1,2,"},
	} {
		for _, flag := range []string{"--disable-epsv", "--ftp-pasv"} { // PASV, EPSV
			got := filepath.Join(t.TempDir(), "got")
			// curl shows the dialogue on standard error. It would go to the server's address whatever
			// a 227 says, but for the second flag.
			said, err := from.Run(ctx, "", "sh", "-c", `curl "$@" 2>&1`, "curl", "--verbose", "--silent", "--max-time", "10",
				flag, "--no-ftp-skip-pasv-ip", "--output", got, from.url)
			if err != nil {
				t.Errorf("%s from the %s: %v\n%s", flag, from.Name, err, said)
				continue
			}
			if text, err := os.ReadFile(got); err != nil || !bytes.Equal(text, content) {
				t.Errorf("%s from the %s: %d bytes arrived, want %d, or others; %v", flag, from.Name, len(text), len(content), err)
			}
			if flag == "--disable-epsv" && !strings.Contains(said, from.told) {
				t.Errorf("the %s was not told %s:\n%s", from.Name, from.told, said)
			}
		}
	}
	if invalid, err := pod.Invalid(ctx); err != nil || invalid > 0 {
		t.Errorf("conntrack found %d packets invalid, %v", invalid, err)
	}
	daemon.wantConfined(t)
}

// serverConf is that of an FTP server in a container. What it announces is its own address.
const serverConf = `background=NO
listen=YES
anonymous_enable=YES
anon_root=/srv
secure_chroot_dir=/empty
isolate=NO
isolate_network=NO
seccomp_sandbox=NO
pasv_min_port=30000
pasv_max_port=30003
`

// vsftpd crashes on the end of a process that it did not start, as a first process must not.
const serverContainerfile = `FROM scratch
COPY . /
ENTRYPOINT ["/catatonit", "--", "/vsftpd", "/vsftpd.conf"]
`

var library = regexp.MustCompile(`/\S+`)

// buildServer builds an image with vsftpd, the libraries that it needs, and one file to download.
func (m *machine) buildServer(t *testing.T, tag string, content []byte) {
	t.Helper()
	const catatonit = "/usr/bin/catatonit"
	vsftpd, err := netns.FindProgram("vsftpd")
	must.Do(t, err)
	linked, err := exec.Command("ldd", vsftpd).Output()
	if err != nil {
		t.Fatalf("the libraries of %s: %v", vsftpd, err)
	}
	files := map[string][]byte{
		"Containerfile": []byte(serverContainerfile),
		"vsftpd.conf":   []byte(serverConf),
		"etc/passwd":    []byte("root:x:0:0::/:\nnobody:x:65534:65534::/empty:\nftp:x:100:65534::/srv:\n"),
		"etc/group":     []byte("root:x:0:\nnogroup:x:65534:\n"),
		"empty/.keep":   nil,
		"srv/f1":        content,
	}
	sources := map[string]string{"vsftpd": vsftpd, "catatonit": catatonit}
	for _, path := range library.FindAllString(string(linked), -1) {
		sources[path] = path
	}
	for name, source := range sources {
		files[name], err = os.ReadFile(source)
		must.Do(t, err)
	}
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		must.Do(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must.Do(t, os.WriteFile(path, text, 0o755))
	}
	m.build(t, tag, filepath.Join(dir, "Containerfile"), dir)
}
