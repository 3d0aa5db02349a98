package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// The tests in this file have many FTP programs talk to each other, each in its own way.

// ftpServer is a server program.
type ftpServer struct {
	name string
	// run is the end of a shell script that becomes the server, on port 21 of $any. The home of
	// the user "ftp" is the site's $root, and $dir is for the server's files. Without one it is a Site's vsftpd.
	run string
	// settings are further ones of vsftpd.
	settings []string
	// clients are the only ones to try, by name, and their verbs with this server. Without any it is all clients, with their own verbs.
	clients map[string][2]string
}

// Parts of such scripts: most servers are made for inetd, and some have /bin/ls write the listings.
const (
	inetd = `exec systemd-socket-activate --inetd --accept --listen=$any:21 `
	// Anonymous users are "ftp" to these servers: the site's owner by another name.
	userFTP = `{ sed /^ftp:/d /etc/passwd; echo "ftp:x:$(id -u ` + anonymous + `):$(id -g ` + anonymous + `)::$root:/bin/sh"; } >$dir/passwd
		mount --bind $dir/passwd /etc/passwd
		`
	listings = `mkdir $root/bin; cp "$(command -v busybox)" $root/bin/ls; `
)

var ftpServers = []ftpServer{
	{name: "vsftpd"},
	{name: "vsftpd without EPSV", settings: []string{"cmds_denied=EPSV"}, clients: map[string][2]string{"Java": {"227"}}},
	{name: "vsftpd without PASV", settings: []string{"pasv_enable=NO"}, clients: map[string][2]string{"Java": {"EPRT", "EPRT"}}},
	{name: "pure-ftpd", run: `exec pure-ftpd -$family -e -H -S 21`},
	// By itself it would take no connection for 0.4 s after each session.
	{name: "proftpd", run: `printf '%s\n' 'ServerType inetd' 'AuthPAM off' 'UseReverseDNS off' 'DelayEngine off' \
		'WtmpLog none' 'TransferLog none' 'ScoreboardFile none' "SystemLog $dir/log" '<Anonymous ~ftp>' \
		'User ftp' 'Group nogroup' 'UserAlias anonymous ftp' 'RequireValidShell off' '</Anonymous>' >$dir/conf
		` + inetd + `proftpd -q -c $dir/conf`},
	{name: "inetutils-ftpd", run: listings + inetd + `ftpd -A`},
	{name: "ftpd-ssl", run: `mkdir $dir/pam.d; mount --bind $dir/pam.d /etc/pam.d
		printf '%s required pam_permit.so\n' 'auth sufficient pam_ftp.so
auth' account session >/etc/pam.d/ftp
		` + listings + inetd + `in.ftpd`},
	{name: "pyftpdlib", run: `exec python3 -m pyftpdlib -i $address -p 21 -w -d $root`},
	// Its replies to PASV and EPSV have two lines. It has no NLST, and no active transfers.
	{name: "aioftp", run: `exec python3 -m aioftp --family ipv$family --host "$(hostname -I | tr -d ' ')" --port 21 -d $root`,
		clients: map[string][2]string{"curl": {"229", "229"}, "curl, PASV": {"227"}, "lftp": {"227", "229"}, "ftplib": {"227", "229"}}},
}

