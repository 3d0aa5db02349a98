package manual

import (
	"bytes"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/config"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
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
	config.SetLive(daemon.Flags(), "wait")
	daemon.Flags().Bool("rules", false, "apply the rules")
	config.Group(daemon.Flags(), "Others")
	daemon.Flags().String("config", "/etc/x", "`file` with settings")
	group := &cobra.Command{Use: "group", Short: "Several"}
	group.PersistentFlags().String("wait", "1s", "how long it waits (`duration`); see --other")
	group.AddCommand(
		&cobra.Command{Use: "read FILE [COUNT]", Short: "Read a file", Run: nothing, Example: "  read x"},
		&cobra.Command{Use: "hidden", Run: nothing, Hidden: true})
	show := &cobra.Command{Use: "show", Short: "Show what run does", Run: nothing}
	show.Flags().AddFlagSet(daemon.Flags())
	root.AddCommand(daemon, group, show)
	return Page{Root: root, Daemon: daemon, Date: time.Unix(0, 0), Example: "a\n\tb\n"}
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
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestProgram(t *testing.T) {
	var page bytes.Buffer
	if err := testPage().Program(&page); err != nil {
		t.Fatal(err)
	}
	got := render(t, page.Bytes())
	for _, want := range []string{
		"     nfq-ftphelper group read FILE [COUNT] [flags]\n     nfq-ftphelper run [flags]\n",
		"     run reads C:\\new\\file.  That is \\fBnot\\fP bold.\n",
		"           if (x) {\n               .dotted\n           }\n",
		"     --all   .Sh is not a section.\n",
		"     --wait duration\n             How long it waits; see --other.  Default: 1s.\n",
		"     Flags --wait as for run.\n",
		"     Show what run does.\n\n     Flags as for run.\n",
		"     group read FILE [COUNT]\n             Read a file.\n",
		"           a\n               b\n",
		"   Kinds of events\n     tracked\n",
		"     dropped\n             The first packet came, but a filter on this host dropped it.\n",
		"January 1, 1970",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("nothing of\n%s\nin\n%s", want, got)
		}
	}
	for _, words := range [][]control.Word{control.Kinds, control.Refusals, control.Expiries, control.States, control.Sequences, control.RuleSources} {
		for _, w := range words {
			if !regexp.MustCompile(`(?m)^     ` + w.Name + `\b`).MatchString(got) {
				t.Errorf("%s is not listed", w.Name)
			}
		}
	}
	if strings.Contains(got, "hidden") {
		t.Errorf("a hidden command is shown:\n%s", got)
	}
}

func TestFile(t *testing.T) {
	var page bytes.Buffer
	if err := testPage().File(&page); err != nil {
		t.Fatal(err)
	}
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
	if strings.Contains(got, "config: ") {
		t.Errorf("the file has a setting for its own name:\n%s", got)
	}
}
