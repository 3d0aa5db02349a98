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

// TestStalledReader logs more than anybody reads: nobody waits, what there was room for comes in its order,
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
			t.Fatalf("%d lines came, and %d were said to be missing: %v", written, missing, scanner.Err())
		}
		i := strings.LastIndexByte(scanner.Text(), '=')
		n, err := strconv.Atoi(scanner.Text()[i+1:])
		switch {
		case err != nil:
			t.Fatal(err)
		case strings.HasSuffix(scanner.Text()[:i], " lines"):
			missing += n
		case n <= last:
			t.Fatalf("behind line %d comes %q", last, scanner.Text())
		default:
			last = n
			written++
		}
	}
	if written < capacity || missing == 0 {
		t.Errorf("%d lines came, and %d were missing", written, missing)
	}

	log.Info("last")
	start := time.Now()
	end() // with nobody there
	if took := time.Since(start); took > 10*patience {
		t.Errorf("the end took %s", took)
	}
}

// TestEnd wants what has been logged to be written at the end, and what comes later to harm nobody.
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
		t.Errorf("%d lines were written: %.200s", n, out.String())
	}
	for range 2 * capacity {
		log.Info("late")
	}
	if out.Len() != written {
		t.Error("something was written after the end")
	}
}
