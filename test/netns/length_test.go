package netns

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// transfersPerConnection is how many data connections one control connection
// arranges in these tests.
const transfersPerConnection = 200

// shortPrivate are addresses whose private text is shorter than the public one,
// so that a rewrite makes the line longer.
func shortPrivate(s Situation) *Addresses {
	a := DefaultAddresses(s, IPv4)
	private, gateway := netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("10.0.0.1/24")
	if s.translatesServer() {
		a.Server, a.ServerGateway = private, gateway
		a.Public = netip.MustParseAddr("203.0.113.102")
	} else {
		a.Client, a.ClientGateway = private, gateway
	}
	return &a
}

// swing words addresses such that rewriting them makes lines longer for a while,
// and then shorter, with the sum of all changes going from one side of zero to the
// other. It stays within a line's length: the kernel's window tracking loses its
// way if a line grows after the lines before it have shrunk by more than that.
type swing struct {
	sum       int
	shrinking bool
}

// word returns short or long, whichever is due. The rewritten text has a length.
func (s *swing) word(short, long string, rewritten int) string {
	const limit = 10
	switch {
	case s.sum > limit:
		s.shrinking = true
	case s.sum < -limit:
		s.shrinking = false
	}
	text := short
	if s.shrinking {
		text = long
	}
	s.sum += rewritten - len(text)
	return text
}

func (s *swing) numbers(at netip.AddrPort, public netip.Addr) string {
	rewritten := numbers(netip.AddrPortFrom(public, at.Port()), "%d")
	return s.word(numbers(at, "%d"), numbers(at, "%03d"), len(rewritten))
}

// lengthChanges counts the lines with a start that are longer, and those that
// are shorter, behind the routers than before them.
func lengthChanges(t *testing.T, before, after []string, start string) (longer, shorter int) {
	t.Helper()
	only := func(lines []string) []string {
		var matching []string
		for _, line := range lines {
			if strings.HasPrefix(line, start) {
				matching = append(matching, line)
			}
		}
		return matching
	}
	before, after = only(before), only(after)
	if len(before) != transfersPerConnection || len(after) != len(before) {
		t.Fatalf("%d lines with %q left and %d arrived, want %d", len(before), start, len(after), transfersPerConnection)
	}
	for i := range before {
		switch {
		case len(after[i]) > len(before[i]):
			longer++
		case len(after[i]) < len(before[i]):
			shorter++
		}
	}
	t.Logf("%s: %d longer, %d shorter, %d as long after the rewrite", start, longer, shorter, len(before)-longer-shorter)
	return longer, shorter
}

// wantBothSigns is for lines of which many must become longer, and many shorter.
func wantBothSigns(t *testing.T, before, after []string, start string) {
	t.Helper()
	longer, shorter := lengthChanges(t, before, after, start)
	if least := transfersPerConnection / 8; longer < least || shorter < least {
		t.Errorf("want at least an eighth longer and an eighth shorter, such as:\n%q\n%q", before[:3], after[:3])
	}
}

func wantNothingInvalid(t testing.TB, routers ...*Router) {
	t.Helper()
	for _, r := range routers {
		invalid, err := r.Invalid(testContext(t, 10*time.Second))
		must.Do(t, err)
		if invalid > 0 {
			t.Errorf("conntrack on the %s found %d packets invalid", r.Name, invalid)
		}
	}
}

func wantContent(t testing.TB, name string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes arrived, want %d, or others", name, len(got), len(want))
	}
}

// forEachHelper runs a test with the kernel's helper, which shows that the test
// is right, and with ours.
func forEachHelper(t *testing.T, test func(t *testing.T, helper Helper)) {
	for _, helper := range []Helper{Kernel, Ours} {
		t.Run(helper.String(), func(t *testing.T) {
			t.Parallel()
			if helper == Kernel {
				needKernelHelper(t)
			}
			test(t, helper)
		})
	}
}

// TestManyPassiveLengths makes 200 passive transfers over one control connection
// to a server that words its 227 in ways which grow and shrink when rewritten.
func TestManyPassiveLengths(t *testing.T) {
	t.Parallel()
	forEachHelper(t, func(t *testing.T, helper Helper) {
		lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: helper, Addresses: shortPrivate(DNAT)})
		var lengths swing
		server := lab.serve(t, script{
			passive: func(_ int, at netip.AddrPort) string {
				return fmt.Sprintf("227 Entering Passive Mode (%s).", lengths.numbers(at, lab.ServerAddress))
			},
		})
		client := lab.login(t)
		for i := range transfersPerConnection {
			name := fmt.Sprintf("passive-%d", i)
			at := client.passive(PASV)
			if at.Addr() != lab.ServerAddress {
				t.Fatalf("transfer %d: the client was told %s", i, at)
			}
			if i%4 == 3 {
				client.store(name, fileContent(name), at, netip.AddrPort{})
				wantContent(t, name, server.file(name), fileContent(name))
				continue
			}
			wantContent(t, name, client.fetch(name, at, netip.AddrPort{}), fileContent(name))
		}
		client.quit()
		_, sent := server.lines()
		wantBothSigns(t, sent, client.received, "227 ")
		wantNothingInvalid(t, lab.Routers...)
	})
}

