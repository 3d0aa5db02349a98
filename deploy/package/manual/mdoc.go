package manual

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// mdoc is text in the language mdoc(7), made line by line.
type mdoc struct{ strings.Builder }

// escaper writes what roff(7) would take for its own. A hyphen that somebody may copy must not
// become a typographic one.
var escaper = strings.NewReplacer(`\`, `\e`, "-", `\-`)

// escape returns text for the inside of a line.
func escape(s string) string { return escaper.Replace(s) }

// macro writes a line of control. Options of .Bl and .Bd are left as they are.
func (b *mdoc) macro(name string, args ...string) {
	b.WriteString("." + name)
	for _, a := range args {
		if name != "Bl" && name != "Bd" {
			a = escape(a)
		}
		b.WriteString(" " + a)
	}
	b.WriteByte('\n')
}

// line writes a line of text.
func (b *mdoc) line(s string) {
	if s = escape(s); strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	b.WriteString(s + "\n")
}

// sentenceEnd is where a new line begins: formatters set the space between sentences.
var sentenceEnd = regexp.MustCompile(`([.?!]\)?)\s+([A-Z])`)

// text writes what a flag or a command is for: as sentences, with a capital letter at the
// beginning, if that is a plain word, and a full stop.
func (b *mdoc) text(s string) {
	if s == "" {
		return
	}
	if first, size := utf8.DecodeRuneInString(s); plain(strings.Fields(s)[0]) {
		s = string(unicode.ToUpper(first)) + s[size:]
	}
	if !strings.ContainsAny(s[len(s)-1:], ".:?!") {
		s += "."
	}
	b.sentences(s)
}

// sentences writes each sentence on lines of its own.
func (b *mdoc) sentences(s string) {
	s = strings.Join(strings.Fields(s), " ")
	for line := range strings.SplitSeq(sentenceEnd.ReplaceAllString(s, "$1\n$2"), "\n") {
		b.line(line)
	}
}

// plain tells whether a word is of letters only, but for punctuation behind it.
func plain(word string) bool {
	return strings.IndexFunc(strings.TrimRight(word, ",;:."), func(r rune) bool { return !unicode.IsLetter(r) }) < 0
}

// prose writes paragraphs, separated by empty lines; those that are indented stay as they are.
func (b *mdoc) prose(s string) {
	for paragraph := range strings.SplitSeq(strings.Trim(s, "\n"), "\n\n") {
		switch {
		case strings.TrimSpace(paragraph) == "":
		case strings.HasPrefix(paragraph, "  "):
			b.display(paragraph)
		default:
			b.macro("Pp")
			b.sentences(paragraph)
		}
	}
}

// example writes a command's examples.
func (b *mdoc) example(s string) {
	if s != "" {
		b.macro("Pp")
		b.line("Examples:")
		b.display(s)
	}
}

// display writes lines as they are.
func (b *mdoc) display(s string) {
	b.WriteString(".Bd -literal -offset indent\n" + literal(strings.Trim(s, "\n")) + ".Ed\n")
}

// literal returns the lines of a literal display, without the indentation that all have.
func literal(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	indent := len(s)
	for _, l := range lines {
		if l != "" {
			indent = min(indent, len(l)-len(strings.TrimLeft(l, " ")))
		}
	}
	var b mdoc
	for _, l := range lines {
		b.line(strings.ReplaceAll(l[min(indent, len(l)):], "\t", "    "))
	}
	return b.String()
}

// arguments returns what a command takes besides flags, as its Use says, WORD or [WORD]: words for
// the end of a line of control.
func arguments(c *cobra.Command) (words []string) {
	for _, word := range strings.Fields(c.Use)[1:] {
		name := strings.Trim(word, "[]")
		switch {
		case name == "flags":
		case name != word:
			words = append(words, "Op", "Ar", name)
		default:
			words = append(words, "Ar", name)
		}
	}
	return words
}

// usageDefault is what a flag's usage says of its default, where that is no value of the flag.
var usageDefault = regexp.MustCompile(` \(default ([^()]+)\)$`)

// initial returns what a flag is for, and separately its default: none for a flag that is true or false,
// which is false by default.
func initial(f *pflag.Flag, usage string) (rest, value string) {
	if m := usageDefault.FindStringSubmatch(usage); m != nil {
		return strings.TrimSuffix(usage, m[0]), m[1]
	}
	switch {
	case f.Value.Type() == "bool":
		return usage, ""
	case f.DefValue == "" || f.DefValue == "[]":
		return usage, "none"
	}
	return usage, f.DefValue
}

// initial writes the default of a flag, if it has one.
func (b *mdoc) initial(value string) {
	if value != "" {
		b.WriteString("\\%Default:\n") // not to be hyphenated
		b.macro("Cm", append(strings.Fields(value), ".")...)
	}
}
