package explain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
)

// documented are the fields of docs/explain.md: their types, and the words that they can be if those are listed.
func documented(t *testing.T) (types map[string]string, words map[string][]string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/explain.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## JSON\n")
	types, words = make(map[string]string), make(map[string][]string)
	row, word := regexp.MustCompile("(?m)^\\| `([^`]*)` \\| ([a-z ]+\\??) \\| (.*) \\|$"), regexp.MustCompile("`([a-z_ -]+)`")
	for _, m := range row.FindAllStringSubmatch(table, -1) {
		types[m[1]] = m[2]
		for _, w := range word.FindAllStringSubmatch(m[3], -1) {
			if !strings.HasPrefix(w[1], "--") && !strings.Contains(m[3], "reason of") && !strings.Contains(m[3], "if that is not") {
				words[m[1]] = append(words[m[1]], w[1])
			}
		}
	}
	return types, words
}

// fields are those of a type, by their paths.
func fields(typ reflect.Type, prefix string, into map[string]string) {
	for i := range typ.NumField() {
		name, options, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		path, of, optional := prefix+name, typ.Field(i).Type, ""
		if strings.Contains(options, "omitempty") {
			optional = "?"
		}
		if of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		text := of.Implements(reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]())
		switch {
		case of.Kind() == reflect.Slice && of.Elem().Kind() == reflect.String:
			into[path] = "array of strings"
		case of.Kind() == reflect.Slice:
			into[path] = "array" + optional
			fields(of.Elem(), path+"[].", into)
		case of.Kind() == reflect.String || text:
			into[path] = "string" + optional
		case of.Kind() == reflect.Bool:
			into[path] = "boolean" + optional
		case of.Kind() == reflect.Struct:
			into[path] = "object" + optional
			fields(of, path+".", into)
		default:
			into[path] = "number" + optional
		}
	}
}

// TestSchema compares the documented fields with those that there are, both ways.
func TestSchema(t *testing.T) {
	types, words := documented(t)
	got := make(map[string]string)
	fields(reflect.TypeFor[jsonReport](), "", got)
	for path, typ := range got {
		if types[path] != typ {
			t.Errorf("%s is documented as %q, and is %q", path, types[path], typ)
		}
	}
	for path := range types {
		if got[path] == "" {
			t.Errorf("%s is documented, and there is no such field", path)
		}
	}
	var reasons []string
	for _, r := range engine.Reasons() {
		reasons = append(reasons, r.String())
	}
	if documented := words["connections[].lines[].reason"]; !slices.Equal(slices.Sorted(slices.Values(documented)), slices.Sorted(slices.Values(reasons))) {
		t.Errorf("documented are the reasons %q, and there are %q", documented, reasons)
	}
}

// wantDocumented compares a value of JSON with the documents: its fields, and the words that it has. It
// notes down the words.
func wantDocumented(t *testing.T, v any, path string, types map[string]string, words map[string][]string, seen map[string]bool) {
	t.Helper()
	kind := types[path]
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			wantDocumented(t, inner, strings.TrimPrefix(path+"."+name, "."), types, words, seen)
		}
		for p, typ := range types {
			rest, inside := strings.CutPrefix(p, strings.TrimPrefix(path+".", "."))
			if _, there := v[rest]; inside && !strings.ContainsAny(rest, ".[") && !strings.HasSuffix(typ, "?") && !there {
				t.Errorf("%q lacks %s", path, rest)
			}
		}
		return
	case []any:
		for _, inner := range v {
			wantDocumented(t, inner, path+"[]", types, words, seen)
		}
		return
	case string:
		if list := words[path]; len(list) > 0 && !slices.Contains(list, v) {
			t.Errorf("%s is %q, and can be %q", path, v, list)
		} else if len(list) > 0 {
			seen[path+" "+v] = true
		}
		if strings.HasSuffix(path, "[]") {
			kind = "string"
		}
	}
	is := map[string]string{"string": "string", "float64": "number", "bool": "boolean"}[fmt.Sprintf("%T", v)]
	if strings.TrimSuffix(kind, "?") != is {
		t.Errorf("%s is the %s %v, and documented as %q", path, is, v, kind)
	}
}

// TestJSON compares what is written with the documents, for all captures and dialogues of the other tests,
// and wants every documented word to be there.
func TestJSON(t *testing.T) {
	types, words := documented(t)
	seen := make(map[string]bool)
	check := func(file []byte, c Config) string {
		t.Helper()
		r, err := Explain(bytes.NewReader(file), c)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := r.WriteJSON(&b); err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal(b.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		wantDocumented(t, v, "", types, words, seen)
		return b.String()
	}
	for name, file := range captures(t) {
		golden(t, name+".json.golden", check(file, port21()))
	}
	for _, c := range dialogues {
		_, text, _ := strings.Cut(check(c.record(t)), "\n  \"connections\": ")
		for _, secret := range c.not {
			if secret != "99" && strings.Contains(text, secret) {
				t.Errorf("%s: there is %q in %s", c.name, secret, text)
			}
		}
	}
	told := port21(func(c *Config) {
		n, err := ParseTranslation("192.168.1.2=192.0.2.2")
		if err != nil {
			t.Fatal(err)
		}
		c.NAT = append(c.NAT, n)
	})
	check(transfers(t, client).pcap(links[2]), told)
	for path, list := range words {
		for _, w := range list {
			if !seen[path+" "+w] {
				t.Errorf("nothing has %q for %s; there is %q", w, path, slices.Sorted(maps.Keys(seen)))
			}
		}
	}
}