// start starts the server with a site's files, until the test's end.
func (s ftpServer) start(t *testing.T, h *Host, f Family) *Site {
	t.Helper()
	if s.run == "" {
		return startSite(t, h, f, SiteOptions{Settings: s.settings})
	}
	dir, err := os.MkdirTemp("", "ftp-site-")
	must.Do(t, err)
	site := &Site{dir: dir, port: 21}
	must.CloseAtEnd(t, site)
	must.Do(t, site.fill())
	any := map[Family]string{IPv4: "0.0.0.0", IPv6: "::"}[f]
	listen := map[Family]string{IPv4: any, IPv6: "[" + any + "]"}[f]
	cmd := exec.Command("/bin/sh", "-ec", userFTP+s.run)
	cmd.Env = []string{
		"PATH=" + strings.Join(append(unpackedServers(), "/usr/sbin:/usr/bin:/sbin:/bin"), ":"), "HOME=" + dir, "LC_ALL=C",
		"root=" + site.root(), "dir=" + dir, "any=" + listen, "address=" + any, fmt.Sprintf("family=%d", f),
	}
	site.process, err = startApart(h, cmd)
	must.Do(t, err)
	if err := site.waitReady(testContext(t, 30*time.Second), h, f); err != nil {
		t.Fatalf("%s (unpacked by test/unpack): %v\n%s", s.name, err, site.process.Output())
	}
	return site
}

// startApart starts a shell script whose mounts nobody else sees, and all of whose processes die
// with it. What it writes into /run and /var/log is gone then, and names are not looked up in the
// machine's DNS, which the lab does not reach.
func startApart(h *Host, cmd *exec.Cmd) (*Process, error) {
	cmd.Args[2] = "mount -t tmpfs run /run; mount -t tmpfs log /var/log; touch /var/log/wtmp; " +
		"[ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf; " + cmd.Args[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS}
	return h.Start(cmd)
}

// ftpClient is a client program in one of its modes.
type ftpClient struct {
	name string
	// verbs say how its data connections are announced over IPv4 and IPv6; "" is not at all.
	verbs [2]string
	// operations are those that the script makes: it downloads the site's file as "got", puts a
	// listing into "listing", and uploads "send" as upload/$up. $url is the server's.
	operations []Operation
	script     string
	// servers are those that the mode works with, if not all.
	servers []string
}

// What the scripts have in common, with a mode in the place of each %s.
const (
	curl = `c() { curl -q -sS %s "$@"; }
		c -o got $url/f1; c -o listing $url/list/; c -T send $url/upload/$up`
	lftp  = `lftp --norc -c "%s open $url; get f1 -o got; cls -1 list/ >listing; put send -o upload/$up"`
	tnftp = `printf '%%s\n' '%s' 'get f1 got' 'ls list listing' "put send upload/$up" bye | tnftp -ai %s $host`
	ncftp = `cp send $up; ncftpget -r 1 %[1]s $url/f1; mv f1 got
		ncftpls -l -r 1 %[1]s $url/list/ >listing; ncftpput -r 1 %[1]s $host upload $up`
	berkeley = `printf '%%s\n' 'user anonymous x' binary '%[2]s' 'get f1 got' 'ls list listing' "put send upload/$up" bye |
		%[1]s -i -n $host`
	wget = `head -c 30000 $root/f1 >got; w() { wget --no-config -nv -t1 %s "$@"; }
		w -c -O got $url/f1; w -O listing $url/list/`
	// Where "150" and "226" come together it waits for the latter until its time is out.
	aria2  = `aria2c -q --no-conf -t2 %s -o got $url/f1`
	ftplib = `python3 -c '
import ftplib, os
f = ftplib.FTP(os.environ["host"], timeout=20)
f.login()
f.set_pasv(%s)
with open("got", "wb") as got: f.retrbinary("RETR f1", got.write)
with open("listing", "w") as listing: f.retrlines("LIST list", listing.write)
with open("send", "rb") as send: f.storbinary("STOR upload/" + os.environ["up"], send)
f.quit()'`
	// Some routers write P@SW into their clients' commands.
	maskedPASV = `python3 -c '
import ftplib, os
class FTP(ftplib.FTP):
    def sendcmd(self, cmd): return super().sendcmd("P@SW" if cmd == "PASV" else cmd)
f = FTP(os.environ["host"], timeout=20)
f.login()
with open("got", "wb") as got: f.retrbinary("RETR f1", got.write)
f.quit()'`
	// EPSV ALL comes first; where that is refused PASV, EPRT and PORT follow, in this order.
	java = `cat >get.bsh <<END
import java.nio.file.*;
get(path, file) { Files.copy(new URL("$url/" + path).openStream(), Paths.get(file, new String[0]), new CopyOption[0]); }
get("f1", "got"); get("list/", "listing");
END
		java -XX:TieredStopAtLevel=1 -cp /usr/share/java/bsh.jar bsh.Interpreter get.bsh`
	netFTP = `perl -MNet::FTP -e '
$f = Net::FTP->new($ENV{host}, Timeout => 20, Passive => %s) or die $@;
$f->login && $f->binary or die $f->message;
%s
$f->get("f1", "got") && $f->put("send", "upload/$ENV{up}") or die $f->message;
open L, ">", "listing"; print L "$_\n" for $f->ls("list"); close L;
$f->quit'`
	// In the course of this, Telnet's IP and Synch go as urgent data.
	abort  = `$d = $f->retr("big") or die $f->message; $d->read($x, 1000); $d->abort;`
	rclone = `r() { rclone --config= --ftp-host $bracketed --ftp-user anonymous --ftp-pass "$(rclone obscure x)" "$@"; }
		r copyto :ftp:f1 got; r lsf :ftp:list >listing; r copyto send :ftp:upload/$up`
)

