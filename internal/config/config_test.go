package config

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// words is a flag of words in lower case.
type words []string

func (w *words) String() string     { return strings.Join(*w, ",") }
func (w *words) Type() string       { return "words" }
func (w *words) GetSlice() []string { return *w }

func (w *words) Set(s string) error {
	if *w = nil; s == "" {
		return nil
	}
	for text := range strings.SplitSeq(s, ",") {
		if strings.Trim(text, "abcdefghijklmnopqrstuvwxyz") != "" {
			return fmt.Errorf("%q has more than small letters", text)
		}
		*w = append(*w, text)
	}
	if len(*w) > 3 {
		return errors.New("there are more than three words")
	}
	return nil
}

type values struct {
	list  words
	on    bool
	port  uint16
	count int
	hold  time.Duration
	name  string
}

func newFlags() (*pflag.FlagSet, *values) {
	v := new(values)
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.SortFlags = false
	f.Var(&v.list, "list", "`words` of small letters")
	f.BoolVar(&v.on, "on", false, "whether it is on")
	Group(f, "The first group")
	f.Uint16Var(&v.port, "low-port", 1, "a port")
	f.IntVar(&v.count, "count", 2, "how many there are, which is explained here in so many words that they go on")
	f.DurationVar(&v.hold, "hold-time", time.Second, "how long")
	f.StringVar(&v.name, "name", "", "its name")
	Group(f, "The second group")
	SetReloadable(f, "list", "hold-time")
	return f, v
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text, list string
		want       values
	}{
		{text: ""},
		{text: "# nothing\n\n"},
		{text: "---\n# nothing\n...\n# after it\n"},
		{text: "on: true", want: values{on: true}},
		{text: "---\non: True\nname: x\n...\n", want: values{on: true, name: "x"}},
		{text: "\ufeffon: true\r\nname: \"x\"\r\n", want: values{on: true, name: "x"}},
		{text: "list: a", list: "a"},
		{text: "list: a,b", list: "a,b"},
		{text: "list: [a, 'b', \"c\"] # three", list: "a,b,c"},
		{text: "list:\n- a\n- b\n", list: "a,b"},
		{text: "list: []"},
		{text: "list: ''"},
		{text: `{"list": ["a"], "on": true, "low-port": 5}`, list: "a", want: values{on: true, port: 5}},
		{text: "low-port: 65535\ncount: -1\nhold-time: 1m30s\n", want: values{port: 65535, count: -1, hold: 90 * time.Second}},
		{text: "name: 5", want: values{name: "5"}},
		{text: "name: '5'", want: values{name: "5"}},
		{text: "name: yes", want: values{name: "yes"}},
		{text: "name: 2001:db8::1", want: values{name: "2001:db8::1"}},
		{text: "name: >-\n  two\n  lines\n", want: values{name: "two lines"}},
		{text: "'name': \"\\u00e9\"", want: values{name: "é"}},
	} {
		flags, got := newFlags()
		if _, err := Parse("file", []byte(c.text), flags); err != nil {
			t.Errorf("%q: got %v, want no error", c.text, err)
			continue
		}
		list := got.list.String()
		got.list = nil
		c.want.port, c.want.count, c.want.hold = cmp.Or(c.want.port, 1), cmp.Or(c.want.count, 2), cmp.Or(c.want.hold, time.Second)
		if list != c.list || !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%q: got list %q and %+v, want %q and %+v", c.text, list, *got, c.list, c.want)
		}
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"nome: x", `file:1:1: there is no setting "nome"; did you mean name?`},
		{"on: true\nlow_port: 5", `file:2:1: there is no setting "low_port"; did you mean low-port?`},
		{"colour: red", `file:1:1: there is no setting "colour"`},
		{"5: x", `file:1:1: there is no setting "5"`},
		{"on: true\non: false", `file:2:1: on is set twice; the first value is in line 1`},
		{"list: [a]\n\"list\": [b]", `file:2:1: list is set twice; the first value is in line 1`},

		{"name:", `file:1:7: name has no value: add one, or remove the line`},
		{"name: ~", `file:1:7: name has no value: add one, or remove the line`},
		{"list: [a, null]", `file:1:11: an item of list has no value: add one, or remove the line`},
		{"name: true", `file:1:7: name is true or false instead of text`},
		{"name: {x: y}", `file:1:7: name is a map instead of text`},
		{"name:\n  x: y", `file:2:3: name is a map instead of text`},
		{"name: [x]", `file:1:7: name is a list instead of text`},
		{"on: [true]", `file:1:5: on is a list instead of true or false`},
		{"on: yes", `file:1:5: on is the text "yes" instead of true or false`},
		{"on: 1", `file:1:5: on is the number 1 instead of true or false`},
		{"on: 't'", `file:1:5: on is the text "t" instead of true or false`},
		{"low-port: '5'", `file:1:11: low-port is the text "5" instead of a number from 0 to 65535`},
		{"low-port: true", `file:1:11: low-port is true or false instead of a number from 0 to 65535`},
		{"count: |\n  5", `file:1:8: count is a block of text instead of a whole number`},
		{"list: {a: b}", `file:1:7: list is a map instead of a list such as [a, b], or a single value`},
		{"list: [a, [b]]", `file:1:11: an item of list is a list instead of a single value`},
		{"list:\n- a\n- b: c", `file:3:3: an item of list is a map instead of a single value`},

		{"low-port: 65536", `file:1:11: low-port: "65536" is not a number from 0 to 65535`},
		{"low-port: -1", `file:1:11: low-port: "-1" is not a number from 0 to 65535`},
		{"low-port: 99999999999999999999", `file:1:11: low-port: "99999999999999999999" is not a number from 0 to 65535`},
		{"count: 1.5", `file:1:8: count: "1.5" is not a whole number`},
		{"count: many", `file:1:8: count: "many" is not a whole number`},
		{"hold-time: 500", `file:1:12: hold-time: "500" is not a duration such as 500ms`},
		{"hold-time: soon", `file:1:12: hold-time: "soon" is not a duration such as 500ms`},
		{"list: a,B", `file:1:7: list: "B" has more than small letters`},
		{"list:\n  - a\n  - B", `file:3:5: list: "B" has more than small letters`},
		{"list: [a, b, c, d]", `file:1:7: list: there are more than three words`},

		{"on: true\n---\non: false", `file:2:1: a second document starts here; only one is allowed`},
		{"---\n---\non: true", `file:2:1: a second document starts here; only one is allowed`},
		{"on: true\n...\nname: x", `file:3:1: a second document starts here; only one is allowed`},
		{"- on", `file:1:1: this is a list instead of settings such as "rules: true"`},
		{"on", `file:1:1: this is the text "on" instead of settings such as "rules: true"`},
		{"name: &a x", `file:1:7: an anchor (&) is not supported in settings`},
		{"name: *a", `file:1:7: an alias (*) is not supported in settings`},
		{"name: !!str x", `file:1:7: a tag (!) is not supported in settings`},
		{"%YAML 1.2\n---\non: true", `file:1:1: a directive (%) is not supported in settings`},
		{"? name\n: x", `file:1:1: a complex key (?) is not supported in settings`},
		{"<<: {on: true}", `file:1:1: a merge key (<<) is not supported in settings`},
		{"list: [[[a]]]", `file:1:9: nested too deep: a setting is one value or a list of values`},
		{"list:\n- - a", `file:2:3: nested too deep: a setting is one value or a list of values`},
		{strings.Repeat("[", 100000), `file:1:3: nested too deep: a setting is one value or a list of values`},

		// A key of an earlier version.
		{"on: true\nsequence: auto", `file:2:1: the setting sequence was removed; delete the line: the kernel adjusts sequence numbers where this host translates, and elsewhere lines keep their length`},

		// In the words of the library.
		{"list: [a", `file:1:7: sequence end token ']' not found`},
		{"name: x: y", `file:1:7: mapping value is not allowed in this context`},
		{"name: 'x", `file:1:7: could not find end character of single-quoted text`},
		{"name: @x", `file:1:7: '@' is a reserved character`},

		{"on: true\nname: caf\xe9", `file:2:10: the byte 0xe9 is not UTF-8: save the file in that encoding`},
		{"\xff\xfeo\x00n\x00", `file:1:1: the byte 0xff is not UTF-8: save the file in that encoding`},
		{strings.Repeat("#", MaxSize+1), `file: it has more than 131072 bytes, and cannot be a configuration file`},
	} {
		flags, _ := newFlags()
		_, err := Parse("file", []byte(c.text), flags)
		var e *Error
		if !errors.As(err, &e) || e.Error() != c.want {
			t.Errorf("%.50q: got\n%v\nwant\n%s", c.text, err, c.want)
			continue
		}
		marked := fmt.Sprintf("> %2d | ", e.Line)
		if e.Line > 0 && strings.Count(e.Excerpt(), marked) != 1 || e.Line == 0 && e.Excerpt() != "" {
			t.Errorf("%.50q: got\n%s\nwant line %d marked", c.text, e.Excerpt(), e.Line)
		}
	}
}

