// Package config reads and writes the settings of a program as a YAML file (YAML 1.2, https://yaml.org/spec/1.2.2/).
// The settings are the flags of a pflag.FlagSet: a key is the name of a flag, a value is the flag's value on the command
// line, or a YAML list if the flag is a list.
//
// The file is one map of scalars and lists. Other YAML (anchors, aliases, tags, directives, merged and complex keys,
// deeper nesting, several documents) is an error.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
	"github.com/spf13/pflag"
)

// MaxSize is the maximum length of a file, in bytes.
const MaxSize = 128 << 10

// list is a flag's value that is a list. Set replaces its items by others, separated by commas; GetSlice, as of
// pflag.SliceValue, returns them.
type list interface{ GetSlice() []string }

// File is a configuration file.
type File struct {
	name   string
	text   string
	values map[string]ast.Node
}

// Load reads a file and sets its flags. It returns an error if the file cannot be read, or Errors. If the file is YAML,
// the flags of settings without a fault are set nevertheless.
func Load(name string, flags *pflag.FlagSet) (*File, error) {
	opened, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	defer opened.Close()
	text, err := io.ReadAll(io.LimitReader(opened, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	return Parse(name, text, flags)
}

// Parse is Load for the text of a file; name is for errors.
func Parse(name string, text []byte, flags *pflag.FlagSet) (*File, error) {
	f := &File{name: name, text: string(text), values: make(map[string]ast.Node)}
	if len(text) > MaxSize {
		return nil, Errors{f.errorAt(nil, "it has more than %d bytes, and cannot be a configuration file", MaxSize)}
	}
	if !utf8.Valid(text) {
		return nil, Errors{f.notUTF8()}
	}
	const byteOrderMark = "\ufeff"
	f.text = strings.TrimPrefix(f.text, byteOrderMark)
	root, faults := f.parse()
	for _, entry := range root {
		faults = append(faults, f.set(entry, flags)...)
	}
	if len(faults) > 0 {
		return f, faults
	}
	return f, nil
}

// Keys returns the flags that the file sets, in no order.
func (f *File) Keys() []string {
	var keys []string
	for key := range f.values {
		keys = append(keys, key)
	}
	return keys
}

// Errorf returns an error about a key's value, or about the file if the key is missing.
func (f *File) Errorf(key, format string, args ...any) *Error {
	if v, ok := f.values[key]; ok {
		return f.errorAt(first(v), format, args...).about(key)
	}
	return f.errorAt(nil, format, args...)
}

// parse returns the entries of the file's map.
func (f *File) parse() ([]*ast.MappingValueNode, Errors) {
	tokens := lexer.Tokenize(f.text)
	if faults := f.checkTokens(tokens); len(faults) > 0 {
		return nil, faults
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var at interface {
			GetToken() *token.Token
			GetMessage() string
		}
		if errors.As(err, &at) {
			return nil, Errors{f.errorAt(at.GetToken(), "%s", at.GetMessage())}
		}
		return nil, Errors{f.errorAt(nil, "%w", err)}
	}
	var body ast.Node
	for _, doc := range file.Docs {
		body = doc.Body // there is one at most
	}
	switch body := body.(type) {
	case nil:
		return nil, nil
	case *ast.MappingNode:
		return body.Values, nil
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{body}, nil
	}
	return nil, Errors{f.errorAt(first(body), "this is %s instead of settings such as \"rules: true\"", kindOf(body))}
}

// unsupported are tokens that a file of settings may not have.
var unsupported = map[token.Type]string{
	token.AnchorType:     "an anchor (&)",
	token.AliasType:      "an alias (*)",
	token.TagType:        "a tag (!)",
	token.DirectiveType:  "a directive (%)",
	token.MappingKeyType: "a complex key (?)",
	token.MergeKeyType:   "a merge key (<<)",
}

// checkTokens returns an error for each unsupported token, and ends at a second document or deep nesting. It protects the
// recursive parser from a stack overflow.
func (f *File) checkTokens(tokens token.Tokens) (faults Errors) {
	depth := 0 // of brackets and braces
	begun, ended := false, false
	for i, t := range tokens {
		// The parser omits empty documents and document marks.
		comment := t.Type == token.CommentType
		if ended && !comment || begun && t.Type == token.DocumentHeaderType {
			return append(faults, f.errorAt(t, "a second document starts here; only one is allowed"))
		}
		begun, ended = begun || !comment, ended || t.Type == token.DocumentEndType
		if what, ok := unsupported[t.Type]; ok {
			faults = append(faults, f.errorAt(t, "%s is not supported in settings", what))
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		const inJSON = 2 // {"ports": [21]}
		if depth > inJSON || t.Type == token.SequenceEntryType && i > 0 && tokens[i-1].Type == token.SequenceEntryType {
			return append(faults, f.errorAt(t, "nested too deep: a setting is one value or a list of values"))
		}
	}
	return faults
}

// set sets the flag of an entry.
func (f *File) set(entry *ast.MappingValueNode, flags *pflag.FlagSet) Errors {
	name, ok := entry.Key.(*ast.StringNode)
	if !ok {
		return Errors{f.unknown(entry.Key.GetToken(), entry.Key.String(), flags)}
	}
	key := name.Value
	flag := flags.Lookup(key)
	if flag == nil {
		return Errors{f.unknown(name.Token, key, flags)}
	}
	if before, ok := f.values[key]; ok {
		return Errors{f.errorAt(name.Token, "%s is set twice; the first value is in line %d", key, first(before).Position.Line).about(key)}
	}
	f.values[key] = entry.Value
	if items, ok := entry.Value.(*ast.SequenceNode); ok {
		if _, ok := flag.Value.(list); ok {
			return f.setList(flag, items)
		}
	}
	takes, ok := kinds[flag.Value.Type()]
	if _, isList := flag.Value.(list); isList {
		takes = "a list such as [a, b], or a single value"
	} else if !ok {
		takes = "text"
	}
	text, fault := f.scalar(flag, key, takes, entry.Value)
	if fault == nil {
		fault = f.setTo(flag, entry.Value, text)
	}
	if fault != nil {
		return Errors{fault.about(key)}
	}
	return nil
}

// setList sets a flag that is a list. Each item is tried alone, to locate a fault.
func (f *File) setList(flag *pflag.Flag, items *ast.SequenceNode) (faults Errors) {
	var texts []string
	for _, item := range items.Values {
		text, fault := f.scalar(flag, "an item of "+flag.Name, "a single value", item)
		if fault == nil {
			fault = f.setTo(flag, item, text)
		}
		if fault != nil {
			faults = append(faults, fault.about(flag.Name))
		}
		texts = append(texts, text)
	}
	if len(faults) > 0 {
		return faults
	}
	if fault := f.setTo(flag, items, strings.Join(texts, ",")); fault != nil {
		return Errors{fault.about(flag.Name)}
	}
	return nil
}

func (f *File) setTo(flag *pflag.Flag, value ast.Node, text string) *Error {
	err := flag.Value.Set(text)
	if err == nil {
		return nil
	}
	// The errors of pflag's types are about Go.
	if takes, ok := kinds[flag.Value.Type()]; ok {
		return f.errorAt(first(value), "%s: %.60q is not %s", flag.Name, text, takes)
	}
	return f.errorAt(first(value), "%s: %w", flag.Name, err)
}

// kinds describes the values of pflag's types.
var kinds = map[string]string{
	"bool":     "true or false",
	"int":      "a whole number",
	"uint16":   "a number from 0 to 65535",
	"duration": "a duration such as 500ms",
}

// scalar returns a value as text for the flag; name and takes are for errors.
func (f *File) scalar(flag *pflag.Flag, name, takes string, value ast.Node) (string, *Error) {
	kind := flag.Value.Type()
	number := kind == "int" || kind == "uint16"
	switch v := value.(type) {
	case *ast.NullNode:
		return "", f.errorAt(v.Token, "%s has no value: add one, or remove the line", name)
	case *ast.BoolNode:
		if kind == "bool" {
			return v.Token.Value, nil
		}
	case *ast.IntegerNode, *ast.FloatNode:
		if kind != "bool" {
			return v.GetToken().Value, nil
		}
	case *ast.StringNode:
		// A number that is too large for YAML, unless quoted.
		if kind != "bool" && (!number || v.Token.Type == token.StringType) {
			return v.Value, nil
		}
	case *ast.LiteralNode:
		if kind != "bool" && !number {
			return v.Value.Value, nil
		}
	}
	return "", f.errorAt(first(value), "%s is %s instead of %s", name, kindOf(value), takes)
}

// kindOf describes a value.
func kindOf(value ast.Node) string {
	switch v := value.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a map"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.BoolNode:
		return "true or false"
	case *ast.StringNode:
		return fmt.Sprintf("the text %.60q", v.Value)
	case *ast.LiteralNode:
		return "a block of text"
	}
	return "the number " + first(value).Value
}

// first returns the first token of a value.
func first(value ast.Node) *token.Token {
	switch v := value.(type) {
	case *ast.MappingNode:
		if !v.IsFlowStyle && len(v.Values) > 0 {
			return first(v.Values[0])
		}
	case *ast.MappingValueNode:
		return v.Key.GetToken()
	}
	return value.GetToken()
}

// removed are keys of earlier versions, and what to do with them.
var removed = map[string]string{
	"sequence": "delete the line: the kernel adjusts sequence numbers where this host translates, and elsewhere lines keep their length",
}

// unknown returns the error for a key that is not a flag.
func (f *File) unknown(at *token.Token, key string, flags *pflag.FlagSet) *Error {
	if advice, ok := removed[key]; ok {
		return f.errorAt(at, "the setting %s was removed; %s", key, advice)
	}
	hint := ""
	if name := Closest(key, flags); name != "" {
		hint = fmt.Sprintf("; did you mean %s?", name)
	}
	return f.errorAt(at, "there is no setting %.60q%s", key, hint)
}

// Closest returns the visible flag whose name is most similar to a misspelt one, "" if none is similar.
func Closest(misspelt string, flags *pflag.FlagSet) (name string) {
	best := 1 + len(misspelt)/3
	flags.VisitAll(func(flag *pflag.Flag) {
		if d := distance(misspelt, flag.Name); d <= best && !flag.Hidden {
			name, best = flag.Name, d-1
		}
	})
	return name
}

// distance returns the number of bytes to change, add, remove or swap with the next one to turn a into b (optimal
// string alignment).
func distance(a, b string) int {
	older, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			d := last[j]
			if a[i] != b[j] {
				d = 1 + min(last[j], row[j], last[j+1])
			}
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d = min(d, older[j-1]+1)
			}
			row[j+1] = d
		}
		older, last, row = last, row, older
	}
	return last[len(b)]
}