// TestManyActiveLengths is the same with PORT, from a client behind NAT.
func TestManyActiveLengths(t *testing.T) {
	t.Parallel()
	forEachHelper(t, func(t *testing.T, helper Helper) {
		sent, received := manyActive(t, Config{Situation: SNAT, Family: IPv4, Helper: helper, Addresses: shortPrivate(SNAT)},
			func(lengths *swing, at netip.AddrPort, public netip.Addr) string {
				return "PORT " + lengths.numbers(at, public)
			})
		wantBothSigns(t, sent, received, "PORT ")
	})
}

// TestManyExtendedLengths is the same with EPRT over IPv6, with addresses written
// out in full from time to time. The kernel's helper writes them out, too, so its
// lines never get shorter.
func TestManyExtendedLengths(t *testing.T) {
	t.Parallel()
	forEachHelper(t, func(t *testing.T, helper Helper) {
		sent, received := manyActive(t, Config{Situation: SNAT, Family: IPv6, Helper: helper},
			func(lengths *swing, at netip.AddrPort, public netip.Addr) string {
				long := fmt.Sprintf("EPRT |2|%s|%d|", at.Addr().StringExpanded(), at.Port())
				return lengths.word(eprtCommand(at), long, len(eprtCommand(netip.AddrPortFrom(public, at.Port()))))
			})
		if helper == Ours {
			wantBothSigns(t, sent, received, "EPRT ")
		} else if longer, _ := lengthChanges(t, sent, received, "EPRT "); longer == 0 {
			t.Error("no line is longer behind the router")
		}
	})
}

// manyActive makes 200 active transfers over one control connection. It returns the lines that the client
// has sent and those that the server has received.
func manyActive(t *testing.T, c Config, command func(lengths *swing, at netip.AddrPort, public netip.Addr) string) (sent, received []string) {
	lab := newLab(t, c)
	server, client := lab.serve(t, script{}), lab.login(t)
	var lengths swing
	for i := range transfersPerConnection {
		name := fmt.Sprintf("active-%d", i)
		content := client.fetchActive(name, 0, func(at netip.AddrPort) string {
			return command(&lengths, at, lab.Addresses.ServerGateway.Addr())
		})
		wantContent(t, name, content, fileContent(name))
	}
	client.quit()
	wantNothingInvalid(t, lab.Routers...)
	received, _ = server.lines()
	return client.sent, received
}

// TestManyTransfersVsftpd makes 200 passive transfers, and as many active ones,
// over one control connection to a real server with NAT on both sides.
func TestManyTransfersVsftpd(t *testing.T) {
	t.Parallel()
	forEachHelper(t, func(t *testing.T, helper Helper) {
		lab := newLab(t, Config{Situation: TwoRouters, Family: IPv4, Helper: helper})
		site := startSite(t, lab.Server, IPv4, SiteOptions{})
		client := lab.login(t)
		for range transfersPerConnection {
			for _, verb := range []Verb{PASV, PORT} {
				wantContent(t, siteFile, client.fetchBy(verb, siteFile, lab.ServerAddress), site.Content)
			}
		}
		client.quit()
		wantNothingInvalid(t, lab.Routers...)
	})
}

// TestGrowthAfterShrinking lets lines shrink by more than a line's length in sum
// before they grow again. The kernel's helper stalls there: its window tracking
// takes the acknowledgement of the first line that grows for one beyond what was
// sent.
func TestGrowthAfterShrinking(t *testing.T) {
	t.Parallel()
	const shrinking, growing = 40, 80
	lab := newLab(t, Config{Situation: SNAT, Family: IPv4, Helper: Ours, Addresses: shortPrivate(SNAT)})
	server := lab.serve(t, script{})
	client := lab.login(t)
	for i := range shrinking + growing {
		name := fmt.Sprintf("active-%d", i)
		content := client.fetchActive(name, 0, func(at netip.AddrPort) string {
			if i < shrinking {
				return "PORT " + numbers(at, "%03d")
			}
			return portCommand(at)
		})
		wantContent(t, name, content, fileContent(name))
	}
	client.quit()
	received, _ := server.lines()
	sum, lowest := 0, 0
	for i, line := range client.sent {
		sum += len(received[i]) - len(line)
		lowest = min(lowest, sum)
	}
	if lineLength := len("PORT 198,51,100,1,255,255"); lowest > -2*lineLength || sum <= lowest {
		t.Errorf("the lines shrank by %d bytes, and then grew by %d: too little", -lowest, sum-lowest)
	}
	wantNothingInvalid(t, lab.Routers...)
}