// TestAllFaults finds all faults, in the order of their lines, and sets the other flags.
func TestAllFaults(t *testing.T) {
	flags, got := newFlags()
	_, err := Parse("file", []byte("prot: 5\nlist: [a, B, c, D]\non: 1\ncount: 7\nlow-port: x\ncount: 8\n"), flags)
	var all Errors
	if !errors.As(err, &all) {
		t.Fatalf("got %v, want Errors", err)
	}
	type fault struct {
		line int
		key  string
	}
	var faults []fault
	for _, e := range all {
		faults = append(faults, fault{e.Line, e.Key})
	}
	if want := []fault{{1, ""}, {2, "list"}, {2, "list"}, {3, "on"}, {5, "low-port"}, {6, "count"}}; !slices.Equal(faults, want) {
		t.Errorf("got faults in %v, want %v: %v", faults, want, err)
	}
	if got.count != 7 {
		t.Errorf("got count %d, want 7", got.count)
	}
	if strings.Count(err.Error(), "; file:") != len(all)-1 || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %q, want one line", err)
	}
	_, err = Parse("file", []byte("name: &a x\nlist: *a\n"), flags)
	if !errors.As(err, &all) || len(all) != 2 || all[1].Line != 2 {
		t.Errorf("got %v, want two unsupported tokens", err)
	}
}

