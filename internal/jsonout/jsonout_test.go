package jsonout_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/jsonout"
)

// TestControl wants no byte in JSON that a terminal may obey, and the same text when it is read again.
func TestControl(t *testing.T) {
	const text = "a\u009b31m\u0080\u009f\u007f\x1b[2J<\u00e9\u20ac\U0001f4e1>\x9b\xff"
	const read = "a\u009b31m\u0080\u009f\u007f\x1b[2J<\u00e9\u20ac\U0001f4e1>\ufffd\ufffd"
	for name, write := range map[string]func(*bytes.Buffer){
		"encoder": func(b *bytes.Buffer) {
			if err := jsonout.NewEncoder(b).Encode(map[string]string{"line": text}); err != nil {
				t.Fatal(err)
			}
		},
		"log": func(b *bytes.Buffer) { slog.New(slog.NewJSONHandler(jsonout.Writer(b), nil)).Info("x", "line", text) },
	} {
		var b bytes.Buffer
		write(&b)
		for _, r := range b.String() {
			if r < ' ' && r != '\n' || 0x7f <= r && r <= 0x9f {
				t.Errorf("%s: got %q, want no %q in it", name, &b, r)
			}
		}
		var got struct{ Line string }
		if err := json.Unmarshal(b.Bytes(), &got); err != nil || got.Line != read {
			t.Errorf("%s: %s reads as %q, %v, want %q", name, &b, got.Line, err, read)
		}
	}
}
