package netns

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
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
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return report, code
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
				outcome := cell{DNATMasquerade, family, EPSV, Download, Curl}.transfer(lab, site, workingTimeout).Run(testContext(t, time.Minute), lab.Client)
				if outcome.Err != nil {
					t.Errorf("%v\n%s", outcome.Err, outcome.Transcript)
				}
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

// TestDoctorFindings breaks a router that is in order, in one way each, and reads the
// line that says so. Nothing else may be wrong.
func TestDoctorFindings(t *testing.T) {
	t.Parallel()
	nft := func(ruleset string) func(*testing.T, *Lab) {
		return func(t *testing.T, lab *Lab) {
			t.Helper()
			if err := lab.ServerRouter().Nft(testContext(t, 20*time.Second), ruleset); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		fault func(*testing.T, *Lab)
		line  string
		mend  string
	}{
		"daemon killed": {
			func(t *testing.T, lab *Lab) {
				if err := lab.ServerRouter().KillDaemon(); err != nil {
					t.Fatal(err)
				}
			},
			`warning  queue +nobody serves queue \d+`, `nfq-ftphelper run`,
		},
		"daemon stopped": {stopDaemon, `problem  queue +queue \d+: nfq-ftphelper, process \d+, is stopped`, `kill -CONT \d+`},
		"another program": {
			func(t *testing.T, lab *Lab) { bindQueue(t, lab.ServerRouter(), 0) },
			`problem  queue +queue \d+ is bound by another program: netns\.test, process \d+`, `--queue NUMBER`,
		},
		"no rules": {nft("delete table inet nfq_ftphelper"), `problem  rules +the queue rules are not installed`, `nfq-ftphelper rules apply`},
		"a rule gone": {
			nft("flush chain inet nfq_ftphelper prerouting"), `problem  rules +table inet nfq_ftphelper: chain prerouting: rule 1 is not "ct state new`, `nfq-ftphelper rules apply`,
		},
		"no ports": {nft("flush set inet nfq_ftphelper ports"), `problem  rules +set ports of table inet nfq_ftphelper is empty`, `nft add element inet nfq_ftphelper ports '\{ 21 \}'`},
		"helper after NAT": {
			nft(`table inet mine { ct helper h { type "sane" protocol tcp; }; chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "h"; }; }`),
			`problem  helper priority +table inet mine, chain pre \(prerouting priority 0, after NAT\): helper "sane" for port 21`,
			`in chain pre: type filter hook prerouting priority -150;`,
		},
		"kernel's helper": {
			nft(`table ip mine { ct helper h { type "ftp" protocol tcp; }; chain pre { type filter hook prerouting priority -160; tcp dport 21 ct helper set "h"; }; }`),
			`problem  other helpers +table ip mine, chain pre \(prerouting priority -160\): helper "ftp" for port 21`,
			`nft delete rule ip mine pre handle \d+`,
		},
		"no related": {
			nft(`flush chain inet filter forward; add rule inet filter forward ct state established accept; add rule inet filter forward ct state new tcp dport @ftp accept`),
			`warning  related +table inet filter, chain forward drops`, `nft insert rule inet filter forward ct state established,related accept`,
		},
		"not forwarding": {
			func(t *testing.T, lab *Lab) {
				if err := lab.ServerRouter().Sysctl("ipv4.ip_forward", "0"); err != nil {
					t.Fatal(err)
				}
			},
			`warning  forwarding +IPv4 is not forwarded between eth0, eth1`, `sysctl -w net\.ipv4\.ip_forward=1`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
			c.fault(t, lab)
			report, code := doctor(t, lab.ServerRouter())
			wantLine(t, report, c.line, c.mend)
			wantCode := 0
			if strings.HasPrefix(c.line, "problem") {
				wantCode = 1
			}
			if code != wantCode {
				t.Errorf("exit code %d, want %d", code, wantCode)
			}
			if bad := regexp.MustCompile(`(?m)^(warning|problem)`).FindAllString(report, -1); len(bad) != 1 {
				t.Errorf("want one thing to be wrong, it says\n%s", report)
			}
		})
	}
}

// wantLine wants a finding, and what mends it two lines below.
func wantLine(t *testing.T, report, line, mend string) {
	t.Helper()
	if !regexp.MustCompile(`(?m)^` + line + `.*\n .*\n +=> .*` + mend).MatchString(report) {
		t.Errorf("want %s\n=> %s\nin\n%s", line, mend, report)
	}
}

// stopDaemon has it there, and do nothing.
func stopDaemon(t *testing.T, lab *Lab) {
	t.Helper()
	process := lab.ServerRouter().DaemonProcess()
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
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
	if err := r.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	number := doctorsQueue(t)
	ctx, cancel := context.WithCancel(context.Background())
	var queue *nfqueue.Nfqueue
	err := r.Do(func() (err error) {
		queue, err = nfqueue.Open(&nfqueue.Config{NfQueue: number, MaxQueueLen: room, MaxPacketLen: 0xffff, Copymode: nfqueue.NfQnlCopyPacket})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		queue.Close()
	})
	if err := queue.Con.SetOption(netlink.NoENOBUFS, true); err != nil {
		t.Fatal(err)
	}
	ignore := func(nfqueue.Attribute) int { return 0 }
	if err := queue.RegisterWithErrorFunc(ctx, ignore, func(error) int { return 1 }); err != nil {
		t.Fatal(err)
	}
}

// talk opens connections, waits until before has returned, and has the client send lines to the server,
// each in a segment by itself.
func talk(t *testing.T, lab *Lab, before func(), connections, lines int) {
	t.Helper()
	ctx := testContext(t, 20*time.Second)
	listener, err := lab.Server.Listen(ctx, netip.AddrPortFrom(lab.Addresses.Server.Addr(), 21))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var conns []*net.TCPConn
	for range connections {
		conn, err := lab.Client.Dial(ctx, netip.AddrPort{}, netip.AddrPortFrom(lab.ServerAddress, 21))
		if err != nil {
			t.Fatal(err)
		}
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

// TestDoctorOverflow has a program serve the queue that has room for one packet only.
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
}
