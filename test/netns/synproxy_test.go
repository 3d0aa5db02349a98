package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// synproxy has the router complete the handshake with the client before the server sees a SYN. The server's
// sequence numbers are adjusted by a random offset from then on.
const synproxy = `table inet handshake {
	chain raw { type filter hook prerouting priority -300; iifname eth0 tcp dport 21 tcp flags & (fin | syn | rst | ack) == syn notrack; }
	chain forward { type filter hook forward priority -5; tcp dport 21 ct state { invalid, untracked } synproxy mss 1460 wscale 7 timestamp sack-perm; }
}
insert rule inet filter output tcp sport 21 ct state { invalid, untracked } accept
`

// TestSynproxy has a SYNPROXY in front of the server: every verb works as with the kernel's helper.
func TestSynproxy(t *testing.T) {
	t.Parallel()
	forEachHelper(t, func(t *testing.T, helper Helper) {
		for _, family := range Families {
			t.Run(family.String(), func(t *testing.T) {
				t.Parallel()
				lab := newLab(t, Config{Situation: Routed, Family: family, Helper: helper})
				router := lab.ServerRouter()
				if err := errors.Join(router.Nft(testContext(t, 20*time.Second), synproxy),
					router.Sysctl("netfilter.nf_conntrack_tcp_loose", "0"), router.Sysctl("ipv4.tcp_syncookies", "1")); err != nil {
					t.Fatal(err)
				}
				startScripted(t, lab.Server, netip.AddrPortFrom(lab.Addresses.Server.Addr(), 21), script{})
				for range 5 { // the offset is another one each time
					client := dialScripted(t, lab.Client, netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, 21))
					client.login()
					for i := range 3 {
						for _, verb := range family.Verbs() {
							name := fmt.Sprintf("%s-%d", verb, i)
							wantContent(t, name, client.fetchBy(verb, name, lab.ServerAddress), fileContent(name))
						}
					}
					client.quit()
				}
				if helper == Ours {
					wantAllHelped(t, router)
				}
			})
		}
	})
}
