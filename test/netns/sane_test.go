package netns

import (
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"
)

// attachSane gives control connections the helper sane, and nothing that guards it.
const attachSane = `table inet unguarded {
	ct helper sane { type "sane" protocol tcp; l3proto inet; }
	chain prerouting { type filter hook prerouting priority -150; tcp dport 21 ct helper set "sane"; }
}
`

// countSaneRequests counts the segments that arm the helper sane where they come in.
const countSaneRequests = `table inet sane_requests {
	counter seen { }
	chain count { type filter hook prerouting priority -140; tcp dport 21 @ih,0,32 0x00000007 counter name seen; }
}
`

// TestCarrierOpensNothing has a client and a server speak SANE on a control connection, whose helper is
// nf_conntrack_sane: a request of eight bytes, and an answer with port 22.
func TestCarrierOpensNothing(t *testing.T) {
	t.Parallel()
	const request, answer = "\x00\x00\x00\x07\x00\x00\x00\x01", "\x00\x00\x00\x00\x00\x00\x00\x16"
	plain := func(f *forgery) { f.login() }
	for _, c := range []struct {
		name    string
		ruleset string // "" for the helper without our rules, which shows that the attack works
		before  func(*forgery)
	}{
		{"unguarded", "", plain},
		{"full", "full", plain},
		{"full, encrypted", "full", saneEncrypted},
		{"full, ignored", "full", saneIgnored},
		{"lean", "lean", plain},
		{"lean, encrypted", "lean", saneEncrypted},
		{"lean, ignored", "lean", saneIgnored},
	} {
		for _, family := range Families {
			t.Run(fmt.Sprintf("%s/%s", c.name, family), func(t *testing.T) {
				t.Parallel()
				config := Config{Situation: Routed, Family: family}
				if c.ruleset != "" {
					config.Helper, config.Daemon.BackEnd = Ours, BackEnd{Helper: "carrier", Ruleset: c.ruleset}
				}
				lab := newLab(t, config)
				router, ctx := lab.ServerRouter(), testContext(t, 20*time.Second)
				rules := countSaneRequests
				if c.ruleset == "" {
					rules += attachSane
				}
				if err := router.Nft(ctx, rules); err != nil {
					t.Fatal(err)
				}
				f := &forgery{t: t, lab: lab, family: family}
				f.connect()
				c.before(f)

				if err := writeOnce(f.client, request); err != nil {
					t.Fatal(err)
				}
				for seen := 0; seen == 0; {
					var err error
					if seen, err = router.Counter(ctx, "sane_requests", "seen"); err != nil {
						t.Fatal(err)
					}
				}
				if err := writeOnce(f.server, answer); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(answer))
				if _, err := io.ReadFull(f.fromServer, got); err != nil || string(got) != answer {
					t.Fatalf("the client got %q, %v", got, err)
				}
				ssh := netip.AddrPortFrom(lab.Addresses.Server.Addr(), 22)
				if c.ruleset == "" {
					f.wantConnection(lab.Client, f.listen(lab.Server, ssh), ssh)
					return
				}
				if expected := f.expectations(); expected != "" {
					t.Errorf("the helper sane opened a port:\n%s", expected)
				}
			})
		}
	}
}

func saneEncrypted(f *forgery) {
	f.t.Helper()
	f.say(f.client, "AUTH TLS")
	f.hear(f.fromClient, "AUTH TLS")
	f.say(f.server, "234 go on")
	f.hear(f.fromServer, "234")
}

func saneIgnored(f *forgery) {
	f.t.Helper()
	f.say(f.client, "GET / HTTP/1.1")
	f.hear(f.fromClient, "GET")
	f.say(f.server, "500 what?")
	f.hear(f.fromServer, "500")
}
