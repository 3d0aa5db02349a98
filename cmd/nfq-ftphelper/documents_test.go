package main

import (
	"fmt"
	"html"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/config"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestReadme compares the README's table of settings with the flags of run.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	must.Do(t, err)
	if lines := strings.Count(string(text), "\n"); lines >= 250 {
		t.Errorf("README.md has %d lines, want less than 250", lines)
	}
	var got, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z-]+)`( ↻)? \\| ([^|]*?) *\\|").FindAllStringSubmatch(string(text), -1) {
		got = append(got, fmt.Sprintf("%s %q %t", m[1], m[3], m[2] != ""))
	}
	template := config.Template(newSettings().flags, "")
	newSettings().flags.VisitAll(func(f *pflag.Flag) {
		restart := strings.Contains(template, "[restart]\n#"+f.Name+":")
		want = append(want, fmt.Sprintf("%s %q %t", f.Name, strings.Trim(f.DefValue, "[]"), !restart))
	})
	want = append(want, `config "" false`)
	if !slices.Equal(got, want) {
		t.Errorf("README.md has the settings\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestPicture draws docs/top.svg from a screen that the tests of package top compare with what top shows.
func TestPicture(t *testing.T) {
	const golden, picture = "../../internal/top/testdata/80x24.golden", "../../docs/top.svg"
	screen, err := os.ReadFile(golden)
	must.Do(t, err)
	lines := strings.Split(strings.TrimSuffix(string(screen), "\n"), "\n")
	want := drawScreen(append(lines[:9:9], lines[len(lines)-1]))
	got, err := os.ReadFile(picture)
	if err == nil && string(got) == want {
		return
	}
	if *update {
		must.Do(t, os.WriteFile(picture, []byte(want), 0o644))
	}
	t.Errorf("%s is not what %s shows (%v): draw it again with -update", picture, golden, err)
}

// colours has top's colours for what is coloured in its screen.
var colours = regexp.MustCompile(`\bready\b|✗ \S+`)

// drawScreen returns an SVG of a terminal with these lines.
func drawScreen(lines []string) string {
	const column, row, margin = 7.83, 19, 14 // a character of 13 px
	var b strings.Builder
	width, height := 80*column+2*margin, len(lines)*row+2*margin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" role="img" aria-label="nfq-ftphelper top">
<style>text{font:13px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#e6edf3;white-space:pre} .h{fill:#0d1117} .ready{fill:#3fb950} .refused{fill:#d29922}</style>
<rect width="100%%" height="100%%" rx="8" fill="#0d1117"/>
`, width, height)
	for i, line := range lines {
		y, class := margin+row*i, ""
		if strings.HasPrefix(line, "CLIENT") {
			fmt.Fprintf(&b, "<rect x=\"%d\" y=\"%d\" width=\"%.0f\" height=\"%d\" fill=\"#e6edf3\"/>\n", margin, y, 80*column, row)
			class = ` class="h"`
		}
		line = colours.ReplaceAllStringFunc(html.EscapeString(line), func(s string) string {
			if s == "ready" {
				return `<tspan class="ready">` + s + `</tspan>`
			}
			return `<tspan class="refused">` + s + `</tspan>`
		})
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" xml:space=\"preserve\"%s>%s</text>\n", margin, y+14, class, line)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
