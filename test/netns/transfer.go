package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Verb is the command that arranges a data connection.
type Verb string

// The verbs: the first two have the server connect to the client, the last two
// the client to the server.
const (
	PORT Verb = "PORT"
	EPRT Verb = "EPRT"
	PASV Verb = "PASV"
	EPSV Verb = "EPSV"
)

// Verbs lists them all.
var Verbs = []Verb{PORT, EPRT, PASV, EPSV}

func (v Verb) active() bool { return v == PORT || v == EPRT }

// Operation is what a data connection is used for.
type Operation string

// The operations.
const (
	Download Operation = "download"
	Upload   Operation = "upload"
	Listing  Operation = "listing"
)

// Operations lists them all.
var Operations = []Operation{Download, Upload, Listing}

// Program is an FTP client.
type Program string

// The clients.
const (
	Curl Program = "curl"
	Lftp Program = "lftp"
)

// Programs lists them all.
var Programs = []Program{Curl, Lftp}

// Can says whether the client has the verb in the family: lftp sends EPRT over
// IPv6 only.
func (p Program) Can(v Verb, f Family) bool {
	return p != Lftp || v != EPRT || f == IPv6
}

// Transfer is one file or listing to be transferred by an FTP client.
type Transfer struct {
	Program   Program
	Verb      Verb
	Operation Operation
	// Server is where the client reaches the site.
	Server netip.Addr
	Site   *Site
	// Timeout is that of the client for each connection and for the whole; it is
	// stretched by [Scale].
	Timeout time.Duration
}

// Outcome is how a transfer went.
type Outcome struct {
	// Err is nil if the right bytes arrived over a data connection that was
	// arranged by the right verb, and no other.
	Err error
	// Verbs are those on the wire, each once.
	Verbs []Verb
	// LoggedIn says that the control connection worked up to there.
	LoggedIn bool
	// Transcript is what the client printed.
	Transcript string
}

// Both clients show what they send, each with its own mark before it.
var (
	sentVerb    = regexp.MustCompile(`(?m)^(?:>|--->) (PORT|EPRT|PASV|EPSV)\b`)
	loggedIn    = regexp.MustCompile(`(?m)^(?:<|<---) 230 `)
	uploadCount atomic.Uint64
)

// Run makes the transfer from a host.
func (t Transfer) Run(ctx context.Context, from *Host) Outcome {
	dir, err := os.MkdirTemp("", "ftp-client-")
	if err != nil {
		return Outcome{Err: fmt.Errorf("make a folder for %s: %w", t.Program, err)}
	}
	defer os.RemoveAll(dir)

	number := uploadCount.Add(1)
	files := clientFiles{
		dir:        dir,
		got:        filepath.Join(dir, "got"),
		toSend:     filepath.Join(dir, "to-send"),
		uploadName: fmt.Sprintf("file-%d", number),
	}
	content := randomBytes(number, 50_000)
	if err := os.WriteFile(files.toSend, content, 0o600); err != nil {
		return Outcome{Err: err}
	}
	arguments := t.curl
	if t.Program == Lftp {
		arguments = t.lftp
	}
	transcript, runErr := t.run(ctx, from, files, arguments(files))
	outcome := Outcome{Transcript: transcript, LoggedIn: loggedIn.MatchString(transcript)}
	for _, match := range sentVerb.FindAllStringSubmatch(transcript, -1) {
		if verb := Verb(match[1]); !slices.Contains(outcome.Verbs, verb) {
			outcome.Verbs = append(outcome.Verbs, verb)
		}
	}
	if runErr != nil {
		outcome.Err = runErr
		return outcome
	}
	outcome.Err = errors.Join(t.checkVerb(outcome.Verbs), t.checkBytes(files, content))
	return outcome
}

type clientFiles struct {
	dir, got, toSend, uploadName string
}

