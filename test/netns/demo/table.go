package main

import (
	"strings"
	"unicode/utf8"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

const (
	red   = "\x1b[31m"
	green = "\x1b[32m"
	bold  = "\x1b[1m"
	plain = "\x1b[0m"
)

// field is a piece of text in a table's cell, perhaps with a colour.
type field struct {
	text, colour string
}

// table draws the rows in a box.
func table(rows []row, colours bool) string {
	lines := [][][]field{{{{"client", bold}}, {{"server", bold}}}}
	for _, verb := range netns.Verbs {
		lines[0] = append(lines[0], []field{{string(verb), bold}})
	}
	for _, r := range rows {
		line := [][]field{{{r.client, ""}}, {{r.server, ""}}}
		for _, verb := range netns.Verbs {
			line = append(line, []field{verdict(r.without[verb]), {" → ", ""}, verdict(r.with[verb])})
		}
		lines = append(lines, line)
	}
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], width(cell))
		}
	}
	var b strings.Builder
	rule(&b, widths, "┌", "┬", "┐")
	for i, line := range lines {
		if i == 1 {
			rule(&b, widths, "├", "┼", "┤")
		}
		for j, cell := range line {
			b.WriteString("│ ")
			for _, f := range cell {
				b.WriteString(paint(f, colours))
			}
			b.WriteString(strings.Repeat(" ", widths[j]-width(cell)+1))
		}
		b.WriteString("│\n")
	}
	rule(&b, widths, "└", "┴", "┘")
	return b.String()
}

func verdict(worked bool) field {
	if worked {
		return field{"works", green}
	}
	return field{"fails", red}
}

func paint(f field, colours bool) string {
	if !colours || f.colour == "" {
		return f.text
	}
	return f.colour + f.text + plain
}

func width(cell []field) int {
	n := 0
	for _, f := range cell {
		n += utf8.RuneCountInString(f.text)
	}
	return n
}

func rule(b *strings.Builder, widths []int, left, middle, right string) {
	b.WriteString(left)
	for i, w := range widths {
		if i > 0 {
			b.WriteString(middle)
		}
		b.WriteString(strings.Repeat("─", w+2))
	}
	b.WriteString(right + "\n")
}
