package logqueue

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestHandler has the standard library judge the handler.
func TestHandler(t *testing.T) {
	var out bytes.Buffer
	log, end := New(slog.NewJSONHandler(&out, nil))
	if err := slogtest.TestHandler(log.Handler(), func() (results []map[string]any) {
		end()
		for line := range bytes.Lines(out.Bytes()) {
			var m map[string]any
			must.Do(t, json.Unmarshal(line, &m))
			results = append(results, m)
		}
		return results
	}); err != nil {
		t.Error(err)
	}
}

// TestStalledReader logs to a blocked reader: logging does not block, what there was room for comes in its order,
// and what is missing is counted.
func TestStalledReader(t *testing.T) {
	const lines = 3 * capacity
	r, w := io.Pipe()
	log, end := New(slog.NewTextHandler(w, nil))
	for i := range lines {
		log.Info("line", "number", i)
	}
	var written, missing int
	last := -1
	for scanner := bufio.NewScanner(r); written+missing < lines; {
		if !scanner.Scan() {
			t.Fatalf("got %d lines, and %d reported as lost: %v", written, missing, scanner.Err())
		}
		i := strings.LastIndexByte(scanner.Text(), '=')
		n, err := strconv.Atoi(scanner.Text()[i+1:])
		switch {
		case err != nil:
			t.Fatal(err)
		case strings.HasSuffix(scanner.Text()[:i], " lines"):
			missing += n
		case n <= last:
			t.Fatalf("after line %d: got %q", last, scanner.Text())
		default:
			last = n
			written++
		}
	}
	if written < capacity || missing == 0 {
		t.Errorf("got %d lines, %d lost", written, missing)
	}

	log.Info("last")
	start := time.Now()
	end() // with a blocked reader
	if took := time.Since(start); took > 10*patience {
		t.Errorf("got an end after %s", took)
	}
}

// TestEnd checks that earlier records are written at the end, and that later ones are discarded.
func TestEnd(t *testing.T) {
	var out bytes.Buffer
	log, end := New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))
	for range capacity / 2 {
		log.Info("line")
		log.Debug("no line")
	}
	end()
	written := out.Len()
	if n := strings.Count(out.String(), "msg=line\n"); n != capacity/2 || strings.Count(out.String(), "\n") != n {
		t.Errorf("got %d lines: %.200s", n, out.String())
	}
	for range 2 * capacity {
		log.Info("late")
	}
	if out.Len() != written {
		t.Error("got output after the end, want none")
	}
}
