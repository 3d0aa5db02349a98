package netns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

var (
	shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	// indented are the two commands of the README that stand alone.
	indented = regexp.MustCompile(`(?m)^    (make .*\n)`)
)

// TestDocumentedDoctor compares the README with what doctor says of a fault: TestFirewalls makes doctor say it.
func TestDocumentedDoctor(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	must.Do(t, err)
	fault := testFaults()["nft, policy"]
	for _, want := range []string{"(?m)^" + fault.line, "(?m)^ +=> " + fault.fix + "$"} {
		if !regexp.MustCompile(want).Match(readme) {
			t.Errorf("README.md has no line %s", want)
		}
	}
}

// TestDocuments runs every command in the documents, on a router with FTP traffic.
func TestDocuments(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	must.Do(t, err)
	var files []string
	for _, pattern := range []string{"*.md", "docs/*.md", "deploy/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		must.Do(t, err)
		files = append(files, found...)
	}
	blocks := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		must.Do(t, err)
		found := append(shellBlock.FindAllStringSubmatch(string(text), -1), indented.FindAllStringSubmatch(string(text), -1)...)
		for i, block := range found {
			blocks++
			// What differs from kernel to kernel is whether nft can load the rules.
			if testing.Short() && !strings.Contains(block[1], "nft -f") {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(file), i+1), func(t *testing.T) { runDocumented(t, root, block[1]) })
		}
	}
	if blocks < 10 {
		t.Errorf("only %d blocks of commands in %q", blocks, files)
	}
}

func runDocumented(t *testing.T, root, commands string) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4})
	site := startSite(t, lab.Server, IPv4, SiteOptions{})
	path := daemon(t, BackEnd{}).Binary
	file := filepath.Join(t.TempDir(), "commands")
	must.Do(t, os.WriteFile(file, []byte(commands), 0o600))
	ctx, stop := context.WithCancel(testContext(t, 2*time.Minute))
	traffic := make(chan struct{})
	go func() {
		defer close(traffic)
		for ctx.Err() == nil {
			// One that starts before the commands have a daemon fails; the next one must not wait long for that.
			cell{DNAT, IPv4, EPSV, Download, Curl}.transfer(lab, site, failingTimeout).Run(ctx, lab.Client)
		}
	}()
	defer func() { stop(); <-traffic }()

	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "testdata/documented.sh", root, path, file)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if CheckQueueStatement() != nil {
		cmd.Env = append(cmd.Env, "FTPHELPER_NO_QUEUE=1")
	}
	p, err := lab.ServerRouter().Start(cmd)
	must.Do(t, err)
	must.Do(t, p.Wait(ctx))
}
