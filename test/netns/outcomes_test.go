package netns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// eventLog has the events of a router's daemon.
type eventLog struct {
	testing.TB
	router *Router
	begin  time.Time
}

func newEventLog(t testing.TB, r *Router) *eventLog { return &eventLog{t, r, time.Now()} }

// all returns the events so far, as the command of that name prints them, and checks their words.
func (l *eventLog) all(flags ...string) (all []control.Event) {
	l.Helper()
	text := l.router.command(l, "events", append([]string{"--json", "--no-follow", "--since", l.begin.Format(time.RFC3339Nano)}, flags...)...)
	for line := range strings.Lines(text) {
		var ev control.Event
		decodeStrictly(l, line, &ev)
		wantWord(l, control.Kinds, ev.Kind)
		switch ev.Kind {
		case "refused":
			wantWord(l, control.Refusals, ev.Reason)
		case control.KindExpired:
			wantWord(l, control.Expiries, ev.Reason)
		default:
			if ev.Reason != "" {
				l.Errorf("a reason in %s", line)
			}
		}
		if ev.Verb != "" && !slices.Contains([]string{"PORT", "EPRT", "227", "229"}, ev.Verb) {
			l.Errorf("an unknown verb in %s", line)
		}
		all = append(all, ev)
	}
	return all
}

// wantWord checks that a word is one of those that the manual lists.
func wantWord(t testing.TB, words []control.Word, word string) {
	t.Helper()
	if !slices.ContainsFunc(words, func(w control.Word) bool { return w.Name == word }) {
		t.Errorf("%q is not documented: %v", word, words)
	}
}

// wait waits until the events of a client are those, by their kinds and reasons.
func (l *eventLog) wait(client netip.AddrPort, want string) (of []control.Event) {
	l.Helper()
	for deadline := time.Now().Add(Scale(3 * time.Minute)); ; time.Sleep(50 * time.Millisecond) {
		of = of[:0]
		var got []string
		for _, ev := range l.all("--client", client.Addr().String()) {
			if ev.Client == client && ev.Kind != "tracked" {
				of = append(of, ev)
				got = append(got, strings.TrimSpace(ev.Kind+" "+ev.Reason))
			}
		}
		if strings.Join(got, ", ") == want {
			return of
		}
		if time.Now().After(deadline) || len(got) > strings.Count(want, ",")+1 {
			l.Fatalf("%s: got %q, want %q", client, strings.Join(got, ", "), want)
		}
	}
}

// TestOutcomesOfPrograms has real programs transfer files through every NAT and on the router itself,
// and lists what the daemon says of each: that the data connection was expected and was used, and
// that the control connection closed.
func TestOutcomesOfPrograms(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		situation Situation
		family    Family
	}{{Routed, IPv6}, {DNAT, IPv4}, {DNAT, IPv6}, {SNAT, IPv4}, {DNATMasquerade, IPv4}, {TwoRouters, IPv4}} {
		t.Run(fmt.Sprintf("%s/%s", c.situation, c.family), func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: c.situation, Family: c.family, Helper: Ours})
			p := place{router: lab.ServerRouter(), client: lab.Client, server: lab.Server, at: lab.ServerAddress}
			p.wantOutcomes(t, c.family, lab.Addresses.Server.Addr())
		})
	}
	for i, build := range []func(*testing.T, Family, Helper, BackEnd) place{serverOnRouter, clientOnRouter, overLoopback} {
		t.Run([]string{"server on the router", "client on the router", "loopback"}[i], func(t *testing.T) {
			t.Parallel()
			p := build(t, IPv4, Ours, BackEnd{})
			p.wantOutcomes(t, IPv4, p.at)
		})
	}
}

