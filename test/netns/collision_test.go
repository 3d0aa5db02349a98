package netns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// In the tests in this file two ends behind one address announce the same port at
// the same time.

const (
	sharedPort      = 40000
	collisionRounds = 5
)

// TestPassivePortCollision has two servers behind one public address, one at port
// 21 and one at port 2121, which listen for data on the same port. A client of
// both is told two ports; two clients need not be, since whence they come tells
// their data connections apart.
func TestPassivePortCollision(t *testing.T) {
	t.Parallel()
	for _, family := range Families {
		for _, verb := range family.Verbs() {
			if verb.active() {
				continue
			}
			for _, clients := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s/%s/clients=%d", family, verb, clients), func(t *testing.T) {
					t.Parallel()
					collidePassive(t, family, verb, clients)
				})
			}
		}
	}
}

func collidePassive(t *testing.T, family Family, verb Verb, clients int) {
	lab := newLab(t, Config{Situation: DNAT, Family: family, Helper: Ours})
	const secondPort = 2121
	second := addHost(t, lab, "second server", family)
	redirectPort(t, lab, family, secondPort, second.address)
	how := script{passivePort: sharedPort}
	startScripted(t, lab.Server, netip.AddrPortFrom(lab.Addresses.Server.Addr(), 21), how)
	startScripted(t, second.Host, netip.AddrPortFrom(second.address, 21), how)

	var from [2]netip.AddrPort
	if clients == 2 {
		address := lab.Addresses.Client
		other := netip.PrefixFrom(address.Addr().Next(), address.Bits())
		must.Do(t, lab.Client.AddAddress("eth0", other))
		from = [2]netip.AddrPort{netip.AddrPortFrom(address.Addr(), 0), netip.AddrPortFrom(other.Addr(), 0)}
	}
	one := dialScripted(t, lab.Client, from[0], netip.AddrPortFrom(lab.ServerAddress, 21))
	two := dialScripted(t, lab.Client, from[1], netip.AddrPortFrom(lab.ServerAddress, secondPort))
	one.login()
	two.login()
	for i := range collisionRounds {
		at := [2]netip.AddrPort{one.passive(verb), two.passive(verb)}
		if at[0] != netip.AddrPortFrom(lab.ServerAddress, sharedPort) {
			t.Errorf("the first one who asked was told %s, want port %d", at[0], sharedPort)
		}
		if at[1].Addr() != lab.ServerAddress || (at[1].Port() == sharedPort) != (clients == 2) {
			t.Errorf("the first one who asked was told %s, the second one %s", at[0], at[1])
		}
		// Each server has its own files, so what goes to the wrong one shows.
		first, last := one.dial(from[0], at[0]), two.dial(from[1], at[1])
		names := [2]string{fmt.Sprintf("first-%d", i), fmt.Sprintf("second-%d", i)}
		wantContent(t, names[1], two.retrieve(names[1], last), fileContent(names[1]))
		wantContent(t, names[0], one.retrieve(names[0], first), fileContent(names[0]))
	}
	one.quit()
	two.quit()
	wantNothingInvalid(t, lab.Routers...)
	wantAllHelped(t, lab.Routers...)
}

// TestActivePortCollision has two clients behind one router that masquerades, and
// both listen for data on the same port. The server is told two.
func TestActivePortCollision(t *testing.T) {
	t.Parallel()
	for _, family := range Families {
		for _, verb := range family.Verbs() {
			if verb.active() {
				t.Run(fmt.Sprintf("%s/%s", family, verb), func(t *testing.T) {
					t.Parallel()
					collideActive(t, family, verb)
				})
			}
		}
	}
}

func collideActive(t *testing.T, family Family, verb Verb) {
	lab := newLab(t, Config{Situation: SNAT, Family: family, Helper: Ours})
	second := addHost(t, lab, "second client", family)
	server := lab.serve(t, script{})
	one := lab.dial(t)
	two := dialScripted(t, second.Host, netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, 21))
	one.login()
	two.login()
	first, last := one.listen(sharedPort), two.listen(sharedPort)
	defer first.Close()
	defer last.Close()
	for i := range collisionRounds {
		announce := map[Verb]func(netip.AddrPort) string{PORT: portCommand, EPRT: eprtCommand}[verb]
		one.do("200", announce(address(first)))
		two.do("200", announce(address(last)))
		received, _ := server.lines()
		received = received[len(received)-2:]
		want := announce(netip.AddrPortFrom(lab.Addresses.ServerGateway.Addr(), sharedPort))
		if received[0] != want || received[1] == want || !strings.HasPrefix(received[1], string(verb)) {
			t.Errorf("the server got %q, want %q and another port", received, want)
		}
		names := [2]string{fmt.Sprintf("first-%d", i), fmt.Sprintf("second-%d", i)}
		two.do("150", "RETR "+names[1])
		one.do("150", "RETR "+names[0])
		wantContent(t, names[0], one.readAll(one.accept(first)), fileContent(names[0]))
		wantContent(t, names[1], two.readAll(two.accept(last)), fileContent(names[1]))
		one.want("226")
		two.want("226")
	}
	one.quit()
	two.quit()
	wantNothingInvalid(t, lab.Routers...)
	wantAllHelped(t, lab.Routers...)
}

// addedHost is a host in a network of its own.
type addedHost struct {
	*Host
	address netip.Addr
}

// addHost adds a host behind one more interface of the lab's router.
func addHost(t testing.TB, lab *Lab, name string, family Family) addedHost {
	t.Helper()
	address, gateway := netip.MustParsePrefix("192.168.3.2/24"), netip.MustParsePrefix("192.168.3.1/24")
	if family == IPv6 {
		address, gateway = netip.MustParsePrefix("fd00:3::2/64"), netip.MustParsePrefix("fd00:3::1/64")
	}
	h := attachHost(t, lab.ServerRouter(), "eth2", name, address, gateway)
	return addedHost{h, address.Addr()}
}

// redirectPort makes a port of the public address that of another server, and a
// control port.
func redirectPort(t testing.TB, lab *Lab, family Family, port uint16, server netip.Addr) {
	t.Helper()
	ip := map[Family]string{IPv4: "ip", IPv6: "ip6"}[family]
	rules := fmt.Sprintf(`add rule %s nat prerouting %s daddr %s tcp dport %d dnat to %s
		add element inet nfq_ftphelper ports { %d }
	`, ip, ip, lab.Addresses.Public, port, netip.AddrPortFrom(server, 21), port)
	must.Do(t, lab.ServerRouter().Nft(testContext(t, 10*time.Second), rules))
}
