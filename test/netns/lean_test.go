package netns

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// loseFirst drops every other 227 in front of the client: it is always sent twice.
const loseFirst = `table inet lossy {
	chain input {
		type filter hook input priority -10;
		tcp sport 21 @ih,0,24 0x323237 numgen inc mod 2 0 drop
	}
}
`

// TestLean has answers to PASV sent again, which have to be rewritten again, and answers that
// nobody has asked for, which must not.
func TestLean(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours,
		Daemon: Daemon{BackEnd: BackEnd{Helper: "carrier", Ruleset: "lean"}}})
	own := lab.Addresses.Server.Addr()
	unasked := fmt.Sprintf("227 look here (%s)", numbers(netip.AddrPortFrom(own, 40000), "%d"))
	startScripted(t, lab.Server, netip.AddrPortFrom(own, 21), script{replies: map[string]string{"STAT": unasked}})
	client := lab.login(t)
	const rounds = 5
	for i := range rounds {
		client.wantFiles(lab.ServerAddress, PASV)
		if got := client.do("227", "STAT"); got != unasked {
			t.Errorf("round %d: %q came as %q", i, unasked, got)
		}
	}
	must.Do(t, lab.Client.Nft(testContext(t, 20*time.Second), loseFirst))
	for range rounds {
		client.wantFiles(lab.ServerAddress, PASV)
	}
	client.quit()
	wantNothingInvalid(t, lab.Routers...)
	if counts := stopAndCount(t, lab.ServerRouter()); counts["expected"] != 2*rounds || counts["changed"] < 3*rounds {
		t.Errorf("want %d data connections expected, and half of the answers rewritten twice: %v", 2*rounds, counts)
	}
}
