package netns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// The tests in this file cut the lines of control connections into segments in all
// the ways in which TCP may do so.

// forEachTranslation runs a test in every situation with NAT.
func forEachTranslation(t *testing.T, test func(*testing.T, Situation, Family)) {
	for _, situation := range []Situation{DNAT, SNAT, DNATMasquerade, TwoRouters} {
		for _, family := range Families {
			t.Run(fmt.Sprintf("%s/%s", situation, family), func(t *testing.T) {
				t.Parallel()
				test(t, situation, family)
			})
		}
	}
}

// TestByteSegments has a client and a server that write each byte by itself.
func TestByteSegments(t *testing.T) {
	t.Parallel()
	forEachTranslation(t, sendByteSegments)
}

func sendByteSegments(t *testing.T, situation Situation, family Family) {
	lab := newLab(t, Config{Situation: situation, Family: family, Helper: Ours})
	widenWindow(t, lab.Client)
	widenWindow(t, lab.Server)
	server := lab.serve(t, script{write: writeByteSegments})
	client := &scriptedClient{t: t, host: lab.Client, write: writeByteSegments}
	client.connect(netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, 21))
	everyTransfer(client, server, lab, family)

	written := 0
	for _, conn := range append(server.connections(), client.conn) {
		bytes, segments, err := sentOnce(conn)
		must.Do(t, err)
		if bytes == 0 || bytes != segments {
			t.Errorf("%d bytes went in %d segments", bytes, segments)
		}
		written += bytes
	}
	// A second router gets fewer: where the first one has shortened a line,
	// some segments have lost their only byte.
	if queued, err := lab.ServerRouter().QueuedPackets(); len(lab.Routers) == 1 && (err != nil || queued < written) {
		t.Errorf("%d bytes were written, and %d packets queued, %v", written, queued, err)
	}
	client.quit()
	wantNothingInvalid(t, lab.Routers...)
	if held := wantAllHelped(t, lab.Routers...); held == 0 {
		t.Error("no packet was held")
	}
}

// TestByteWrites is the same with the windows that TCP has by itself, so that it
// sends the last part of a line as one segment, and only when it gets impatient:
// the router acknowledges nothing that it holds.
func TestByteWrites(t *testing.T) {
	t.Parallel()
	waitForProbes(t, writeBytes)
}

// TestNagle has both sides write their lines in two parts, with Nagle's algorithm in force: TCP
// keeps the second part back for as long as the first is not acknowledged, and it never is while
// the router holds it.
func TestNagle(t *testing.T) {
	t.Parallel()
	waitForProbes(t, writeParts)
}

// waitForProbes has both sides write in a way in which only TCP's tail loss probe (RFC 8985 section
// 7.3) brings forth the rest of a line.
func waitForProbes(t *testing.T, write func(*net.TCPConn, string) error) {
	for _, family := range Families {
		t.Run(family.String(), func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNATMasquerade, Family: family, Helper: Ours})
			server := lab.serve(t, script{write: write})
			client := &scriptedClient{t: t, host: lab.Client, write: write}
			client.connect(netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, 21))
			everyTransfer(client, server, lab, family)
			client.quit()
			wantNothingInvalid(t, lab.Routers...)
			if held := wantAllHelped(t, lab.Routers...); held == 0 {
				t.Error("no packet was held")
			}
		})
	}
}

// everyTransfer logs in and makes every kind of transfer, twice.
func everyTransfer(client *scriptedClient, server *scriptedServer, lab *Lab, family Family) {
	t := client.t
	t.Helper()
	client.login()
	for i := range 2 {
		for _, verb := range family.Verbs() {
			name := fmt.Sprintf("%s-%d", verb, i)
			wantContent(t, name, client.fetchBy(verb, name, lab.ServerAddress), fileContent(name))
			if verb.active() {
				continue
			}
			name += "-upload"
			client.store(name, fileContent(name), client.passive(verb), netip.AddrPort{})
			wantContent(t, name, server.file(name), fileContent(name))
		}
	}
}

