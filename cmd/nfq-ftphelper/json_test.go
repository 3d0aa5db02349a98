package main

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

const jsonDocument = "../../docs/json.md"

// values are the lists of values, by the headings that they have in the document.
var values = []struct {
	heading string
	words   []control.Word
}{
	{"Kinds", control.Kinds}, {"Refusals", control.Refusals}, {"Expiries", control.Expiries}, {"States", control.States},
	{"Sequence numbers", control.Sequences}, {"Sources of rules", control.RuleSources},
}

// valueTables writes the end of the document.
func valueTables() string {
	var b strings.Builder
	for _, v := range values {
		fmt.Fprintf(&b, "## %s\n\n| value | meaning |\n|---|---|\n", v.heading)
		for _, w := range v.words {
			fmt.Fprintf(&b, "| `%s` | %s |\n", w.Name, w.Meaning)
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// typeName is how the document calls a type.
func typeName(t reflect.Type, optional bool) string {
	name := ""
	switch {
	case t == reflect.TypeFor[time.Time]():
		name = "time"
	case t == reflect.TypeFor[netip.AddrPort]():
		name = "endpoint"
	case t.Kind() == reflect.Pointer:
		return typeName(t.Elem(), optional)
	default:
		name = map[reflect.Kind]string{
			reflect.String: "string", reflect.Bool: "boolean", reflect.Struct: "object", reflect.Slice: "list",
			reflect.Int: "number", reflect.Uint16: "number", reflect.Uint32: "number", reflect.Uint64: "number",
		}[t.Kind()]
	}
	if optional {
		name += ", optional"
	}
	return name
}

// TestJSONDocument compares the document with what is marshalled: every field, its type and every value.
func TestJSONDocument(t *testing.T) {
	text, err := os.ReadFile(jsonDocument)
	must.Do(t, err)
	fields, end, _ := strings.Cut(string(text), "The same lists are in nfq-ftphelper(8).\n\n")
	if want := valueTables(); end != want {
		if *update {
			must.Do(t, os.WriteFile(jsonDocument, []byte(strings.TrimSuffix(string(text), end)+want), 0o644))
		}
		t.Errorf("%s lists\n%s\nwant\n%s", jsonDocument, end, want)
	}
	row := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z, ]+) \\|")
	for heading, of := range map[string]reflect.Type{
		"## status": reflect.TypeFor[control.Status](), "### rules": reflect.TypeFor[control.Rules](), "### queue": reflect.TypeFor[control.Queue](),
		"## flows": reflect.TypeFor[control.Flows](), "### flow": reflect.TypeFor[control.Flow](), "### announcement": reflect.TypeFor[control.Endpoint](),
		"## events": reflect.TypeFor[control.Event](),
	} {
		_, section, _ := strings.Cut(fields, "\n"+heading+"\n")
		section, _, _ = strings.Cut(section, "\n#")
		var got, want []string
		for _, m := range row.FindAllStringSubmatch(section, -1) {
			got = append(got, m[1]+": "+m[2])
		}
		for i := range of.NumField() {
			name, options, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			want = append(want, name+": "+typeName(of.Field(i).Type, options != ""))
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s has\n%s\nwant\n%s", heading, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}