var ftpClients = []ftpClient{
	{"curl", [2]string{"229", "229"}, Operations, fmt.Sprintf(curl, ""), nil},
	{"curl, PASV", [2]string{"227", ""}, Operations, fmt.Sprintf(curl, "--disable-epsv --no-ftp-skip-pasv-ip"), nil},
	{"curl, active", [2]string{"EPRT", "EPRT"}, Operations, fmt.Sprintf(curl, "-P -"), nil},
	{"curl, PORT", [2]string{"PORT", ""}, Operations, fmt.Sprintf(curl, "-P - --disable-eprt"), nil},
	{"lftp", [2]string{"227", "229"}, Operations, fmt.Sprintf(lftp, ""), nil},
	{"lftp, active", [2]string{"PORT", "EPRT"}, Operations, fmt.Sprintf(lftp, "set ftp:passive-mode no;"), nil},
	{"lftp, mirror", [2]string{"227", "229"}, []Operation{Listing},
		`lftp --norc -c "open $url; mirror -P 8 list mirrored"; diff -r mirrored $root/list && ls mirrored >listing`, nil},
	{"tnftp", [2]string{"229", "229"}, Operations, fmt.Sprintf(tnftp, "", ""), nil},
	{"tnftp, PASV", [2]string{"227", ""}, Operations, fmt.Sprintf(tnftp, "epsv4", ""), nil},
	{"tnftp, active", [2]string{"EPRT", "EPRT"}, Operations, fmt.Sprintf(tnftp, "", "-A"), nil},
	{"tnftp, PORT", [2]string{"PORT", ""}, Operations, fmt.Sprintf(tnftp, "epsv4", "-A"), nil},
	{"ncftp", [2]string{"227", ""}, Operations, fmt.Sprintf(ncftp, ""), nil},
	{"ncftp, active", [2]string{"PORT", ""}, Operations, fmt.Sprintf(ncftp, "-E"), nil},
	{"inetutils-ftp", [2]string{"PORT", "EPRT"}, Operations, fmt.Sprintf(berkeley, "inetutils-ftp", ""), nil},
	{"inetutils-ftp, passive", [2]string{"227", "229"}, Operations, fmt.Sprintf(berkeley, "inetutils-ftp", "passive"), nil},
	{"ftp-ssl", [2]string{"PORT", "EPRT"}, Operations, fmt.Sprintf(berkeley, "ftp-ssl -z nossl", ""), nil},
	{"ftp-ssl, passive", [2]string{"227", "229"}, Operations, fmt.Sprintf(berkeley, "ftp-ssl -z nossl", "passive"), nil},
	{"wget", [2]string{"227", "229"}, []Operation{Download, Listing}, fmt.Sprintf(wget, ""), nil},
	{"wget, active", [2]string{"PORT", "EPRT"}, []Operation{Download, Listing}, fmt.Sprintf(wget, "--no-passive-ftp"), nil},
	{"aria2", [2]string{"227", "229"}, []Operation{Download}, fmt.Sprintf(aria2, ""), nil},
	{"aria2, active", [2]string{"PORT", "EPRT"}, []Operation{Download}, fmt.Sprintf(aria2, "--ftp-pasv=false"), nil},
	{"busybox", [2]string{"229", "229"}, []Operation{Download, Upload},
		`busybox ftpget $host got f1; busybox ftpput $host upload/$up send`, nil},
	{"ftplib", [2]string{"227", "229"}, Operations, fmt.Sprintf(ftplib, "True"), nil},
	{"ftplib, active", [2]string{"PORT", "EPRT"}, Operations, fmt.Sprintf(ftplib, "False"), nil},
	{"ftplib, P@SW", [2]string{"227", ""}, []Operation{Download}, maskedPASV, []string{"vsftpd", "pure-ftpd"}},
	{"Java", [2]string{"229", "229"}, []Operation{Download, Listing}, java, []string{"vsftpd"}},
	{"Net::FTP", [2]string{"227", "229"}, Operations, fmt.Sprintf(netFTP, "1", ""), nil},
	{"Net::FTP, active", [2]string{"PORT", "EPRT"}, Operations, fmt.Sprintf(netFTP, "0", ""), nil},
	// The other servers answer too late, or die of it, without a router, too.
	{"Net::FTP, abort", [2]string{"227", "229"}, Operations, fmt.Sprintf(netFTP, "1", abort), []string{"vsftpd", "pyftpdlib"}},
	{"Net::FTP, active abort", [2]string{"PORT", "EPRT"}, Operations, fmt.Sprintf(netFTP, "0", abort), []string{"vsftpd", "pyftpdlib"}},
	{"rclone", [2]string{"229", "229"}, Operations, rclone, nil},
}

