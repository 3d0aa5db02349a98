package doctor

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/jsonout"
)

// Count returns the number of findings of a level.
func Count(findings []Finding, l Level) int {
	n := 0
	for _, f := range findings {
		if f.Level == l {
			n++
		}
	}
	return n
}

// WriteJSON writes the findings as one object.
func WriteJSON(w io.Writer, findings []Finding) error {
	e := jsonout.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		Problems int       `json:"problems"`
		Warnings int       `json:"warnings"`
		Findings []Finding `json:"findings"`
	}{Count(findings, Problem), Count(findings, Warning), findings})
}

// Escape sequences of a terminal (ECMA-48, SGR).
var colours = map[Level]string{OK: "\x1b[32m", Warning: "\x1b[33m", Problem: "\x1b[1;31m"}

const plain = "\x1b[0m"

// WriteText writes a line for each finding, with why and what to do below those that are
// not ok. Colour is for terminals.
func WriteText(w io.Writer, findings []Finding, colour bool) error {
	width := 0
	for _, f := range findings {
		width = max(width, utf8.RuneCountInString(f.Check))
	}
	var b strings.Builder
	for _, f := range findings {
		level := fmt.Sprintf("%-7s", f.Level)
		if colour {
			level = colours[f.Level] + level + plain
		}
		fmt.Fprintf(&b, "%s  %-*s  %s\n", level, width, f.Check, f.What)
		indent := strings.Repeat(" ", len("problem  ")+width+2)
		if f.Why != "" {
			fmt.Fprintf(&b, "%s%s\n", indent, f.Why)
		}
		if f.Fix != "" {
			fmt.Fprintf(&b, "%s=> %s\n", indent, f.Fix)
		}
		if f.AfterReboot != "" {
			fmt.Fprintf(&b, "%safter a reboot: %s\n", indent, f.AfterReboot)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
