package netns

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestAnotherPort adds a port to the set of control ports while the daemon runs.
func TestAnotherPort(t *testing.T) {
	t.Parallel()
	const port = 2121
	for _, family := range Families {
		t.Run(family.String(), func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: family, Helper: Ours, Ports: []uint16{21, port}})
			site := startSite(t, lab.Server, family, SiteOptions{Port: port})
			ctx := testContext(t, 2*time.Minute)
			try := func(verb Verb, timeout time.Duration) Outcome {
				return cell{DNAT, family, verb, Download, Curl}.transfer(lab, site, timeout).Run(ctx, lab.Client)
			}
			// The port is not in the set yet.
			wantNoData(t, family, func(verb Verb) Outcome { return try(verb, failingTimeout) })
			add := fmt.Sprintf("add element inet nfq_ftphelper ports { %d }\n", port)
			if err := lab.ServerRouter().Nft(ctx, add); err != nil {
				t.Fatal(err)
			}
			for _, verb := range family.Verbs() {
				if outcome := try(verb, workingTimeout); outcome.Err != nil {
					t.Errorf("%s after port %d is in the set: %v\n%s", verb, port, outcome.Err, outcome.Transcript)
				}
			}
			wantNothingInvalid(t, lab.Routers...)
		})
	}
}

// TestDaemonGone takes the daemon away from under a control connection whose
// sequence numbers have been adjusted. The connection goes on, without help, and
// with help again once there is a daemon again.
func TestDaemonGone(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"killed", "stopped"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
			site := startSite(t, lab.Server, IPv4, SiteOptions{})
			router, ctx := lab.ServerRouter(), testContext(t, time.Minute)
			client := dialScripted(t, lab.Client, netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, 21))
			client.login()
			fetch := func() {
				t.Helper()
				at := client.passive(PASV)
				if at.Addr() != lab.ServerAddress {
					t.Fatalf("the client was told %s", at)
				}
				wantContent(t, siteFile, client.fetch(siteFile, at, netip.AddrPort{}), site.Content)
			}
			fetch()
			fetch()

			var err error
			if how == "killed" {
				err = router.KillDaemon()
			} else {
				err = router.StopDaemon(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				client.do("200", "NOOP")
				client.do("257", "PWD")
			}
			// This shows that there really is no daemon now.
			if at := client.passive(PASV); at.Addr() != lab.Addresses.Server.Addr() {
				t.Errorf("without a daemon the client was told %s", at)
			}
			client.do("200", "NOOP")

			if err := router.StartDaemon(ctx); err != nil {
				t.Fatal(err)
			}
			fetch()
			client.do("257", "PWD")
			fetch()
			client.quit()
			wantNothingInvalid(t, lab.Routers...)
		})
	}
}
