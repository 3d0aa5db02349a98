package netns

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// place is where the two ends are when one is on the router, or both.
type place struct {
	router *Router
	client *Host
	server *Host
	at     netip.Addr
}

// TestLocalEndpoints has the server on the router, the client on the router, and
// both on one host over loopback, with every verb.
func TestLocalEndpoints(t *testing.T) {
	t.Parallel()
	builders := []func(*testing.T, Family, Helper, BackEnd) place{serverOnRouter, clientOnRouter, overLoopback}
	for _, family := range Families {
		for _, helper := range []Helper{None, Kernel, Ours} {
			for i, build := range builders {
				name := []string{"server on the router", "client on the router", "loopback"}[i]
				t.Run(fmt.Sprintf("%s/%s/%s", name, family, helper), func(t *testing.T) {
					t.Parallel()
					if helper == Kernel {
						needKernelHelper(t)
					}
					p := build(t, family, helper, BackEnd{})
					if helper == None {
						p.wantFailures(t, family)
						return
					}
					p.wantSuccesses(t, family)
				})
			}
		}
	}
}

func serverOnRouter(t *testing.T, f Family, helper Helper, b BackEnd) place {
	lab := newLab(t, Config{Situation: Routed, Family: f, Helper: helper, Daemon: Daemon{BackEnd: b}})
	router := lab.ServerRouter()
	return place{router: router, client: lab.Client, server: router.Host, at: lab.Addresses.ClientGateway.Addr()}
}

func clientOnRouter(t *testing.T, f Family, helper Helper, b BackEnd) place {
	lab := newLab(t, Config{Situation: Routed, Family: f, Helper: helper, Daemon: Daemon{BackEnd: b}})
	router := lab.ClientRouter()
	return place{router: router, client: router.Host, server: lab.Server, at: lab.Addresses.Server.Addr()}
}

func overLoopback(t *testing.T, f Family, helper Helper, b BackEnd) place {
	router := newRouterWith(t, "host", helper, b, 21)
	at := netip.MustParseAddr("127.0.0.1")
	if f == IPv6 {
		at = netip.IPv6Loopback()
	}
	return place{router: router, client: router.Host, server: router.Host, at: at}
}

func (p place) wantSuccesses(t *testing.T, f Family) {
	t.Helper()
	wantTransfers(t, p.client, p.at, startSite(t, p.server, f, SiteOptions{}), f)
	wantNothingInvalid(t, p.router)
}

func (p place) wantFailures(t *testing.T, f Family) {
	t.Helper()
	site := startSite(t, p.server, f, SiteOptions{})
	wantNoData(t, f, func(verb Verb) Outcome { return download(t, p.client, p.at, site, verb, failingTimeout) })
}

// TestLoopbackOnce shows that a packet which a host sends to itself is queued
// once, though it passes the hooks of postrouting and of input, and that no
// packet waits for it.
func TestLoopbackOnce(t *testing.T) {
	t.Parallel()
	host := newRouter(t, "host", Ours, 21)
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 21)
	server := startScripted(t, host.Host, at, script{})
	client := dialScripted(t, host.Host, netip.AddrPort{}, at)
	client.login()
	const dialogues = 40
	var times []time.Duration
	for i := range dialogues {
		begin := time.Now()
		client.do("200", "NOOP")
		times = append(times, time.Since(begin))
		name := fmt.Sprintf("file-%d", i)
		wantContent(t, name, client.fetch(name, client.passive(PASV), netip.AddrPort{}), fileContent(name))
		wantContent(t, name, client.fetchActive(name, 0, portCommand), fileContent(name))
	}
	client.quit()

	received, sent := server.lines()
	queued, err := host.QueuedPackets()
	must.Do(t, err)
	segments := len(received) + len(sent)
	again := tcpCounters(t, host.Host)["RetransSegs"]
	slices.Sort(times)
	median := times[len(times)/2]
	t.Logf("%d segments with payload, %d of them sent again, %d packets queued, NOOP answered within %s (median)",
		segments, again, queued, median)
	if queued == 0 {
		t.Error("no packet was queued")
	}
	const synAck = 1
	if queued > segments+synAck+again {
		t.Errorf("%d packets were queued for %d segments and %d retransmissions: some twice", queued, segments, again)
	}
	// A lost or held segment comes again after 200 ms at the earliest.
	if limit := Scale(50 * time.Millisecond); median > limit {
		t.Errorf("a NOOP takes %s, want less than %s", median, limit)
	}
	wantNothingInvalid(t, host)
}
