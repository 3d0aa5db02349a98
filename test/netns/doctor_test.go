package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// doctor runs nfq-ftphelper doctor on a router and returns what it prints, with its
// exit code.
func doctor(t *testing.T, r *Router, flags ...string) (report string, code int) {
	t.Helper()
	d := daemon(t, BackEnd{})
	args := append([]string{"doctor"}, flags...)
	if d.Rules == RulesOwn {
		args = append(args, "--queue", strconv.Itoa(int(d.Queue)))
	}
	report, err := r.Run(testContext(t, 20*time.Second), "", d.Binary, args...)
	return report, exitCode(t, err)
}

// exitCode is that of a program that a host has run to its end.
func exitCode(t testing.TB, err error) int {
	t.Helper()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	must.Do(t, err)
	return 0
}

// doctorsQueue is the number of the queue that the rules fill.
func doctorsQueue(t *testing.T) uint16 {
	if d := daemon(t, BackEnd{}); d.Rules == RulesOwn {
		return d.Queue
	}
	return 2121
}

// TestDoctorHealthy examines a router on which everything is as it should be, before
// and after it has helped.
func TestDoctorHealthy(t *testing.T) {
	t.Parallel()
	for _, family := range Families {
		t.Run(family.String(), func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNATMasquerade, Family: family, Helper: Ours})
			site := startSite(t, lab.Server, family, SiteOptions{})
			for range 2 {
				report, code := doctor(t, lab.ServerRouter())
				for line := range strings.Lines(report) {
					if !strings.HasPrefix(line, "ok ") {
						t.Errorf("exit code %d, it says\n%s", code, report)
						break
					}
				}
				if code != 0 {
					t.Errorf("exit code %d", code)
				}
				lab.wantDownloads(t, site, EPSV)
			}
			report, _ := doctor(t, lab.ServerRouter(), "--json")
			var parsed struct {
				Problems, Warnings *int
				Findings           []struct{ Check, Level, What string }
			}
			if err := json.Unmarshal([]byte(report), &parsed); err != nil {
				t.Fatalf("%v in\n%s", err, report)
			}
			if parsed.Problems == nil || *parsed.Problems != 0 || parsed.Warnings == nil || *parsed.Warnings != 0 || len(parsed.Findings) < 10 {
				t.Errorf("it says\n%s", report)
			}
		})
	}
}