// TestSplitLines cuts every line that announces an endpoint in two segments, at
// every position.
func TestSplitLines(t *testing.T) {
	t.Parallel()
	for _, situation := range []Situation{Routed, DNAT, SNAT, DNATMasquerade} {
		for _, family := range Families {
			for _, verb := range family.Verbs() {
				t.Run(fmt.Sprintf("%s/%s/%s", situation, family, verb), func(t *testing.T) {
					t.Parallel()
					splitEverywhere(t, situation, family, verb)
				})
			}
		}
	}
}

func splitEverywhere(t *testing.T, situation Situation, family Family, verb Verb) {
	lab := newLab(t, Config{Situation: situation, Family: family, Helper: Ours})
	fromServer, fromClient := &splitter{}, &splitter{}
	lab.serve(t, script{write: fromServer.write})
	client := &scriptedClient{t: t, host: lab.Client, write: fromClient.write}
	client.connect(netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, 21))
	client.login()
	line, start := fromServer, map[Verb]string{PASV: "227 ", EPSV: "229 "}[verb]
	if verb.active() {
		line, start = fromClient, string(verb)
	}
	inEndpoint := 0
	at := 1
	for ; ; at++ {
		line.cut(start, at)
		name := fmt.Sprintf("%s-%d", verb, at)
		wantContent(t, name, client.fetchBy(verb, name, lab.ServerAddress), fileContent(name))
		if !line.hasCut() {
			break
		}
		lines := client.received
		if verb.active() {
			lines = client.sent
		}
		if at > endpointStart(lines, start) {
			inEndpoint++
		}
	}
	line.cut("", 0)
	client.quit()
	if least := len("EPRT |1|1.2.3.4|1|"); at < least {
		t.Fatalf("there were only %d positions", at)
	}
	wantNothingInvalid(t, lab.Routers...)
	held := wantAllHelped(t, lab.Routers...)
	switch {
	case situation == Routed && held >= inEndpoint: // some may overtake others on two processors
		t.Errorf("%d packets were held, but there is nothing to rewrite", held)
	case situation != Routed && held < inEndpoint:
		t.Errorf("%d packets were held; the endpoint was cut, or had its end cut off, %d times", held, inEndpoint)
	}
	t.Logf("cut at %d positions, %d packets held", at-1, held)
}

// endpointStart is where the endpoint begins in the last line with a start.
func endpointStart(lines []string, start string) int {
	for i := len(lines) - 1; i >= 0; i-- {
		line := lines[i]
		if !strings.HasPrefix(line, start) {
			continue
		}
		switch line[:4] {
		case "227 ":
			return strings.Index(line, "(") + len("(")
		case "229 ":
			return strings.Index(line, "(|||") + len("(|||")
		case "PORT":
			return len("PORT ")
		case "EPRT":
			return len("EPRT |1|")
		}
	}
	return -1
}

// TestPipelinedCommands sends the commands of whole transfers in one segment, and
// gets the replies to them in one segment.
func TestPipelinedCommands(t *testing.T) {
	t.Parallel()
	forEachTranslation(t, sendPipelined)
}

func sendPipelined(t *testing.T, situation Situation, family Family) {
	lab := newLab(t, Config{Situation: situation, Family: family, Helper: Ours})
	server := lab.serve(t, script{coalesce: true})
	client := lab.login(t)
	p := pipeline{client: client, conn: server.connections()[0], lab: lab}
	for i := range 5 {
		for _, verb := range family.Verbs() {
			if verb.active() {
				p.oneActive(verb, i)
				p.twoAnnounced(verb, i)
			} else {
				p.onePassive(verb, i)
				p.twoPassive(verb, i)
				p.twoAsked(verb, i)
			}
		}
	}
	client.quit()
	wantNothingInvalid(t, lab.Routers...)
	wantAllHelped(t, lab.Routers...)
}

// pipeline is a client that does not wait for replies.
type pipeline struct {
	client *scriptedClient
	conn   *net.TCPConn // the server's end
	lab    *Lab
}

