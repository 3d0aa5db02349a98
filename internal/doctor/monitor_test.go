package doctor

import (
	"errors"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
)

// TestMonitor reports that the daemon only monitors, and whether it could help without --monitor.
func TestMonitor(t *testing.T) {
	f := healthy()
	found := f.examineRequest(backend.Request{Rules: ftp, Monitor: true})
	wantFinding(t, found, want{Warning, "helper", "the daemon only monitors (--monitor)", ""})
	for _, line := range []string{"test expectation worked", "other helpers do not disturb a daemon that only monitors"} {
		if !strings.Contains(text(found), line) {
			t.Errorf("want %q, got\n%s", line, text(found))
		}
	}
	f.carriers, f.noCTHelper = "", errors.New("no nfnetlink_cthelper")
	found = f.examineRequest(backend.Request{Rules: ftp, Monitor: true})
	if n := Count(found, Problem); n != 1 || !strings.Contains(text(found), "without --monitor, the daemon could help no connection") {
		t.Errorf("got %d problems, want 1:\n%s", n, text(found))
	}
}