// verb says how the data connections of a client are announced, "" if the client is not to be tried.
func (s ftpServer) verb(c ftpClient, f Family) string {
	n := slices.Index(Families, f)
	switch {
	case s.clients != nil:
		return s.clients[c.name][n]
	case c.servers != nil && !slices.Contains(c.servers, s.name):
		return ""
	}
	return c.verbs[n]
}

// run runs the client, and returns an error unless all that it was to transfer has arrived. What
// the client itself says of that does not count: some complain of the server when all is done.
func (c ftpClient) run(t *testing.T, lab *Lab, f Family, site *Site, timeout time.Duration) error {
	dir, number := t.TempDir(), uploadCount.Add(1)
	sent, up := randomBytes(number, 50_000), fmt.Sprintf("file-%d", number)
	if err := os.WriteFile(filepath.Join(dir, "send"), sent, 0o600); err != nil {
		return err
	}
	host := lab.ServerAddress.String()
	bracketed := map[Family]string{IPv4: host, IPv6: "[" + host + "]"}[f]
	cmd := exec.Command("/bin/sh", "-c", c.script)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=/usr/bin:/bin", "LC_ALL=C", "HOME=" + dir,
		"host=" + host, "bracketed=" + bracketed, "url=ftp://" + bracketed, "root=" + site.root(), "up=" + up,
	}
	process, err := startApart(lab.Client, cmd)
	if err != nil {
		return err
	}
	defer lab.Client.forget(process)
	ctx, cancel := context.WithTimeout(t.Context(), Scale(timeout))
	defer cancel()
	_ = process.Wait(ctx)
	if err := process.Kill(); err != nil {
		return err
	}
	var missing error
	for _, operation := range c.operations {
		switch operation {
		case Download:
			if got, err := os.ReadFile(filepath.Join(dir, "got")); err != nil || !bytes.Equal(got, site.Content) {
				missing = errors.Join(missing, fmt.Errorf("it got %d bytes, or others than it should (%v)", len(got), err))
			}
		case Upload:
			missing = errors.Join(missing, site.checkUpload(up, sent))
		case Listing:
			listing, err := os.ReadFile(filepath.Join(dir, "listing"))
			entries := bytes.Count(listing, []byte("entry-"))
			for i := range 60 {
				if !bytes.Contains(listing, fmt.Appendf(nil, "entry-%02d.txt", i)) {
					missing = errors.Join(missing, fmt.Errorf("the listing has %d entries, and not number %d (%v)", entries, i, err))
					break
				}
			}
		}
	}
	if missing != nil {
		return errors.Join(missing, ctx.Err(), errors.New(process.Output()))
	}
	return nil
}