// wantSegments wants both ends to send so many segments on the control connection
// while f runs: more would mean that what was to go together did not.
func (p pipeline) wantSegments(fromClient, fromServer int, f func()) {
	t := p.client.t
	t.Helper()
	count := func() (client, server int) {
		_, client, err := sentOnce(p.client.conn)
		must.Do(t, err)
		_, server, err = sentOnce(p.conn)
		must.Do(t, err)
		return client, server
	}
	clientBefore, serverBefore := count()
	f()
	client, server := count()
	if client-clientBefore != fromClient || server-serverBefore != fromServer {
		t.Fatalf("the client sent %d segments, the server %d; want %d and %d",
			client-clientBefore, server-serverBefore, fromClient, fromServer)
	}
}

// download reads a file from where the server says it listens.
func (p pipeline) download(name string, at netip.AddrPort) {
	p.client.t.Helper()
	if at.Addr() != p.lab.ServerAddress {
		p.client.t.Fatalf("%s: the client was told %s", name, at)
	}
	wantContent(p.client.t, name, p.client.readAll(p.client.dial(netip.AddrPort{}, at)), fileContent(name))
}

func (p pipeline) onePassive(verb Verb, i int) {
	p.wantSegments(1, 2, func() { p.passive(verb, fmt.Sprintf("%s-%d", verb, i)) })
}

func (p pipeline) passive(verb Verb, name string) {
	p.client.t.Helper()
	p.client.pipeline("TYPE I", string(verb), "RETR "+name)
	p.client.want("200")
	at := p.client.wantPassive(verb)
	p.client.want("150")
	p.download(name, at)
	p.client.want("226")
}

// twoPassive has the end of one transfer and the announcement of the next in one
// segment.
func (p pipeline) twoPassive(verb Verb, i int) {
	names := []string{fmt.Sprintf("%s-%d-first", verb, i), fmt.Sprintf("%s-%d-second", verb, i)}
	p.wantSegments(1, 3, func() {
		p.client.pipeline(string(verb), "RETR "+names[0], string(verb), "RETR "+names[1])
		for _, name := range names {
			at := p.client.wantPassive(verb)
			p.client.want("150")
			p.download(name, at)
			p.client.want("226")
		}
	})
}

// twoAsked asks twice before it uses the second answer.
func (p pipeline) twoAsked(verb Verb, i int) {
	name := fmt.Sprintf("%s-%d-asked-twice", verb, i)
	p.wantSegments(1, 2, func() {
		p.client.pipeline(string(verb), string(verb), "RETR "+name)
		p.client.wantPassive(verb)
		at := p.client.wantPassive(verb)
		p.client.want("150")
		p.download(name, at)
		p.client.want("226")
	})
}

func (p pipeline) announce(verb Verb, listener *net.TCPListener) string {
	if verb == PORT {
		return portCommand(address(listener))
	}
	return eprtCommand(address(listener))
}

func (p pipeline) oneActive(verb Verb, i int) {
	p.wantSegments(1, 2, func() { p.active(verb, fmt.Sprintf("%s-%d", verb, i)) })
}

func (p pipeline) active(verb Verb, name string) {
	p.client.t.Helper()
	listener := p.client.listen(0)
	defer listener.Close()
	p.client.pipeline("TYPE I", p.announce(verb, listener), "RETR "+name)
	p.client.want("200")
	p.client.want("200")
	p.client.want("150")
	wantContent(p.client.t, name, p.client.readAll(p.client.accept(listener)), fileContent(name))
	p.client.want("226")
}

// twoAnnounced has two announcements in one segment; the second one counts.
func (p pipeline) twoAnnounced(verb Verb, i int) {
	name := fmt.Sprintf("%s-%d-announced-twice", verb, i)
	unused, listener := p.client.listen(0), p.client.listen(0)
	defer unused.Close()
	defer listener.Close()
	p.wantSegments(1, 2, func() {
		p.client.pipeline(p.announce(verb, unused), p.announce(verb, listener), "RETR "+name)
		p.client.want("200")
		p.client.want("200")
		p.client.want("150")
		wantContent(p.client.t, name, p.client.readAll(p.client.accept(listener)), fileContent(name))
		p.client.want("226")
	})
}