// TestDoctorExitCode compares doctor's exit code with transfers through the router, passive and active: it is
// 0 only where these work.
func TestDoctorExitCode(t *testing.T) {
	t.Parallel()
	sh := func(script string) func(*testing.T, *Lab) {
		return func(t *testing.T, lab *Lab) {
			t.Helper()
			if _, err := lab.ServerRouter().Run(testContext(t, 20*time.Second), "", "sh", "-ec", script); err != nil {
				t.Fatal(err)
			}
		}
	}
	kill := func(t *testing.T, lab *Lab) {
		t.Helper()
		must.Do(t, lab.ServerRouter().KillDaemon())
	}
	chain := func(rules string) func(*testing.T, *Lab) {
		return sh("nft 'flush chain inet filter forward; " + rules + "'")
	}
	filter := func(program string) func(*testing.T, *Lab) {
		return sh(fmt.Sprintf("%[1]s -P FORWARD DROP; %[1]s -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT; %[1]s -A FORWARD -p tcp --dport 21 -j ACCEPT", program))
	}
	const anyPort = `nft 'table inet mine { ct helper h { type "ftp" protocol tcp; }; chain pre { type filter hook prerouting priority -160; ip daddr 198.51.100.1 ct helper set "h"; }; }'`
	const open = "chain inet filter forward { policy accept; }; add rule inet filter forward "
	for name, c := range map[string]struct {
		state  func(*testing.T, *Lab)
		strict bool
		works  bool
		code   int
		line   string
	}{
		"healthy":            {sh(":"), false, true, 0, `ok +transfer +test transfers passed in a copy of this host: .*eth0 to eth1 \(IPv4\)`},
		"healthy, strict":    {sh(":"), true, true, 0, `ok +transfer`},
		"daemon dead":        {kill, false, false, 1, `problem +queue +no program serves queue`},
		"daemon and no rule": {func(t *testing.T, lab *Lab) { kill(t, lab); sh("nft delete table inet nfq_ftphelper")(t, lab) }, false, false, 1, `problem +queue +no program serves queue`},
		"rules missing": {
			func(t *testing.T, lab *Lab) {
				const remove = "nft delete table inet nfq_ftphelper"
				sh(remove)(t, lab)
				if strings.Contains(lab.ServerRouter().DaemonProcess().Output(), `rules="own`) { // which it applies again, once
					sh("until nft list table inet nfq_ftphelper >/dev/null 2>&1; do sleep 0.1; done; "+remove)(t, lab)
				}
			},
			false, false, 1, `problem +rules +the queue rules are not installed`,
		},
		"no related": {
			chain("add rule inet filter forward ct state established accept; add rule inet filter forward tcp dport 21 accept"), false, false, 1,
			`problem +related +table inet filter, chain forward drops, and has no rule`,
		},
		"related dropped":   {chain(open + "ct state related drop"), false, false, 1, `problem +related +table inet filter, chain forward drops`},
		"high ports":        {chain(open + "tcp dport 1024-65535 ct state != established drop"), false, false, 1, `problem +related +table inet filter, chain forward drops`},
		"reject at the end": {chain(open + "tcp dport 21 accept; add rule inet filter forward ct state established accept; add rule inet filter forward reject"), false, false, 1, `problem +related +table inet filter, chain forward drops`},
		"iptables-nft":      {filter("iptables-nft"), false, false, 1, `problem +related +table ip filter, chain FORWARD drops`},
		"iptables-legacy":   {filter("iptables-legacy"), false, false, 1, `problem +related +table ip filter \(iptables-legacy\), chain FORWARD drops`},
		"a warning": {
			sh(anyPort), false, true, 0,
			`warning +other helpers +table inet mine, chain pre .*for any port`,
		},
		"a warning, strict": {
			sh(anyPort), true, true, 1,
			`warning +other helpers +table inet mine, chain pre .*for any port`,
		},
		"ports by hand": {sh("nft 'add element inet nfq_ftphelper ports { 2100 }'"), false, true, 0, `ok +rules +.*port 21, and for port 2100`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
			site := startSite(t, lab.Server, IPv4, SiteOptions{})
			c.state(t, lab)
			var flags []string
			if c.strict {
				flags = append(flags, "--strict")
			}
			report, code := doctor(t, lab.ServerRouter(), flags...)
			if code != c.code || !regexp.MustCompile(`(?m)^`+c.line).MatchString(report) {
				t.Errorf("exit code %d, want %d and %s in\n%s", code, c.code, c.line, report)
			}
			asJSON, code := doctor(t, lab.ServerRouter(), append(flags, "--json")...)
			var counts struct{ Problems, Warnings int }
			if err := json.Unmarshal([]byte(asJSON), &counts); err != nil {
				t.Fatalf("%v in\n%s", err, asJSON)
			}
			if bad := counts.Problems > 0 || c.strict && counts.Warnings > 0; code != c.code || bad != (code == 1) {
				t.Errorf("exit code %d, want %d, of\n%s", code, c.code, asJSON)
			}
			timeout := workingTimeout
			if !c.works {
				timeout = failingTimeout
			}
			outcomes := make([]Outcome, 2)
			var tries sync.WaitGroup
			for i, verb := range []Verb{PASV, PORT} {
				tries.Go(func() {
					outcomes[i] = lab.download(t, site, verb, timeout)
				})
			}
			tries.Wait()
			if works := outcomes[0].Err == nil && outcomes[1].Err == nil; works != c.works {
				t.Errorf("want transfers to work: %t; passive: %v, active: %v\n%s\n%s", c.works,
					outcomes[0].Err, outcomes[1].Err, outcomes[0].Transcript, outcomes[1].Transcript)
			}
		})
	}
}

// TestDoctorOnlyReads has doctor run without CAP_SYS_ADMIN, as in most containers: it makes no network namespace, says
// that it has only read the rules, and its exit code is what these say.
func TestDoctorOnlyReads(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
	router := lab.ServerRouter()
	examine := func() (report string, code int) {
		t.Helper()
		d := daemon(t, BackEnd{})
		report, err := router.Run(testContext(t, 20*time.Second), "", "setpriv", "--bounding-set", "-sys_admin",
			d.Binary, "doctor", "--queue", strconv.Itoa(int(doctorsQueue(t))))
		if !regexp.MustCompile(`(?m)^warning  transfer +no test transfer, the rules were only read: this host cannot be copied: no network namespace can be created: operation not permitted$`).MatchString(report) {
			t.Errorf("it says\n%s", report)
		}
		return report, exitCode(t, err)
	}
	if report, code := examine(); code != 0 {
		t.Errorf("exit code %d\n%s", code, report)
	}
	must.Do(t, router.Nft(testContext(t, 20*time.Second), "flush chain inet filter forward; add rule inet filter forward ct state established accept; add rule inet filter forward tcp dport 21 accept"))
	if report, code := examine(); code != 1 || !regexp.MustCompile(`(?m)^problem  related +table inet filter, chain forward drops`).MatchString(report) {
		t.Errorf("exit code %d\n%s", code, report)
	}
}

// circumstances are warnings about where doctor runs: it cannot make a test transfer there, or is in another process
// namespace than the daemon.
var circumstances = regexp.MustCompile(`(?m)^warning  (transfer +no test transfer|queue +queue \d+ is bound, but the program cannot be seen)`)