func (t Transfer) run(ctx context.Context, from *Host, files clientFiles, args []string) (string, error) {
	path, err := FindProgram(string(t.Program))
	if err != nil {
		return "", err
	}
	// The client has time-outs of its own; this is for one that hangs.
	ctx, cancel := context.WithTimeout(ctx, 2*Scale(t.Timeout)+Scale(5*time.Second))
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = files.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "HOME=" + files.dir}
	process, err := from.Start(cmd)
	if err != nil {
		return "", err
	}
	defer from.forget(process)
	<-process.done
	text := process.Output()
	if process.err != nil {
		return text, fmt.Errorf("%s: %w", t.Program, process.err)
	}
	return text, nil
}

func (t Transfer) checkVerb(verbs []Verb) error {
	if !slices.Equal(verbs, []Verb{t.Verb}) {
		return fmt.Errorf("%s was to use %s and used %v", t.Program, t.Verb, verbs)
	}
	return nil
}

func (t Transfer) checkBytes(files clientFiles, sent []byte) error {
	if t.Operation == Upload {
		return t.Site.checkUpload(files.uploadName, sent)
	}
	got, err := os.ReadFile(files.got)
	if err != nil {
		return err
	}
	want := t.Site.Content
	if t.Operation == Listing {
		got, want = bytes.ReplaceAll(got, []byte("\r\n"), []byte("\n")), []byte(t.Site.Listing)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s got %d bytes, want %d, or others", t.Program, len(got), len(want))
	}
	return nil
}

// curl tries EPSV and EPRT before their elders, and by itself distrusts the
// address in a 227.
func (t Transfer) curl(files clientFiles) []string {
	seconds := fmt.Sprintf("%.3f", Scale(t.Timeout).Seconds())
	args := []string{"-q", "-v", "-sS", "--no-ftp-skip-pasv-ip", "-o", files.got, "--connect-timeout", seconds, "--max-time", seconds}
	switch t.Verb {
	case PORT:
		args = append(args, "--ftp-port", "-", "--disable-eprt")
	case EPRT:
		args = append(args, "--ftp-port", "-")
	case PASV:
		args = append(args, "--disable-epsv")
	}
	root := "ftp://" + netip.AddrPortFrom(t.Server, t.Site.port).String() + "/"
	switch t.Operation {
	case Download:
		args = append(args, root+siteFile)
	case Upload:
		args = append(args, "-T", files.toSend, root+siteUpload+"/"+files.uploadName)
	case Listing:
		args = append(args, root+siteFolder+"/")
	}
	return args
}

func (t Transfer) lftp(files clientFiles) []string {
	yesIf := map[bool]string{true: "yes", false: "no"}
	settings := [][2]string{
		{"cmd:fail-exit", "yes"},
		{"ftp:passive-mode", yesIf[!t.Verb.active()]},
		{"ftp:prefer-epsv", yesIf[t.Verb == EPSV]},
		{"ftp:auto-passive-mode", "no"},
		{"ftp:fix-pasv-address", "no"},
		{"ftp:ignore-pasv-address", "no"},
		{"ftp:ssl-allow", "no"},
		{"net:timeout", fmt.Sprintf("%.0f", max(1, Scale(t.Timeout).Seconds()))},
		{"net:max-retries", "1"},
		{"net:persist-retries", "0"},
		{"xfer:clobber", "yes"},
		{"dns:fatal-timeout", "60"},
	}
	var script strings.Builder
	for _, setting := range settings {
		fmt.Fprintf(&script, "set %s %s; ", setting[0], setting[1])
	}
	fmt.Fprintf(&script, "debug 9; open -u anonymous,a ftp://%s; ", netip.AddrPortFrom(t.Server, t.Site.port))
	switch t.Operation {
	case Download:
		fmt.Fprintf(&script, "get %s -o %s", siteFile, files.got)
	case Upload:
		fmt.Fprintf(&script, "put %s -o %s/%s", files.toSend, siteUpload, files.uploadName)
	case Listing:
		fmt.Fprintf(&script, "ls %s/ > %s", siteFolder, files.got)
	}
	return []string{"--norc", "-c", script.String()}
}
