package config

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/token"
)

// Errors are the faults of a file, at least one, in the order of their lines.
type Errors []*Error

// Error returns one line with all of them.
func (e Errors) Error() string {
	texts := make([]string, len(e))
	for i, fault := range e {
		texts[i] = fault.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns each of them.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i, fault := range e {
		all[i] = fault
	}
	return all
}

// Error is a fault of a file.
type Error struct {
	File string
	// Key is the setting with a wrong value, "" for other faults.
	Key string
	// Line and Column count from 1; 0 is the whole file.
	Line, Column int
	Message      string

	lines []string // up to Line
	err   error
}

// Error returns one line: file, line and column as compilers print them, and the message.
func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// about sets Key and returns the error.
func (e *Error) about(key string) *Error {
	e.Key = key
	return e
}

// Unwrap returns the error of the message.
func (e *Error) Unwrap() error { return e.err }

// Excerpt returns the faulty line, with a mark below it and two lines before it, or "" for the whole file:
//
//	   1 | rules: true
//	>  2 | ports: 0
//	              ^
func (e *Error) Excerpt() string {
	if e.Line == 0 {
		return ""
	}
	const context = 2
	var b strings.Builder
	for i := max(0, len(e.lines)-1-context); i < len(e.lines); i++ {
		mark := ' '
		if i == len(e.lines)-1 {
			mark = '>'
		}
		fmt.Fprintf(&b, "%c %2d | %s\n", mark, i+1, printable(e.lines[i]))
	}
	before := []rune(printable(e.lines[len(e.lines)-1]))
	fmt.Fprintf(&b, "%*s%s^\n", len(fmt.Sprintf("> %2d | ", len(e.lines))), "", blank(before[:min(e.Column-1, len(before))]))
	return b.String()
}

// printable replaces unprintable runes, except tabs, and cuts long lines.
func printable(line string) string {
	const most = 200
	text := []rune(line)
	if len(text) > most {
		text = append(text[:most], '…')
	}
	for i, r := range text {
		if r != '\t' && !unicode.IsPrint(r) {
			text[i] = utf8.RuneError
		}
	}
	return string(text)
}

// blank returns blanks of the width of the text.
func blank(text []rune) string {
	for i, r := range text {
		if text[i] = ' '; r == '\t' {
			text[i] = r
		}
	}
	return string(text)
}

// errorAt returns an error at a token, or about the whole file if it is nil.
func (f *File) errorAt(t *token.Token, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	if t == nil || t.Position == nil {
		return &Error{File: f.name, Message: err.Error(), err: err}
	}
	return f.errorIn(t.Position.Line, t.Position.Column, err)
}

// errorIn returns an error at a line and column. Lines end as in YAML.
func (f *File) errorIn(line, column int, err error) *Error {
	lines := strings.Split(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(f.text), "\n")
	line = min(max(line, 1), len(lines))
	return &Error{File: f.name, Line: line, Column: max(column, 1), Message: err.Error(), lines: lines[:line], err: err}
}

// notUTF8 returns the error for the first byte that is not UTF-8.
func (f *File) notUTF8() *Error {
	valid := 0
	for valid < len(f.text) {
		r, n := utf8.DecodeRuneInString(f.text[valid:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		valid += n
	}
	before := f.text[:valid]
	column := 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
	return f.errorIn(1+strings.Count(before, "\n"), column,
		fmt.Errorf("the byte %#02x is not UTF-8: save the file in that encoding", f.text[valid]))
}
