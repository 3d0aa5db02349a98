package nfq

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// idle is a Handler that is never called.
type idle struct{}

func (idle) Handle(_ uint32, _ []byte, verdicts []Verdict) []Verdict { return verdicts }
func (idle) Deadline() (time.Time, bool)                             { return time.Time{}, false }
func (idle) Expire(verdicts []Verdict) []Verdict                     { return verdicts }
func (idle) Flush(verdicts []Verdict) []Verdict                      { return verdicts }

// TestLost checks that Run ends with an error when the queue's socket is closed.
func TestLost(t *testing.T) {
	host := netns.NewTestHost(t, "host")
	q := New(7, idle{}, slog.New(slog.DiscardHandler))
	ended := make(chan error, 1)
	go func() { ended <- host.Do(func() error { return q.Run(context.Background()) }) }()
	<-q.Ready()
	// What Run receives from next is no socket.
	same, err := unix.Dup(q.fd)
	must.Do(t, err)
	defer unix.Close(same)
	null, err := os.Open(os.DevNull)
	must.Do(t, err)
	defer null.Close()
	must.Do(t, unix.Dup3(int(null.Fd()), q.fd, unix.O_CLOEXEC))
	must.Do(t, unix.Send(same, noop(), 0))
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "queue 7 is lost") {
		t.Errorf("got %v from Run, want an error", err)
	}
}
