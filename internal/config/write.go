package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/token"
	"github.com/spf13/pflag"
)

// Annotations of flags.
const (
	groupAnnotation      = "config group"
	reloadableAnnotation = "config reloadable"
)

// Group adds the flags without a group to a new group, with a heading.
func Group(flags *pflag.FlagSet, heading string) {
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Annotations[groupAnnotation] == nil {
			annotate(flag, groupAnnotation, heading)
		}
	})
}

// Heading returns the heading of a flag's group, "" if it is in none.
func Heading(flag *pflag.Flag) string {
	if g := flag.Annotations[groupAnnotation]; g != nil {
		return g[0]
	}
	return ""
}

// SetReloadable marks settings that can change while the program runs. It panics if a flag does not exist.
func SetReloadable(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		annotate(flags.Lookup(name), reloadableAnnotation, "")
	}
}

// Reloadable reports whether a setting can change while the program runs.
func Reloadable(flag *pflag.Flag) bool { return flag.Annotations[reloadableAnnotation] != nil }

func annotate(flag *pflag.Flag, name, value string) {
	if flag.Annotations == nil {
		flag.Annotations = make(map[string][]string)
	}
	flag.Annotations[name] = []string{value}
}

// Show returns the values of all flags, in their order, as a file for Load.
func Show(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(flag *pflag.Flag) { fmt.Fprintln(&b, line(flag)) })
	return b.String()
}

// Template returns a file that sets nothing: the introduction, and for each flag its usage and, after "#", its value.
func Template(flags *pflag.FlagSet, introduction string) string {
	var b strings.Builder
	comment := func(mark, text string) {
		for row := range strings.SplitSeq(wrap(text, 78-len(mark)), "\n") {
			fmt.Fprintln(&b, strings.TrimSpace(mark+" "+row))
		}
	}
	comment("#", introduction)
	group := ""
	flags.VisitAll(func(flag *pflag.Flag) {
		if g := flag.Annotations[groupAnnotation]; g != nil && g[0] != group {
			group = g[0]
			fmt.Fprintln(&b)
			comment("###", group)
		}
		_, usage := pflag.UnquoteUsage(flag)
		if !Reloadable(flag) {
			usage += " [restart]"
		}
		fmt.Fprintln(&b)
		comment("#", usage)
		fmt.Fprintf(&b, "#%s\n", line(flag))
	})
	return b.String()
}

// wrap breaks long lines of a text between words.
func wrap(text string, width int) string {
	var rows []string
	for row := range strings.SplitSeq(text, "\n") {
		var now string
		for word := range strings.FieldsSeq(row) {
			switch {
			case now == "":
				now = word
			case len(now)+1+len(word) > width:
				rows, now = append(rows, now), word
			default:
				now += " " + word
			}
		}
		rows = append(rows, now)
	}
	return strings.Join(rows, "\n")
}

// line returns the flag's name and value as YAML.
func line(flag *pflag.Flag) string {
	value := plain(flag.Value.String())
	if l, ok := flag.Value.(list); ok {
		var items []string
		for _, item := range l.GetSlice() {
			items = append(items, plain(item))
		}
		value = "[" + strings.Join(items, ", ") + "]"
	} else if flag.Value.Type() == "bool" {
		value = flag.Value.String()
	}
	return flag.Name + ": " + value
}

// word matches text that needs no quotes, unless YAML has another meaning for it.
var word = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9._/-]*$`)

// plain returns a text without quotes if YAML reads it as that text or as a number, else quoted.
func plain(text string) string {
	if word.MatchString(text) {
		switch token.New(text, text, &token.Position{}).Type {
		case token.StringType, token.IntegerType, token.FloatType:
			return text
		}
	}
	return strconv.Quote(text)
}
