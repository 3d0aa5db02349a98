package netns

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestEncrypted has a server accept AUTH TLS. What follows would be ciphertext, so
// that nothing of it is queued any more; that the two go on in clear text shows
// that nothing of it is read either.
func TestEncrypted(t *testing.T) {
	t.Parallel()
	for _, family := range Families {
		t.Run(family.String(), func(t *testing.T) {
			t.Parallel()
			verb := map[Family]Verb{IPv4: PASV, IPv6: EPRT}[family]
			lab := newLab(t, Config{Situation: DNATMasquerade, Family: family, Helper: Ours})
			server := lab.serve(t, script{
				replies: map[string]string{"AUTH": "234 Go ahead"},
			})
			client := lab.login(t)
			// After these the sequence numbers of both directions may be adjusted.
			client.wantFiles(lab.ServerAddress, family.Verbs()...)
			router := lab.ServerRouter()
			queued := func() int {
				n, err := router.QueuedPackets()
				must.Do(t, err)
				return n
			}
			start := queued()
			client.do("200", "NOOP")
			if n := queued() - start; n < 2 {
				t.Fatalf("%d packets were queued of a NOOP and its reply, want 2", n)
			}
			client.do("234", "AUTH TLS")
			end := queued()
			for range 10 {
				client.do("200", "NOOP")
				client.do("234", "AUTH TLS")
			}
			if verb == PASV {
				if at := client.passive(PASV); at.Addr() != lab.Addresses.Server.Addr() {
					t.Errorf("the client was told %s: what is encrypted was read", at)
				}
			} else {
				command := eprtCommand(netip.AddrPortFrom(client.ownAddress(), 1025))
				client.do("200", command)
				received, _ := server.lines()
				if got := received[len(received)-1]; got != command {
					t.Errorf("the server got %q, not %q: what is encrypted was read", got, command)
				}
			}
			if n := queued() - end; n > 0 {
				t.Errorf("%d packets were queued after AUTH was accepted", n)
			}
			wantEncryptedLines(t, router, 1)

			// That goes for this connection and no other.
			other := lab.login(t)
			other.wantFiles(lab.ServerAddress, verb)
			other.quit()
			client.quit()
			wantEncryptedLines(t, router, 1)
			wantNothingInvalid(t, lab.Routers...)
			if counts := stopAndCount(t, router); counts["expected"] != len(family.Verbs())+1 {
				t.Errorf("the daemon counted %v", counts)
			}
		})
	}
}

// TestEncryptionRefused has a server that refuses AUTH: the connection stays in
// clear text, and is helped.
func TestEncryptionRefused(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNATMasquerade, Family: IPv4, Helper: Ours})
	lab.serve(t, script{})
	client := lab.dial(t)
	client.do("502", "AUTH TLS")
	client.login()
	client.wantFiles(lab.ServerAddress, Verbs...)
	client.quit()
	wantEncryptedLines(t, lab.ServerRouter(), 0)
	wantNothingInvalid(t, lab.Routers...)
	wantAllHelped(t, lab.Routers...)
}

// wantEncryptedLines wants the daemon to have said so many times that a connection
// is encrypted. The log may come later than the packets.
func wantEncryptedLines(t testing.TB, r *Router, want int) {
	t.Helper()
	count := func(output string) int { return strings.Count(output, "encrypted from here on") }
	enough := func(output string) bool { return count(output) >= want }
	must.Do(t, r.DaemonProcess().WaitOutput(testContext(t, 10*time.Second), enough))
	if n := count(r.DaemonProcess().Output()); n != want {
		t.Errorf("the daemon said %d times that a connection is encrypted, want %d", n, want)
	}
}
