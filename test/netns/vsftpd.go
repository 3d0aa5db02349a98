package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Site is a vsftpd with anonymous files in a temporary folder: one to download,
// a folder to list, a folder that takes uploads.
type Site struct {
	dir     string
	port    uint16
	process *Process
	// Content is that of the file to download.
	Content []byte
	// Listing is what LIST shows of the folder to list, with \n at each line's end.
	Listing string
}

// The names in a site.
const (
	siteFile   = "f1"
	siteFolder = "list"
	siteUpload = "upload"
)

// SiteOptions are what tests set of a site.
type SiteOptions struct {
	// Port is where it listens; 21 if it is 0.
	Port uint16
	// Settings are further lines of vsftpd's configuration.
	Settings []string
}

// isolate would put each session into a network namespace of its own, and
// without the sandbox off vsftpd dies on newer kernels.
const vsftpdConfig = `background=NO
listen=%s
listen_ipv6=%s
listen_port=%d
isolate=NO
isolate_network=NO
seccomp_sandbox=NO
tcp_wrappers=NO
anonymous_enable=YES
ftp_username=%s
local_enable=NO
anon_root=%s
secure_chroot_dir=%s
write_enable=YES
anon_upload_enable=YES
anon_umask=022
anon_max_rate=0
connect_from_port_20=YES
xferlog_enable=YES
dual_log_enable=NO
log_ftp_protocol=YES
vsftpd_log_file=%s
connect_timeout=%d
accept_timeout=%d
data_connection_timeout=%d
idle_session_timeout=%d
`

// StartSite starts vsftpd on a host and waits until it takes connections.
func StartSite(ctx context.Context, h *Host, family Family, options SiteOptions) (*Site, error) {
	dir, err := os.MkdirTemp("", "ftp-site-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for vsftpd: %w", err)
	}
	s := &Site{dir: dir, port: options.Port}
	if s.port == 0 {
		s.port = 21
	}
	if err := s.start(ctx, h, family, options.Settings); err != nil {
		return nil, errors.Join(fmt.Errorf("start vsftpd on the %s: %w", h.Name, err), s.Close())
	}
	return s, nil
}

func (s *Site) start(ctx context.Context, h *Host, family Family, settings []string) error {
	if err := s.fill(); err != nil {
		return err
	}
	yesIf := map[bool]string{true: "YES", false: "NO"}
	seconds := func(d time.Duration) int { return int(Scale(d) / time.Second) }
	config := filepath.Join(s.dir, "vsftpd.conf")
	text := fmt.Sprintf(vsftpdConfig, yesIf[family == IPv4], yesIf[family == IPv6], s.port,
		anonymous, s.root(), filepath.Join(s.dir, "empty"), s.log(),
		seconds(4*time.Second), seconds(4*time.Second), seconds(10*time.Second), seconds(60*time.Second)) +
		strings.Join(settings, "\n") + "\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	path, err := FindProgram("vsftpd")
	if err != nil {
		return err
	}
	// In a process namespace all sessions die with the first process. That is a
	// shell because vsftpd crashes on the end of a process that it did not start.
	cmd := exec.Command("/bin/sh", "-c", `"$0" "$1"; exit $?`, path, config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	// vsftpd complains on what would be its control connection under inetd.
	complaints, err := os.OpenFile(s.complaints(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer complaints.Close()
	cmd.Stdin = complaints
	if s.process, err = h.Start(cmd); err != nil {
		return err
	}
	return s.waitReady(ctx, h, family)
}

// anonymous is the user that servers become for their clients: every machine has it, with a home.
const anonymous = "daemon"

// fill makes the files. The folders above them must be open to the user [anonymous].
func (s *Site) fill() error {
	owner, err := user.Lookup(anonymous)
	if err != nil {
		return err
	}
	uid, errUID := strconv.Atoi(owner.Uid)
	gid, errGID := strconv.Atoi(owner.Gid)
	upload, folder := filepath.Join(s.root(), siteUpload), filepath.Join(s.root(), siteFolder)
	if err := errors.Join(errUID, errGID,
		os.Chmod(s.dir, 0o711),
		os.MkdirAll(filepath.Join(s.dir, "empty"), 0o755),
		os.MkdirAll(upload, 0o755),
		os.Chown(upload, uid, gid),
		os.MkdirAll(folder, 0o755),
	); err != nil {
		return err
	}
	s.Content = randomBytes(1, 100_000)
	if err := os.WriteFile(filepath.Join(s.root(), siteFile), s.Content, 0o644); err != nil {
		return err
	}
	// More than fits in one segment, and old enough to be listed by year.
	date := time.Date(2020, time.February, 3, 4, 5, 6, 0, time.UTC)
	var listing strings.Builder
	for i := range 60 {
		name := fmt.Sprintf("entry-%02d.txt", i)
		path := filepath.Join(folder, name)
		if err := errors.Join(os.WriteFile(path, make([]byte, i), 0o644), os.Chtimes(path, date, date)); err != nil {
			return err
		}
		fmt.Fprintf(&listing, "-rw-r--r--    1 0        0        %8d Feb 03  2020 %s\n", i, name)
	}
	s.Listing = listing.String()
	return nil
}

func (s *Site) waitReady(ctx context.Context, h *Host, family Family) error {
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.port)
	if family == IPv6 {
		at = netip.AddrPortFrom(netip.IPv6Loopback(), s.port)
	}
	ctx, cancel := context.WithTimeout(ctx, Scale(10*time.Second))
	defer cancel()
	for {
		listening := false
		err := h.Do(func() (err error) {
			listening, err = listens(at.Port(), family)
			return err
		})
		if err != nil {
			return err
		}
		if listening {
			return nil
		}
		select {
		case <-s.process.done:
			complaints, _ := os.ReadFile(s.complaints())
			return fmt.Errorf("it ended: %v: %s", s.process.err, complaints)
		case <-ctx.Done():
			return fmt.Errorf("it does not listen on port %d: %w", s.port, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// listens says whether there is a listener on a port in this thread's namespace.
// To try a connection would leave its trace in conntrack.
func listens(port uint16, family Family) (bool, error) {
	file := "/proc/thread-self/net/tcp"
	if family == IPv6 {
		file += "6"
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		const stateListen = "0A"
		if len(fields) > 3 && fields[3] == stateListen && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			return true, nil
		}
	}
	return false, nil
}

func (s *Site) root() string { return filepath.Join(s.dir, "root") }

func (s *Site) log() string { return filepath.Join(s.dir, "log") }

func (s *Site) complaints() string { return filepath.Join(s.dir, "complaints") }

// Log is the dialogue as vsftpd saw it.
func (s *Site) Log() string {
	text, err := os.ReadFile(s.log())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// checkUpload compares an uploaded file with what it should be.
func (s *Site) checkUpload(name string, want []byte) error {
	got, err := os.ReadFile(filepath.Join(s.root(), siteUpload, name))
	if err != nil {
		return fmt.Errorf("the uploaded file: %w", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the uploaded file has %d bytes, want %d, or others", len(got), len(want))
	}
	return nil
}

// Close stops vsftpd with all its sessions and removes its files.
func (s *Site) Close() error {
	var err error
	if s.process != nil {
		err = s.process.Kill()
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// randomBytes are always the same for a seed.
func randomBytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	content := make([]byte, n)
	rand.NewChaCha8(key).Read(content)
	return content
}
