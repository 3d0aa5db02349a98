package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completions are the words that the shell gets for what is typed, without what they mean, and the
// directive after them.
func completions(t *testing.T, typed ...string) (words []string, directive string) {
	t.Helper()
	code, stdout, stderr := call(t, append([]string{cobra.ShellCompRequestCmd}, typed...)...)
	if code != 0 {
		t.Fatalf("%q: got exit code %d: %s", typed, code, stderr)
	}
	for line := range strings.Lines(stdout) {
		word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if number, is := strings.CutPrefix(word, ":"); is {
			return words, number
		}
		words = append(words, word)
	}
	t.Fatalf("%q: got no directive:\n%s", typed, stdout)
	return nil, ""
}

func TestCompletion(t *testing.T) {
	const files, noFiles, extensions = "0", "4", "8"
	for _, c := range []struct {
		typed     string
		want      string
		directive string
	}{
		{"run --helper ", "auto carrier cthelper", noFiles},
		{"run --helper=", "auto carrier cthelper", noFiles},
		{"run --ruleset ", "full lean", noFiles},
		{"rules apply --ruleset ", "full lean", noFiles},
		{"run --log-format ", "text json", noFiles},
		{"run --log-level ", "debug info warn error", noFiles},
		{"config show --log-level ", "debug info warn error", noFiles},
		{"run --ports ", "", noFiles},
		{"run --config ", "yaml yml", extensions},
		{"explain --config ", "yaml yml", extensions},
		{"explain --svg ", "", files},
		{"explain ", "pcap pcapng", extensions},
		{"flows --control ", "", files},
		{"flows ", "", noFiles},
		{"rules ", "apply check print remove", noFiles},
		{"rules p", "print", noFiles},
		{"config check ", "yaml yml", extensions},
		{"config show ", "yaml yml", extensions},
		{"config init ", "yaml yml", extensions},
	} {
		typed := strings.Split(c.typed, " ")
		got, directive := completions(t, typed...)
		if strings.Join(got, " ") != c.want || directive != c.directive {
			t.Errorf("%q is completed to %q, %s, want %q, %s", c.typed, got, directive, c.want, c.directive)
		}
	}
}

// Every word that is offered is one that the flag takes.
func TestCompletionsAreTaken(t *testing.T) {
	offered := 0
	newSettings().flags.VisitAll(func(flag *pflag.Flag) {
		v, ok := flag.Value.(completer)
		if !ok {
			return
		}
		for _, word := range v.Completions() {
			offered++
			if err := flag.Value.Set(word); err != nil || flag.Value.String() != word {
				t.Errorf("--%s: got the completion %q: %v, %s", flag.Name, word, err, flag.Value)
			}
		}
		if slices.Contains(v.Completions(), "") {
			t.Errorf("--%s: got no completion", flag.Name)
		}
	})
	if offered < 10 {
		t.Errorf("got only %d completions", offered)
	}
}
