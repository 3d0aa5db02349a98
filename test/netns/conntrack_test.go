package netns

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// The ports of the classic case. With all of them pinned, two runs show the same
// lines.
const (
	classicControlPort = 50774
	classicPassivePort = 37157
	classicDataPort    = 50775
	classicActivePort  = 50776
	classicServerPort  = 20
)

const classicFile = "file"

// TestConntrackView compares what conntrack(8) prints about expectations and
// data connections with the kernel's helper and with ours: client 203.0.113.101,
// router 192.0.2.2, server 192.168.1.2 without a default route.
func TestConntrackView(t *testing.T) {
	t.Parallel()
	needKernelHelper(t)
	for _, verb := range Verbs {
		t.Run(string(verb), func(t *testing.T) {
			t.Parallel()
			want := watchClassic(t, verb, Kernel)
			got := watchClassic(t, verb, Ours)
			compareLines(t, "expectations", got.expectations, want.expectations)
			compareLines(t, "data connection", got.data, want.data)
		})
	}
}

// classicView is what conntrack printed in one run.
type classicView struct {
	expectations, data []string
}

// watchClassic downloads one file and returns the events on the router.
func watchClassic(t *testing.T, verb Verb, helper Helper) classicView {
	t.Helper()
	lab := newLab(t, Config{Situation: DNATMasquerade, Family: IPv4, Helper: helper})
	// Both sides wait before they close. Packets that meet on the router change the
	// connection's state on two processors at once, and then conntrack prints one
	// state or the other.
	wait := Scale(150 * time.Millisecond)
	lab.serve(t, script{
		passivePort: classicPassivePort, activePort: classicServerPort, lateClose: wait,
	})
	router := lab.ServerRouter()
	ctx := testContext(t, time.Minute)
	dataPort := fmt.Sprint(classicPassivePort)
	if verb.active() {
		dataPort = fmt.Sprint(classicActivePort)
	}
	expectations, err := router.WatchEvents(ctx, "expect")
	must.Do(t, err)
	connections, err := router.WatchEvents(ctx, "-p", "tcp", "--orig-port-dst", dataPort)
	must.Do(t, err)

	from := lab.Addresses.Client.Addr()
	client := dialScripted(t, lab.Client, netip.AddrPortFrom(from, classicControlPort),
		netip.AddrPortFrom(lab.ServerAddress, 21))
	client.lateClose = wait
	client.login()
	var content []byte
	switch verb {
	case PORT:
		content = client.fetchActive(classicFile, classicActivePort, portCommand)
	case EPRT:
		content = client.fetchActive(classicFile, classicActivePort, eprtCommand)
	case PASV, EPSV:
		at := client.passive(verb)
		content = client.fetch(classicFile, at, netip.AddrPortFrom(from, classicDataPort))
	}
	wantContent(t, classicFile, content, fileContent(classicFile))
	client.quit()

	// The entry would stay for minutes.
	closed := func(output string) bool { return strings.Contains(output, "TIME_WAIT") }
	must.Do(t, connections.WaitOutput(ctx, closed))
	if _, err := router.Run(ctx, "", "conntrack", "-D", "-p", "tcp", "--orig-port-dst", dataPort); err != nil {
		t.Fatal(err)
	}
	hasDestroy := func(output string) bool { return strings.Contains(output, "[DESTROY]") }
	for _, watch := range []*Process{expectations, connections} {
		must.Do(t, watch.WaitOutput(ctx, hasDestroy))
	}
	return classicView{eventLines(expectations), eventLines(connections)}
}

var (
	helperName = regexp.MustCompile(`helper=\S+`)
	// deleter is who has deleted an entry: this test, with conntrack -D.
	deleter = regexp.MustCompile(` \[USERSPACE\].*`)
	// secondsLeft stand before "proto=6" in an expectation, behind "tcp 6" in a connection.
	secondsLeft = regexp.MustCompile(`^(\[\w+\] (?:tcp 6 )?)(\d+) `)
	spaces      = regexp.MustCompile(`\s+`)
)

// eventLines are the events of a "conntrack -E", without the name of the helper.
// The seconds left are rounded up to tens: they begin as such.
func eventLines(p *Process) []string {
	var lines []string
	for line := range strings.Lines(p.Output()) {
		line = spaces.ReplaceAllString(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(line, "[") {
			continue
		}
		line = helperName.ReplaceAllString(line, "helper=NAME")
		line = deleter.ReplaceAllString(line, "")
		if m := secondsLeft.FindStringSubmatch(line); m != nil {
			seconds, _ := strconv.Atoi(m[2])
			line = fmt.Sprintf("%s%d %s", m[1], (seconds+9)/10*10, strings.TrimPrefix(line, m[0]))
		}
		lines = append(lines, line)
	}
	return lines
}

func compareLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	if len(want) < 2 {
		t.Errorf("%s: the kernel's helper shows too little: %q", what, want)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: conntrack prints with our helper\n\t%s\nand with the kernel's\n\t%s",
			what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
		return
	}
	t.Logf("%s, the same with both:\n\t%s", what, strings.Join(want, "\n\t"))
}