// wantOneFinding wants a report to have one finding, besides the circumstances.
func wantOneFinding(t *testing.T, report string) {
	t.Helper()
	if bad := regexp.MustCompile(`(?m)^(warning|problem)`).FindAllString(circumstances.ReplaceAllString(report, ""), -1); len(bad) != 1 {
		t.Errorf("want one finding, it says\n%s", report)
	}
}

// wantLine wants a finding, and its fix two lines below.
func wantLine(t *testing.T, report, line, fix string) {
	t.Helper()
	if !regexp.MustCompile(`(?m)^` + line + `.*\n .*\n +=> .*` + fix).MatchString(report) {
		t.Errorf("want %s\n=> %s\nin\n%s", line, fix, report)
	}
}

// stopDaemon has it there, and do nothing.
func stopDaemon(t *testing.T, lab *Lab) {
	t.Helper()
	process := lab.ServerRouter().DaemonProcess()
	must.Do(t, process.Signal(syscall.SIGSTOP))
	stat := filepath.Join("/proc", strconv.Itoa(process.Pid()), "stat")
	waitFor(t, "the daemon to stop", func() bool {
		text, err := os.ReadFile(stat)
		return err == nil && strings.Contains(string(text), ") T ")
	})
}

// waitFor waits until something has come true.
func waitFor(t *testing.T, what string, isTrue func() bool) {
	t.Helper()
	for end := time.Now().Add(Scale(10 * time.Second)); !isTrue(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// bindQueue kills the daemon and binds its queue, with room for some packets, without
// ever giving a verdict.
func bindQueue(t *testing.T, r *Router, room uint32) {
	t.Helper()
	must.Do(t, r.KillDaemon())
	number := doctorsQueue(t)
	ctx, cancel := context.WithCancel(context.Background())
	var queue *nfqueue.Nfqueue
	err := r.Do(func() (err error) {
		queue, err = nfqueue.Open(&nfqueue.Config{NfQueue: number, MaxQueueLen: room, MaxPacketLen: 0xffff, Copymode: nfqueue.NfQnlCopyPacket})
		return err
	})
	must.Do(t, err)
	t.Cleanup(func() {
		cancel()
		queue.Close()
	})
	must.Do(t, queue.Con.SetOption(netlink.NoENOBUFS, true))
	ignore := func(nfqueue.Attribute) int { return 0 }
	must.Do(t, queue.RegisterWithErrorFunc(ctx, ignore, func(error) int { return 1 }))
}

// talk opens connections, waits until before has returned, and has the client send lines to the server,
// each in a segment by itself.
func talk(t *testing.T, lab *Lab, before func(), connections, lines int) {
	t.Helper()
	ctx := testContext(t, 20*time.Second)
	listener, err := lab.Server.Listen(ctx, netip.AddrPortFrom(lab.Addresses.Server.Addr(), 21))
	must.Do(t, err)
	t.Cleanup(func() { listener.Close() })
	var conns []*net.TCPConn
	for range connections {
		conn, err := lab.Client.Dial(ctx, netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, 21))
		must.Do(t, err)
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
	}
	before()
	for _, conn := range conns {
		for range lines {
			if _, err := conn.Write([]byte("NOOP\r\n")); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestDoctorPacketsWaiting fills the queue of a daemon that is stopped.
func TestDoctorPacketsWaiting(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
	talk(t, lab, func() { stopDaemon(t, lab) }, 300, 1)
	var report string
	waitFor(t, "packets in the queue", func() bool {
		report, _ = doctor(t, lab.ServerRouter())
		return strings.Contains(report, "packets wait in queue")
	})
	if !regexp.MustCompile(`(?m)^warning  queue +\d+ packets wait in queue \d+$`).MatchString(report) {
		t.Errorf("it says\n%s", report)
	}
	// And they wait on.
	if again, _ := doctor(t, lab.ServerRouter()); !strings.Contains(again, "packets wait in queue") {
		t.Errorf("the second time it says\n%s", again)
	}
	wantLine(t, report, `problem  queue +queue \d+: nfq-ftphelper, process \d+, is stopped`, `kill -CONT`)
}

// TestDoctorOverflow has another program serve the queue, which has room for one packet only.
func TestDoctorOverflow(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
	talk(t, lab, func() { bindQueue(t, lab.ServerRouter(), 1) }, 1, 10)
	var report string
	waitFor(t, "an overflow", func() bool {
		report, _ = doctor(t, lab.ServerRouter())
		return strings.Contains(report, "dropped")
	})
	if !regexp.MustCompile(`(?m)^warning  queue +queue \d+ has dropped \d+ packets$`).MatchString(report) {
		t.Errorf("it says\n%s", report)
	}
	wantLine(t, report, `problem  queue +queue \d+ is bound by another program: netns\.test, process \d+`, `--queue NUMBER`)
}
