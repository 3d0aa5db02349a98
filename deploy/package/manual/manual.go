// Package manual writes the manual pages: nfq-ftphelper(8) and nfq-ftphelper.yaml(5), in the language
// mdoc(7). What a page says of commands, flags and settings comes from the program's own
// declarations; the rest is in the two templates beside this file.
package manual

import (
	_ "embed"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/config"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
)

var (
	//go:embed nfq-ftphelper.8
	programTemplate string
	//go:embed nfq-ftphelper.yaml.5
	fileTemplate string
)

// Page is what both pages are made of.
type Page struct {
	// Root is the program.
	Root *cobra.Command
	// Daemon is the command whose flags are the settings; others refer to it for those that
	// they share with it.
	Daemon *cobra.Command
	// Vocabulary are the words of the log, the events, the flows and the metrics.
	Vocabulary []engine.Term
	// Version is the program's, for the foot of the page.
	Version string
	// Date is that of the version, and Example what is shown of /etc/nftables.conf.
	Date    time.Time
	Example string
}

// Program writes nfq-ftphelper(8). It returns the writer's error.
func (p Page) Program(w io.Writer) error { return p.write(w, programTemplate) }

// File writes nfq-ftphelper.yaml(5). It returns the writer's error.
func (p Page) File(w io.Writer) error { return p.write(w, fileTemplate) }

func (p Page) write(w io.Writer, text string) error {
	t := template.Must(template.New("page").Funcs(template.FuncMap{"literal": literal}).Parse(text))
	return t.Execute(w, p)
}

// Day returns the date as .Dd wants it.
func (p Page) Day() string { return p.Date.UTC().Format("January 2, 2006") }

// System returns what .Os puts at the foot of the page: the version alone, since it is there twice, with the
// date in between.
func (p Page) System() string { return escape(p.Version) }

// Synopsis returns a line for each command that does something, for the section of that name.
func (p Page) Synopsis() string {
	var b mdoc
	p.walk(p.Root, func(c *cobra.Command) {
		b.macro("Nm")
		b.macro("Cm", slices.Concat(p.path(c), arguments(c))...)
		if c.LocalFlags().HasAvailableFlags() || c.InheritedFlags().HasAvailableFlags() {
			b.macro("Op", "Ar", "flags")
		}
	})
	return b.String()
}

// Commands returns a subsection for each command of the first level.
func (p Page) Commands() string {
	var b mdoc
	for _, c := range visible(p.Root) {
		b.macro("Ss", slices.Concat([]string{p.Root.Name(), c.Name()}, arguments(c))...)
		b.text(c.Short)
		b.prose(c.Long)
		p.flags(&b, c)
		if c.HasAvailableSubCommands() {
			b.macro("Bl", "-tag", "-width", "Ds")
			p.walk(c, func(sub *cobra.Command) {
				b.macro("It", slices.Concat([]string{"Cm"}, p.path(sub), arguments(sub))...)
				b.text(sub.Short)
				b.prose(sub.Long)
				p.flags(&b, sub)
				b.example(sub.Example)
			})
			b.macro("El")
		}
		b.example(c.Example)
	}
	return b.String()
}

// Settings returns a subsection for each group of settings, with a list of the keys that the
// configuration file may have.
func (p Page) Settings() string {
	var b mdoc
	heading, begun := "", false
	p.Daemon.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "config" || f.Name == "help" {
			return
		}
		if h := config.Heading(f); h != heading || !begun {
			if begun {
				b.macro("El")
			}
			if h != "" {
				b.macro("Ss", h)
			}
			b.macro("Bl", "-tag", "-width", "Ds")
			heading, begun = h, true
		}
		name, usage := unquote(f)
		switch {
		case f.Value.Type() == "bool":
			name = "true|false"
		case name == "":
			name = f.Value.Type()
		}
		b.macro("It", "Ic", f.Name, ":", "Ar", name)
		usage, value := initial(f, usage)
		b.text(usage)
		b.initial(value)
		if !config.Reloadable(f) {
			b.line("A change takes a restart.")
		}
	})
	if begun {
		b.macro("El")
	}
	return b.String()
}

// Words returns a subsection for each term of the log, the events, the flows and the metrics, with the
// words that it may be.
func (p Page) Words() string {
	var b mdoc
	for _, term := range p.Vocabulary {
		b.macro("Ss", term.Name)
		b.text(term.Meaning)
		b.macro("Bl", "-tag", "-width", "Ds")
		for _, w := range term.Words {
			b.macro("It", "Cm", w.Name)
			b.text(w.Meaning)
		}
		b.macro("El")
	}
	return b.String()
}

// walk calls f with each command below c that does something by itself.
func (p Page) walk(c *cobra.Command, f func(*cobra.Command)) {
	for _, sub := range visible(c) {
		if !sub.HasAvailableSubCommands() {
			f(sub)
		}
		p.walk(sub, f)
	}
}

// visible returns the commands right below c that help shows, without help itself.
func visible(c *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(c.Commands()), func(sub *cobra.Command) bool { return !sub.IsAvailableCommand() })
}

// path returns the words that call a command, behind the program's name.
func (p Page) path(c *cobra.Command) []string {
	return strings.Fields(c.CommandPath())[1:]
}

// flags writes the flags that c has by itself, and in one sentence those that the daemon has too.
func (p Page) flags(b *mdoc, c *cobra.Command) {
	var own []*pflag.Flag
	var shared []string
	all := 0
	p.Daemon.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			all++
		}
	})
	c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		of := p.Daemon.LocalFlags().Lookup(f.Name)
		switch {
		case f.Hidden || f.Name == "help":
		case c != p.Daemon && of != nil && of.Usage == f.Usage && of.DefValue == f.DefValue:
			shared = append(shared, f.Name)
		default:
			own = append(own, f)
		}
	})
	if len(shared) > 0 {
		b.macro("Pp")
		b.line("Flags")
		for i, name := range shared {
			switch {
			case len(shared) == all: // need no names
			case i == len(shared)-1:
				b.macro("Fl", "-"+name)
			case i == len(shared)-2:
				b.macro("Fl", "-"+name)
				b.line("and")
			default:
				b.macro("Fl", "-"+name, ",")
			}
		}
		b.line("as for")
		b.macro("Cm", append(p.path(p.Daemon), ".")...)
	}
	if len(own) == 0 {
		return
	}
	b.macro("Bl", "-tag", "-width", "Ds")
	for _, f := range own {
		name, usage := unquote(f)
		item := []string{"Fl", "-" + f.Name}
		if f.Shorthand != "" {
			item = []string{"Fl", f.Shorthand, ",", "Fl", "-" + f.Name}
		}
		if name != "" {
			item = append(item, "Ar", name)
		}
		b.macro("It", item...)
		usage, value := initial(f, usage)
		b.text(usage)
		b.initial(value)
	}
	b.macro("El")
}

// onlyName is a name of a flag's value that is no part of the sentence.
var onlyName = regexp.MustCompile(" \\(`[^`]*`\\)")

// unquote returns the name of a flag's value, if it has one, and what the flag is for.
func unquote(f *pflag.Flag) (name, usage string) {
	name, usage = pflag.UnquoteUsage(f)
	if onlyName.MatchString(f.Usage) {
		usage = onlyName.ReplaceAllString(f.Usage, "")
	}
	return name, usage
}
