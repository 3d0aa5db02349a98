package engine_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// TestLength says which connections have lines that may change their length, and what becomes of those
// that have to keep it and can't.
func TestLength(t *testing.T) {
	routed := [2]expect.Tuple{tuple("198.51.100.1:40000", "10.0.0.3:21"), tuple("10.0.0.3:21", "198.51.100.1:40000")}
	translated := [2]expect.Tuple{tuple("198.51.100.1:40000", "192.0.2.2:21"), tuple("10.0.0.3:21", "198.51.100.1:40000")}
	const (
		short  = "227 (10,0,0,3,145,37).\r\n"
		grown  = "227 (203,0,113,55,145,37).\r\n"
		long   = "227 text (10,0,0,3,145,37).\r\n"
		fitted = "227  (203,0,113,55,145,37).\r\n"
	)
	for _, c := range []struct {
		name      string
		nat       [2]expect.Tuple
		noSeqAdj  bool
		in, out   string
		adjusted  int
		installed int
	}{
		{"translated", translated, false, short, grown, 1, 1},
		{"translated, the helper attached after NAT", translated, true, long, fitted, 0, 1},
		{"not translated", routed, true, long, fitted, 0, 1},
		{"not translated, no text", routed, true, short, short, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.nat[client], c.nat[server], func(config *engine.Config) {
				config.Advertise.Addr4 = netip.MustParseAddr("203.0.113.55")
			})
			w.entry.NoSeqAdj = c.noSeqAdj
			w.login()
			for range 2 {
				w.say(client, "PASV\r\n")
				if got := w.say(server, c.in); got != c.out {
					t.Errorf("%q came out as %q, want %q", c.in, got, c.out)
				}
			}
			if w.ct.Adjustments != 2*c.adjusted || len(w.ct.Installed) != 2*c.installed {
				t.Errorf("%d adjustments, %d expectations; want %d of each line's, and %d",
					w.ct.Adjustments, len(w.ct.Installed), c.adjusted, c.installed)
			}
			const fix = "have the server announce the right address itself"
			if failed := strings.Contains(w.log.String(), fix); failed != (c.installed == 0) {
				t.Errorf("want the log to say what to do if, and only if, it fails:\n%s", &w.log)
			}
		})
	}
}