// TestPrograms has each client talk to each server, through NAT on both sides. That is a matter of
// the programs rather than of the kernel, so make test-kernels leaves it out.
func TestPrograms(t *testing.T) {
	t.Parallel()
	for _, server := range ftpServers {
		for _, family := range Families {
			if !slices.ContainsFunc(ftpClients, func(c ftpClient) bool { return server.verb(c, family) != "" }) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", server.name, family), func(t *testing.T) {
				t.Parallel()
				tryClients(t, server, family)
			})
		}
	}
	t.Run("None", func(t *testing.T) {
		t.Parallel()
		wantNoClientHelped(t)
	})
}

func tryClients(t *testing.T, server ftpServer, family Family) {
	lab := newLab(t, Config{Situation: DNATMasquerade, Family: family, Helper: Ours})
	site := server.start(t, lab.Server, family)
	// Too much for all buffers on the way, so that it can be aborted.
	must.Do(t, os.WriteFile(filepath.Join(site.root(), "big"), make([]byte, 32<<20), 0o644))
	router := lab.ServerRouter()
	before := parseSamples(t, scrape(t, router))
	for _, client := range ftpClients {
		want := server.verb(client, family)
		if want == "" {
			continue
		}
		if err := client.run(t, lab, family, site, 30*time.Second); err != nil {
			t.Errorf("%s: %v", client.name, err)
		}
		after := parseSamples(t, scrape(t, router))
		for _, verb := range []string{"PORT", "EPRT", "227", "229"} {
			series := fmt.Sprintf("endpoints_total{verb=%q}", verb)
			if n := after[series] - before[series]; n > 0 != (verb == want) {
				t.Errorf("%s: %v endpoints were announced by %s; want some by %s only", client.name, n, verb, want)
			}
		}
		before = after
	}
	wantNothingInvalid(t, lab.Routers...)
	wantAllHelped(t, lab.Routers...)
}

// announcement is what a server's log has of a data connection that is announced.
var announcement = regexp.MustCompile(`FTP command: Client "[^"]*", "(?:PORT|EPRT) |FTP response: Client "[^"]*", "22[79] `)

// wantNoClientHelped has all clients fail without a helper, all at the same time because some of
// them wait for what never comes.
func wantNoClientHelped(t *testing.T) {
	lab := newLab(t, Config{Situation: DNATMasquerade, Family: IPv4, Helper: None})
	site := ftpServers[0].start(t, lab.Server, IPv4)
	var clients sync.WaitGroup
	for _, client := range ftpClients {
		clients.Go(func() {
			if client.run(t, lab, IPv4, site, 2*failingTimeout) == nil {
				t.Errorf("%s works without a helper", client.name)
			}
		})
	}
	clients.Wait()
	if n := len(announcement.FindAllString(site.Log(), -1)); n < len(ftpClients) {
		t.Errorf("%d data connections were announced by %d clients:\n%s", n, len(ftpClients), site.Log())
	}
}