// wantOutcomes has data connections of every verb come, those of an active transfer from an address.
func (p place) wantOutcomes(t *testing.T, f Family, server netip.Addr) {
	t.Helper()
	site := startSite(t, p.server, f, SiteOptions{})
	log, ctx := newEventLog(t, p.router), testContext(t, 2*time.Minute)
	want := 0
	for _, program := range Programs {
		for _, v := range f.Verbs() {
			if !program.Can(v, f) {
				continue
			}
			transfer := Transfer{Program: program, Verb: v, Operation: Download, Server: p.at, Site: site, Timeout: workingTimeout}
			if o := transfer.Run(ctx, p.client); o.Err != nil {
				t.Fatalf("%s %s: %v\n%s", program, v, o.Err, o.Transcript)
			}
			want++
		}
	}
	var closed []control.Event
	for closed = log.all("--kind", control.KindClosed); len(closed) < want; closed = log.all("--kind", control.KindClosed) {
		if err := ctx.Err(); err != nil {
			t.Fatalf("%d of %d are closed", len(closed), want)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(closed) != want {
		t.Errorf("%d are closed, want %d", len(closed), want)
	}
	for _, over := range closed {
		events := log.wait(over.Client, "expected, used, closed")
		expected, used := events[0], events[1]
		if used.Verb != expected.Verb || used.Announced != expected.Announced || used.Advertised != expected.Advertised || used.Expected != expected.Expected {
			t.Errorf("expected %+v\nused     %+v", expected, used)
		}
		from := server
		if used.Verb == "227" || used.Verb == "229" {
			from = over.Client.Addr()
		}
		if used.From.Addr() != from || used.From.Port() == 0 || over.Transfers != 1 || over.Refused != 0 {
			t.Errorf("used %+v\nclosed %+v", used, over)
		}
	}
}

// TestOutcomes has data connections stay away, for each reason that there is.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours, Daemon: Daemon{BackEnd: BackEnd{Queues: 2}}})
	router, ctx := lab.ServerRouter(), testContext(t, 5*time.Minute)
	lab.serve(t, script{patience: 5 * time.Minute})
	log := newEventLog(t, router)
	login := func() (c *scriptedClient, client netip.AddrPort) {
		t.Helper()
		c = lab.dial(t)
		c.login()
		return c, netip.MustParseAddrPort(c.conn.LocalAddr().String())
	}
	run := func(name string, args ...string) {
		t.Helper()
		if _, err := router.Run(ctx, "", name, args...); err != nil {
			t.Fatal(err)
		}
	}

	c, client := login()
	c.passive(PASV)
	expireSoon(t, router.Host)
	events := log.wait(client, "expected, expired timeout") // newer kernels remove it when they come across it
	if why := events[1].Why; why != "no data connection came within 1 s" && why != "no data connection came within 300 s" {
		t.Errorf("timeout: %s", why)
	}

	c, client = login()
	c.passive(PASV)
	c.fetchBy(EPSV, "file", lab.ServerAddress)
	events = log.wait(client, "expected, expected, used, expired replaced")
	if events[3].Verb != "227" || events[2].Verb != "229" || !strings.Contains(events[3].Describe(), "no data connection came before the next one was announced") {
		t.Errorf("replaced: %+v", events)
	}

	c, client = login()
	c.passive(PASV)
	run("conntrack", "-F", "expect")
	log.wait(client, "expected, expired deleted")

	c, client = login()
	at := c.passive(PASV)
	must.Do(t, router.Nft(ctx, "table ip lab_drop { chain f { type filter hook forward priority 0; ct state related drop; }; }\n"))
	short, stop := context.WithTimeout(ctx, time.Second)
	if conn, err := lab.Client.Dial(short, netip.AddrPort{}, at); err == nil {
		conn.Close()
		t.Error("the filter does not drop it")
	}
	stop()
	run("nft", "delete", "table", "ip", "lab_drop")
	log.wait(client, "expected, expired dropped")

	c, client = login()
	c.passive(PASV)
	c.do("200", "PORT 203,0,113,101,0,20")
	c.quit()
	c.conn.Close()
	log.wait(client, "expected, refused low_port, closed")
	port := strconv.Itoa(int(client.Port()))
	run("conntrack", "-D", "-p", "tcp", "--orig-port-src", port)
	events = log.wait(client, "expected, refused low_port, closed, expired closed")
	if events[2].Transfers != 1 || events[2].Refused != 1 {
		t.Errorf("closed: %+v", events[2])
	}

	// A connection that has closed is not live, and conntrack has it for a while.
	c, client = login()
	for range 3 {
		c.fetchBy(PASV, "file", lab.ServerAddress)
	}
	c.quit()
	c.conn.Close()
	log.wait(client, "expected, used, expected, used, expected, used, closed")
	if text := router.command(t, "flows"); strings.Contains(text, client.String()) {
		t.Errorf("%s is closing, and listed:\n%s", client, text)
	}
	if text := router.command(t, "flows", "--all", "--filter", "state=closing"); !strings.Contains(text, client.String()) {
		t.Errorf("%s is closing, and not listed:\n%s", client, text)
	}
	var flows control.Flows
	decodeStrictly(t, router.command(t, "flows", "--json", "--sort", "transfers"), &flows)
	if flows.Closing != 1 || len(flows.Flows) != 4 {
		t.Errorf("want four flows, one of them closing, got %+v", flows)
	}
	for _, f := range flows.Flows {
		wantWord(t, control.States, f.State)
		wantWord(t, control.Sequences, f.Sequence)
		if f.Last != nil && f.Last.Reason != "" {
			wantWord(t, control.Refusals, f.Last.Reason)
		}
	}
	if len(flows.Flows) > 0 && flows.Flows[0].Expected != 2 {
		t.Errorf("by transfers the first one is %+v", flows.Flows[0])
	}

	must.Do(t, router.Nft(ctx, "add element inet nfq_ftphelper ports { 2100 }\n"))
	var status control.Status
	text := router.command(t, "status", "--json")
	decodeStrictly(t, text, &status)
	transfers := uint64(0)
	for _, q := range status.Queues {
		transfers += q.Transfers
		if q.Waiting == nil || q.Dropped == nil {
			t.Errorf("what the kernel has of queue %d is missing", q.Number)
		}
	}
	wantWord(t, control.RuleSources, status.Rules.Source)
	if !status.Ready || !status.Outcomes || status.OutcomesLost != 0 || len(status.Queues) != 2 || transfers != 9 || len(status.Refusals) != 1 ||
		status.Rules.Ports != "21,2100" || time.Since(status.Started) > time.Hour {
		t.Errorf("%s", text)
	}

	// On a terminal there is colour, unless NO_COLOR is set, and no line is wider than the terminal.
	terminal := func(env string) string {
		t.Helper()
		command := fmt.Sprintf("stty rows 24 cols 80; exec %s events --since 1h --no-follow --control %s", router.daemon.Binary, router.Control())
		text, err := router.Run(ctx, "", "env", "TERM=xterm", "LC_ALL=C.UTF-8", env, "script", "-qfec", command, "/dev/null")
		must.Do(t, err)
		return strings.ReplaceAll(text, "\r\n", "\n")
	}
	coloured, plain := terminal("A=B"), terminal("NO_COLOR=1")
	if !strings.Contains(coloured, "\x1b[33mrefused") || strings.Contains(plain, "\x1b") || ansi.Strip(coloured) != plain {
		t.Errorf("on a terminal:\n%q\nwith NO_COLOR:\n%q", coloured, plain)
	}
	for line := range strings.Lines(plain) {
		if n := ansi.StringWidth(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}

	// Without its rules it is not ready.
	run("nft", "delete", "table", "inet", "nfq_ftphelper")
	text, err := router.Run(ctx, "", router.daemon.Binary, "status", "--control", router.Control())
	if err == nil || !strings.Contains(fmt.Sprint(err), "FTP is not helped: ") || !strings.Contains(text, "ready      no: ") || !strings.Contains(text, "PORT 203.0.113.101:20") {
		t.Errorf("without its rules: %v\n%s", err, text)
	}
}

// expireSoon has all expectations of a host expire within a second: their time-out is the kernel's.
func expireSoon(t testing.TB, h *Host) {
	t.Helper()
	const get, change, timeout = 1, 0, 4 // IPCTNL_MSG_EXP_GET, IPCTNL_MSG_EXP_NEW, CTA_EXPECT_TIMEOUT
	err := h.Do(func() error {
		conn, err := netfilter.Dial(nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		request, err := netfilter.MarshalNetlink(netfilter.Header{
			SubsystemID: netfilter.NFSubsysCTNetlinkExp, MessageType: get, Family: netfilter.ProtoIPv4, Flags: netlink.Request | netlink.Dump,
		}, nil)
		if err != nil {
			return err
		}
		all, err := conn.Query(request)
		if err != nil {
			return err
		}
		if len(all) == 0 {
			return fmt.Errorf("there are no expectations")
		}
		for _, m := range all {
			header, attributes, err := netfilter.UnmarshalNetlink(m)
			if err != nil {
				return err
			}
			for i := range attributes {
				if attributes[i].Type == timeout {
					attributes[i].PutUint32(1)
				}
			}
			header.MessageType, header.Flags = change, netlink.Request|netlink.Acknowledge
			request, err := netfilter.MarshalNetlink(header, attributes)
			if err != nil {
				return err
			}
			if _, err := conn.Query(request); err != nil {
				return err
			}
		}
		return nil
	})
	must.Do(t, err)
}