func TestClosest(t *testing.T) {
	flags, _ := newFlags()
	must.Do(t, flags.MarkHidden("name"))
	for misspelt, want := range map[string]string{"lists": "list", "lsit": "list", "cuont": "count", "lowport": "low-port", "holdtime": "hold-time", "nothing-like-it": "", "name": ""} {
		if got := Closest(misspelt, flags); got != want {
			t.Errorf("%q: got %q, want %q", misspelt, got, want)
		}
	}
}

func TestExcerpt(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"# 1\n# 2\non: true\nname: x\nlow-port: \x1b[31m\non: 1", "" +
			"   3 | on: true\n" +
			"   4 | name: x\n" +
			">  5 | low-port: �[31m\n" +
			"                 ^\n"},
		{"name: \"é\"\nlist: [é,\t'È', b]", "" +
			"   1 | name: \"é\"\n" +
			">  2 | list: [é,\t'È', b]\n" +
			"              ^\n"},
		{"on: maybe " + strings.Repeat("x", 300), "" +
			">  1 | on: maybe " + strings.Repeat("x", 190) + "…\n" +
			"           ^\n"},
	} {
		flags, _ := newFlags()
		_, err := Parse("file", []byte(c.text), flags)
		var e *Error
		if !errors.As(err, &e) || e.Excerpt() != c.want {
			t.Errorf("%q: got %v\n%s\nwant\n%s", c.text, err, e.Excerpt(), c.want)
		}
	}
}

func TestErrorf(t *testing.T) {
	flags, _ := newFlags()
	file, err := Parse("file", []byte("on: true\nlist: [a, b]\n"), flags)
	must.Do(t, err)
	if keys := slices.Sorted(slices.Values(file.Keys())); !slices.Equal(keys, []string{"list", "on"}) {
		t.Errorf("got keys %q, want list and on", keys)
	}
	cause := errors.New("too much")
	for key, want := range map[string]string{
		"list": "file:2:7: a and b: too much",
		"name": "file: a and b: too much",
	} {
		if err := file.Errorf(key, "%s: %w", "a and b", cause); err.Error() != want || !errors.Is(err, cause) {
			t.Errorf("%s: got %v, want %s", key, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file.yaml")
	must.Do(t, os.WriteFile(name, []byte("count: 7\n"), 0o600))
	flags, got := newFlags()
	if _, err := Load(name, flags); err != nil || got.count != 7 {
		t.Errorf("got count %d, %v, want 7", got.count, err)
	}
	for _, name := range []string{dir, filepath.Join(dir, "missing")} {
		if _, err := Load(name, flags); err == nil || !strings.Contains(err.Error(), "the configuration file cannot be read: ") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want that it cannot be read", name, err)
		}
	}
}

func TestTemplate(t *testing.T) {
	flags, _ := newFlags()
	const want = `# What this is.
#
# And what it is for, in a line that is long enough to have to be cut into two
# of them.

### The first group

# words of small letters
#list: []

# whether it is on [restart]
#on: false

### The second group

# a port [restart]
#low-port: 1

# how many there are, which is explained here in so many words that they go on
# [restart]
#count: 2

# how long
#hold-time: 1s

# its name [restart]
#name: ""
`
	got := Template(flags, "What this is.\n\nAnd what it is for, in a line that is long enough to have to be cut into two of them.")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestShowReadsBack(t *testing.T) {
	for _, text := range []string{
		"", "5", "0x1F", "1e3", "-1", ".inf", "true", "no", "null", "~", "on: x", " x ", "x #y", "'", `"`, `\`, "[", "{", "%", "@", "*", "&", "!", "|", ">", "-", "- x", "?", ":", "::1",
		"a\nb", "a\tb", "\x00\x7f", "é", "\u0085\u2028\ufeff", "😀", "/run/x.sock", "<<", "=",
	} {
		flags, before := newFlags()
		before.name, before.list = text, words{"a", "null", "true"}
		shown := Show(flags)
		flags, after := newFlags()
		if _, err := Parse("file", []byte(shown), flags); err != nil {
			t.Errorf("%q: got %v, want no error from\n%s", text, err, shown)
		} else if after.name != text || after.list.String() != "a,null,true" {
			t.Errorf("got %q and list %q, want %q and a,null,true, from\n%s", after.name, after.list, text, shown)
		}
	}
}
