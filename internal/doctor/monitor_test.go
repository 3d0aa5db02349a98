package doctor

import (
	"errors"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
)

// TestMonitor says of a daemon that only monitors that it opens nothing, and tries what it could open.
func TestMonitor(t *testing.T) {
	f := healthy()
	found := f.examineRequest(backend.Request{Rules: ftp, Monitor: true})
	wantFinding(t, found, want{Warning, "helper", "the daemon only monitors (--monitor)", ""})
	for _, line := range []string{"one was installed and removed", "another one may work beside a daemon that only monitors"} {
		if !strings.Contains(text(found), line) {
			t.Errorf("there is no %q in\n%s", line, text(found))
		}
	}
	f.carriers, f.noCTHelper = "", errors.New("no nfnetlink_cthelper")
	found = f.examineRequest(backend.Request{Rules: ftp, Monitor: true})
	if n := Count(found, Problem); n != 1 || !strings.Contains(text(found), "without --monitor, the daemon could help no connection") {
		t.Errorf("%d problems:\n%s", n, text(found))
	}
}
