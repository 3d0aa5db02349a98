// Package jsonout writes JSON that is safe to show on a terminal. encoding/json escapes the control characters below
// 0x20 and replaces invalid UTF-8, but leaves DEL and C1 (0x80 to 0x9f), some of which terminals interpret.
package jsonout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// NewEncoder returns an encoder that writes each value to w in one line.
func NewEncoder(w io.Writer) *json.Encoder {
	e := json.NewEncoder(Writer(w))
	e.SetEscapeHTML(false)
	return e
}

// Writer returns a writer that escapes the control characters in JSON and writes it to w. Each Write must end
// between two characters, as those of encoding/json and log/slog do.
func Writer(w io.Writer) io.Writer { return writer{w} }

type writer struct{ to io.Writer }

func (w writer) Write(text []byte) (int, error) {
	if _, err := w.to.Write(escape(text)); err != nil {
		return 0, err
	}
	return len(text), nil
}

// escape returns the JSON with its control characters escaped, which occur in strings only.
func escape(text []byte) []byte {
	if bytes.IndexFunc(text, isControl) < 0 {
		return text
	}
	var out []byte
	for _, r := range string(text) {
		if isControl(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = fmt.Appendf(out, "%c", r)
		}
	}
	return out
}

func isControl(r rune) bool { return 0x7f <= r && r <= 0x9f }
