package manual

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/config"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// testPage is of a program whose texts have all that roff(7) would take for its own.
func testPage() Page {
	nothing := func(*cobra.Command, []string) {}
	root := &cobra.Command{Use: "nfq-ftphelper"}
	daemon := &cobra.Command{Use: "run", Short: "Serve", Run: nothing, Long: `run reads C:\new\file. That is
\fBnot\fP bold.

  if (x) {
  	.dotted
  }`}
	daemon.Flags().SortFlags = false
	daemon.Flags().String("wait", "1s", "how long it waits (`duration`); see --other")
	daemon.Flags().Bool("all", false, ".Sh is not a section")
	config.Group(daemon.Flags(), "Waiting")
	config.SetReloadable(daemon.Flags(), "wait")
	daemon.Flags().Bool("rules", false, "apply the rules")
	config.Group(daemon.Flags(), "Others")
	daemon.Flags().String("config", "", "`file` with settings (default /etc/x, if it exists)")
	daemon.Flags().String("name", "", "`name` of it")
	daemon.Flags().Int("count", 0, "`number` of them, (or none) (default all)")
	group := &cobra.Command{Use: "group", Short: "Several"}
	group.PersistentFlags().String("wait", "1s", "how long it waits (`duration`); see --other")
	group.AddCommand(
		&cobra.Command{Use: "read FILE [COUNT]", Short: "Read a file", Run: nothing, Example: "  read x"},
		&cobra.Command{Use: "hidden", Run: nothing, Hidden: true})
	show := &cobra.Command{Use: "show", Short: "Show what run does", Run: nothing}
	show.Flags().AddFlagSet(daemon.Flags())
	root.AddCommand(daemon, group, show)
	return Page{Root: root, Daemon: daemon, Version: "v1.2.3-5-gb544e49", Vocabulary: engine.Vocabulary(), Date: time.Unix(0, 0), Example: "a\n\tb\n"}
}

// render returns what a reader sees, without overstriking.
func render(t *testing.T, page []byte) string {
	t.Helper()
	lint := exec.Command("mandoc", "-Tlint", "-Wwarning")
	lint.Stdin = bytes.NewReader(page)
	if out, err := lint.CombinedOutput(); err != nil {
		t.Errorf("mandoc: %v\n%s\nin\n%s", err, out, page)
	}
	cmd := exec.Command("sh", "-c", "mandoc -Tascii -Owidth=300 | sed 's/.\x08//g'")
	cmd.Stdin = bytes.NewReader(page)
	out, err := cmd.Output()
	must.Do(t, err)
	return string(out)
}

func TestProgram(t *testing.T) {
	var page bytes.Buffer
	must.Do(t, testPage().Program(&page))
	got := render(t, page.Bytes())
	for _, want := range []string{
		"     nfq-ftphelper group read FILE [COUNT] [flags]\n     nfq-ftphelper run [flags]\n",
		"     run reads C:\\new\\file.  That is \\fBnot\\fP bold.\n",
		"           if (x) {\n               .dotted\n           }\n",
		"     --all   .Sh is not a section.\n",
		"     --wait duration\n             How long it waits; see --other.  Default: 1s.\n",
		"     --config file\n             File with settings.  Default: /etc/x, if it exists.\n",
		"     --name name\n             Name of it.  Default: none.\n",
		"     --count number\n             Number of them, (or none).  Default: all.\n",
		"     Flags --wait as for run.\n",
		"     Show what run does.\n\n     Flags as for run.\n",
		"     group read FILE [COUNT]\n             Read a file.\n",
		"           a\n               b\n",
		"   reason\n     Why an announced endpoint was not opened, or,",
		"     not_peer\n             The announced address is not the sender's own (bounce protection, see --allow).\n",
		"     would-open\n             --monitor: without it, conntrack would expect the data connection.\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("nothing of\n%s\nin\n%s", want, got)
		}
	}
	for _, term := range engine.Vocabulary() {
		for _, w := range term.Words {
			if !regexp.MustCompile(`(?m)^     ` + w.Name + `\b`).MatchString(got) {
				t.Errorf("%s is not listed", w.Name)
			}
		}
	}
	wantFrame(t, page.Bytes(), "NFQ-FTPHELPER(8)", "System Manager's Manual")
	if strings.Contains(got, "hidden") {
		t.Errorf("a hidden command is shown:\n%s", got)
	}
}

// wantFrame wants a page's head to name it, and its foot to have date and version, by both formatters.
func wantFrame(t *testing.T, page []byte, title, section string) {
	t.Helper()
	for formatter, prefix := range map[string]string{"mandoc -Tascii": "", "man --warnings -E UTF-8 -l -Tutf8 -": "Linux "} {
		cmd := exec.Command("sh", "-c", formatter+" | sed 's/.\x08//g'")
		cmd.Stdin, cmd.Env = bytes.NewReader(page), append(os.Environ(), "MANWIDTH=100", "MANPAGER=cat", "MAN_KEEP_FORMATTING=")
		out, err := cmd.Output()
		must.Do(t, err)
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		head, foot := lines[0], lines[len(lines)-1]
		if got, want := strings.Join(strings.Fields(head), " "), title+" "+prefix+section+" "+title; strings.ReplaceAll(got, "’", "'") != want {
			t.Errorf("%s: the head is %q, want %q", formatter, got, want)
		}
		const version = "v1.2.3-5-gb544e49"
		if got, want := strings.Join(strings.Fields(foot), " "), version+" January 1, 1970 "+version; strings.ReplaceAll(got, "‐", "-") != want {
			t.Errorf("%s: the foot is %q, want %q", formatter, got, want)
		}
	}
}

func TestFile(t *testing.T) {
	var page bytes.Buffer
	must.Do(t, testPage().File(&page))
	got := render(t, page.Bytes())
	for _, want := range []string{
		"   Waiting\n",
		"     wait: duration\n             How long it waits; see --other.  Default: 1s.\n\n",
		"   Others\n",
		"     rules: true|false\n             Apply the rules.  A change takes a restart.\n\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("nothing of\n%s\nin\n%s", want, got)
		}
	}
	wantFrame(t, page.Bytes(), "NFQ-FTPHELPER.YAML(5)", "File Formats Manual")
	if strings.Contains(got, "config: ") {
		t.Errorf("the file has a setting for its own name:\n%s", got)
	}
}
