package netns

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// testFirewall is a program that owns a host's filter, as it is installed from its Debian package.
type testFirewall struct {
	family Family
	// setUp is a script that has the firewall let control connections through, and what is established or
	// related. What it starts ends with the test.
	setUp string
	// reload has the firewall forget its rules in the kernel and load what it has saved.
	reload string
	// sound is a script that fails unless the firewall's own program lists its rules and finds them in order.
	sound string
}

// Folders of configuration are copies: the machine's own are not changed.
const copyFolders = `set -e
mount -t tmpfs tmpfs /run
own() {
	for folder in "$@"; do
		mkdir -p "/run/own$(dirname "$folder")"
		cp -a "$folder" "/run/own$folder"
		mount --bind "/run/own$folder" "$folder"
	done
}
`

func testIptables(program string, f Family) testFirewall {
	const restore = "%[1]s-save >/run/saved\ngrep -q -e '^-A FORWARD' /run/saved\n%[1]s-restore </run/saved\n"
	return testFirewall{
		family: f,
		setUp:  fmt.Sprintf("%[1]s -P FORWARD DROP; %[1]s -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; %[1]s -A FORWARD -p tcp --dport 21 -j ACCEPT", program),
		reload: fmt.Sprintf("%[1]s-save >/run/saved; %[1]s -F; %[1]s -P FORWARD ACCEPT; %[1]s-restore </run/saved", program),
		sound:  fmt.Sprintf("%[1]s -S FORWARD; %[1]s -t raw -S\n"+restore, program),
	}
}

var testFirewalls = map[string]testFirewall{
	"nft": {
		family: IPv4,
		setUp:  `nft 'table inet filter { chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; tcp dport 21 accept; }; }'`,
		reload: `nft list table inet filter >/run/saved
if nft list table inet mine >/run/mine 2>/dev/null; then
	cat /run/mine >>/run/saved
	nft delete table inet mine
fi
nft delete table inet filter
nft -f /run/saved`,
		sound: `nft list ruleset >/dev/null`,
	},
	"iptables-nft":            testIptables("iptables-nft", IPv4),
	"ip6tables-nft":           testIptables("ip6tables-nft", IPv6),
	"iptables-legacy":         testIptables("iptables-legacy", IPv4),
	"ip6tables-legacy":        testIptables("ip6tables-legacy", IPv6),
	"ufw":                     testUfw(IPv4, ""),
	"ufw6":                    testUfw(IPv6, ""),
	"ufw with legacy":         testUfw(IPv4, useLegacy),
	"firewalld":               testFirewalld("nftables"),
	"firewalld with iptables": testFirewalld("iptables"),
	"docker":                  testDocker(""),
	"docker with legacy":      testDocker(useLegacy),
	"shorewall":               testShorewall("shorewall", "iptables", IPv4),
	"shorewall6":              testShorewall("shorewall6", "ip6tables", IPv6),
}

func testDocker(first string) testFirewall {
	return testFirewall{
		family: IPv4,
		setUp: first + `cat >/run/start-docker <<'END'
dockerd --data-root /run/docker-data --exec-root /run/docker-exec --host unix:///run/docker.sock --pidfile /run/docker.pid --storage-driver vfs >>/run/docker.log 2>&1 &
until docker -H unix:///run/docker.sock version >/dev/null 2>&1; do kill -0 $!; sleep 0.1; done
END
echo 0 >/proc/sys/net/ipv4/ip_forward # where Docker turns it on, it drops what is not for containers
sh -e /run/start-docker
iptables -I DOCKER-USER -p tcp --dport 21 -j ACCEPT
iptables -I DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
		reload: `kill "$(cat /run/docker.pid)"; while [ -e /run/docker.pid ]; do sleep 0.1; done; sh -e /run/start-docker`,
		sound:  "iptables -S DOCKER-USER >/dev/null; iptables-save >/run/saved; grep -q DOCKER-ISOLATION-STAGE-1 /run/saved; iptables-restore --test </run/saved; docker -H unix:///run/docker.sock network create other >/dev/null; docker -H unix:///run/docker.sock network rm other >/dev/null",
	}
}

func testFirewalld(backEnd string) testFirewall {
	return testFirewall{
		family: IPv4,
		setUp: "own /etc/firewalld\nsed -i s/^FirewallBackend=.*/FirewallBackend=" + backEnd + "/ /etc/firewalld/firewalld.conf" + `
mkdir /run/dbus
mount -t tmpfs tmpfs /var/log
dbus-daemon --system --nofork --nopidfile --address=unix:path=/run/dbus/system_bus_socket >/run/dbus.log 2>&1 &
until [ -S /run/dbus/system_bus_socket ]; do sleep 0.05; done
firewalld --nofork --nopid >/run/firewalld.log 2>&1 &
until firewall-cmd --state >/dev/null 2>&1; do sleep 0.1; done
firewall-cmd --permanent --new-policy=through
for option in --add-ingress-zone=ANY --add-egress-zone=ANY --add-port=21/tcp --set-target=DROP; do
	firewall-cmd --permanent --policy=through $option
done
firewall-cmd --reload`,
		reload: "firewall-cmd --reload",
		sound:  "firewall-cmd --check-config; firewall-cmd --state; firewall-cmd --policy=through --list-ports | grep -q 21/tcp; nft list ruleset >/dev/null",
	}
}

// useLegacy has iptables-legacy be the host's iptables.
const useLegacy = `own /etc/alternatives
for program in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
	ln -sf "/usr/sbin/$(echo $program | sed 's/tables/tables-legacy/')" /etc/alternatives/$program
done
`

func testUfw(f Family, first string) testFirewall {
	return testFirewall{
		family: f,
		setUp:  first + "own /etc/ufw /etc/default; ufw --force enable; ufw route allow proto tcp to any port 21; ufw allow 21/tcp",
		reload: "ufw disable; ufw --force enable",
		sound:  "ufw status verbose | grep -q '21/tcp.*ALLOW FWD'; ufw show raw >/dev/null; iptables-save >/run/saved; grep -q ufw-before-forward /run/saved; iptables-restore --test </run/saved",
	}
}

func testShorewall(program, iptables string, f Family) testFirewall {
	return testFirewall{
		family: f,
		setUp: strings.NewReplacer("PROGRAM", program, "FAMILY", strings.ToLower(f.String())).Replace(`mkdir /run/state
mount --bind /run/state /var/lib/PROGRAM
own /etc/PROGRAM
cd /etc/PROGRAM
sed -i 's/^STARTUP_ENABLED=.*/STARTUP_ENABLED=Yes/; s/^IP_FORWARDING=.*/IP_FORWARDING=Keep/' PROGRAM.conf
printf 'fw firewall\nnet FAMILY\nloc FAMILY\n' >zones
printf '?FORMAT 2\nnet eth0\nloc eth1\n' >interfaces
printf 'loc net ACCEPT\nnet all DROP\nall all REJECT\n' >policy
printf '?SECTION NEW\nACCEPT net loc tcp 21\n' >rules
PROGRAM start`),
		reload: program + " restart",
		sound:  strings.NewReplacer("PROGRAM", program, "IPTABLES", iptables).Replace("PROGRAM check; PROGRAM status; PROGRAM save; IPTABLES-save >/run/saved; grep -q net-loc /run/saved; IPTABLES-restore --test </run/saved"),
	}
}

// testFault is a fault on a host with a firewall. Doctor has to find it, and to print a fix that keeps the
// firewall sound.
type testFault struct {
	firewall string
	script   string // makes the fault
	line     string // regular expression for the finding
	fix      string // the same for the fix
	works    bool   // the transfer works all the same
}

const (
	onlyEstablished = "has no rule that accepts related connections"
	insertRelated   = `-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT$`
)

// serveHere has a program listen on the router's own control port: only then the router's input matters to FTP.
const serveHere = `python3 -c 'import socket, time; s = socket.create_server(("", 21)); print("up", flush=True); time.sleep(3600)' >/run/server 2>&1 &
until grep -q up /run/server; do kill -0 $!; sleep 0.05; done
`

func testFaults() map[string]testFault {
	faults := map[string]testFault{}
	nft := func(name, chain, line string) {
		faults["nft, "+name] = testFault{
			firewall: "nft",
			script:   fmt.Sprintf(`nft 'delete table inet filter; table inet filter { chain forward { type filter hook forward priority 0; %s; }; }'`, chain),
			line:     "problem  related +table inet filter, chain forward drops" + line, fix: `nft insert rule inet filter forward ct state established,related accept`,
		}
	}
	nft("policy", "policy drop; ct state established accept; tcp dport 21 accept", ", and "+onlyEstablished)
	nft("related is dropped", "ct state related drop", " related connections: the rule with handle")
	// The retransmission of the first SYN is a new connection, which this chain lets pass: a second late, and only without NAT.
	late := faults["nft, related is dropped"]
	late.works = true
	faults["nft, related is dropped"] = late
	nft("high ports are dropped", "tcp dport 1024-65535 ct state != established drop", " related connections: the rule with handle")
	nft("a final reject", "ct state established accept; tcp dport 21 accept; reject", ", and "+onlyEstablished)
	nft("in a chain that is called", "jump other; }; chain other { ct state established accept; tcp dport 21 accept; drop", ", and "+onlyEstablished)
	faults["nft, kernel's helper"] = testFault{
		firewall: "nft", works: true,
		script: `nft 'table inet mine; delete table inet mine; table inet mine { ct helper ftp { type "ftp" protocol tcp; }; chain pre { type filter hook prerouting priority -160; tcp dport 21 ct helper set "ftp"; }; }'`,
		line:   `problem  other helpers +table inet mine, chain pre \(prerouting priority -160\): helper "ftp" for port 21`, fix: `nft delete rule inet mine pre handle \d+`,
	}
	faults["nft, helper after NAT"] = testFault{
		firewall: "nft", works: true, // our rules attach theirs before
		script: `nft 'table inet mine; delete table inet mine; table inet mine { ct helper sane { type "sane" protocol tcp; }; chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "sane"; }; }'`,
		line:   `problem  helper priority +table inet mine, chain pre \(prerouting priority 0, after NAT\): helper "sane" for port 21`, fix: `nft delete rule inet mine pre handle \d+`,
	}
	faults["nft, notrack"] = testFault{
		firewall: "nft",
		script:   `nft 'table inet mine; delete table inet mine; table inet mine { chain pre { type filter hook prerouting priority raw; tcp dport 21 notrack; tcp sport 21 accept; }; }'`,
		line:     `problem  notrack +table inet mine, chain pre hides connections to port 21 from conntrack`, fix: `nft delete rule inet mine pre handle \d+`,
	}
	for _, program := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		short := strings.TrimSuffix(program, "-nft") // the machine's alternative
		faults[program+", policy"] = testFault{
			firewall: program,
			script:   program + " -R FORWARD 1 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
			line:     `problem  related +table ip6? filter.*, chain FORWARD drops, and ` + onlyEstablished, fix: short + " -I FORWARD " + insertRelated,
		}
		faults[program+", related is dropped"] = testFault{
			firewall: program,
			script:   program + " -I FORWARD -p tcp --dport 1024:65535 -m conntrack ! --ctstate ESTABLISHED -j DROP",
			line:     `problem  related +table ip6? filter.*, chain FORWARD drops related connections: -A FORWARD -p tcp .*-m conntrack ! --ctstate ESTABLISHED -j DROP`, fix: short + " -I FORWARD " + insertRelated,
		}
		faults[program+", a final reject"] = testFault{
			firewall: program,
			script:   fmt.Sprintf("%[1]s -P FORWARD ACCEPT; %[1]s -R FORWARD 1 -m state --state ESTABLISHED -j ACCEPT; %[1]s -N other; %[1]s -A other -j REJECT; %[1]s -A FORWARD -g other", program),
			line:     `problem  related +table ip6? filter.*, chain FORWARD drops, and ` + onlyEstablished, fix: short + " -I FORWARD " + insertRelated,
		}
		faults[program+", kernel's helper"] = testFault{
			firewall: program, works: true,
			script: program + " -t raw -A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp",
			line:   `problem  other helpers +table ip6? raw.*, chain PREROUTING .*helper "ftp" for port 21`, fix: short + " -t raw -D PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp",
		}
		faults[program+", notrack"] = testFault{
			firewall: program,
			script:   program + " -t raw -A PREROUTING -p tcp -m multiport --dports 20,21 -j CT --notrack",
			line:     `problem  notrack +table ip6? raw.*, chain PREROUTING hides connections to ports 20, 21`, fix: short + " -t raw -D PREROUTING -p tcp -m multiport --dports 20,21 -j (CT --notrack|NOTRACK)",
		}
	}
	faults["ufw, related"] = testFault{
		firewall: "ufw",
		script:   "sed -i '/ufw-before-forward/s/RELATED,ESTABLISHED/ESTABLISHED/' /etc/ufw/before.rules; ufw reload",
		line:     `problem  related +table ip filter, chain FORWARD drops, and ` + onlyEstablished, fix: `sed -i .* /etc/ufw/before.rules && ufw reload`,
	}
	faults["ufw, a rule by hand"] = testFault{
		firewall: "ufw",
		script:   "iptables -I FORWARD -p tcp -m conntrack --ctstate RELATED -j DROP",
		line:     `problem  related +table ip filter, chain FORWARD drops related connections: -A FORWARD -p tcp`, fix: "iptables -D FORWARD -p tcp -m conntrack --ctstate RELATED -j DROP",
	}
	faults["ufw, notrack"] = testFault{
		firewall: "ufw",
		script:   `sed -i '1i *raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp --dport 21 -j CT --notrack\nCOMMIT' /etc/ufw/before.rules; ufw reload`,
		line:     `problem  notrack +table ip raw, chain PREROUTING hides connections to port 21`, fix: `iptables -t raw -D PREROUTING .*before.rules`,
	}
	faults["firewalld, related"] = testFault{
		firewall: "firewalld",
		script: `handle=$(nft -a list chain inet firewalld filter_FORWARD | sed -n 's/.*established, related.* # handle //p;s/.*established,related.* # handle //p')
nft replace rule inet firewalld filter_FORWARD handle $handle ct state established accept`,
		line: `problem  related +table inet firewalld, chain filter_FORWARD drops`, fix: `firewall-cmd --reload`,
	}
	faults["iptables-nft, a rule of nft's"] = testFault{
		firewall: "iptables-nft", works: true,
		script: "iptables-nft -R FORWARD 1 -m conntrack --ctstate ESTABLISHED -j ACCEPT; nft insert rule ip filter FORWARD ct state established,related accept",
		line:   `warning  iptables +table ip filter is one of iptables, which cannot read the rule with handle \d+ of chain FORWARD`, fix: "nft delete rule ip filter FORWARD handle",
	}
	faults["firewalld with iptables, related"] = testFault{
		firewall: "firewalld with iptables",
		script:   "iptables -R FORWARD 1 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
		line:     `problem  related +table ip filter, chain FORWARD.* drops`, fix: `firewall-cmd --reload`,
	}
	faults["firewalld with iptables, kernel's helper"] = testFault{
		firewall: "firewalld with iptables", works: true,
		script: "firewall-cmd --permanent --add-service=ftp; firewall-cmd --reload",
		line:   `problem  other helpers +table ip6? raw, chain .*helper "ftp" for port 21`, fix: `firewall-cmd --permanent --service=ftp --remove-helper=ftp && firewall-cmd --reload`,
	}
	faults["firewalld, a direct rule"] = testFault{
		firewall: "firewalld",
		script:   "firewall-cmd --permanent --direct --add-rule ipv4 filter FORWARD 0 -m conntrack --ctstate RELATED,NEW -p tcp --dport 1024:65535 -j DROP; firewall-cmd --reload",
		line:     `problem  related +table ip filter, chain FORWARD.* drops related connections: -A FORWARD`, fix: `firewall-cmd --permanent --direct --remove-rule ipv4 filter FORWARD 0 .* && firewall-cmd --reload`,
	}
	faults["firewalld, a direct rule for notrack"] = testFault{
		firewall: "firewalld",
		script:   "firewall-cmd --permanent --direct --add-rule ipv4 raw PREROUTING 0 -p tcp --dport 21 -j CT --notrack; firewall-cmd --reload",
		line:     `problem  notrack +table ip raw, chain PREROUTING.* hides connections to port 21`, fix: `firewall-cmd --permanent --direct --remove-rule ipv4 raw PREROUTING 0 .* && firewall-cmd --reload`,
	}
	faults["ufw, related, to this host"] = testFault{
		firewall: "ufw", works: true, // what is forwarded
		script: serveHere + "sed -i '/ufw-before-input/s/RELATED,ESTABLISHED/ESTABLISHED/' /etc/ufw/before.rules; ufw reload",
		line:   `problem  related +table ip filter, chain INPUT drops, and ` + onlyEstablished, fix: `sed -i .*ufw-before-input .* /etc/ufw/before.rules && ufw reload`,
	}
	faults["iptables-nft, to this host"] = testFault{
		firewall: "iptables-nft", works: true, // what is forwarded
		script: serveHere + "iptables-nft -P INPUT DROP; iptables-nft -A INPUT -p tcp --dport 21 -j ACCEPT; iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
		line:   `problem  related +table ip filter, chain INPUT drops, and ` + onlyEstablished, fix: "iptables -I INPUT " + insertRelated,
	}
	faults["ufw, related, IPv6"] = testFault{
		firewall: "ufw6",
		script:   "sed -i '/ufw6-before-forward/s/RELATED,ESTABLISHED/ESTABLISHED/' /etc/ufw/before6.rules; ufw reload",
		line:     `problem  related +table ip6 filter, chain FORWARD drops, and ` + onlyEstablished, fix: `sed -i .* /etc/ufw/before6.rules && ufw reload`,
	}
	faults["shorewall6, related"] = testFault{
		firewall: "shorewall6",
		script:   "sed -i 's/^RELATED_DISPOSITION=.*/RELATED_DISPOSITION=DROP/' /etc/shorewall6/shorewall6.conf; shorewall6 reload",
		line:     `problem  related +table ip6 filter, chain FORWARD .*drops related connections: -A net-loc -m conntrack --ctstate RELATED -j DROP`, fix: `sed -i .* /etc/shorewall6/shorewall6.conf && shorewall6 reload`,
	}
	faults["firewalld, kernel's helper"] = testFault{
		firewall: "firewalld", works: true,
		script: "firewall-cmd --permanent --add-service=ftp; firewall-cmd --reload",
		line:   `problem  other helpers +table inet firewalld, chain .*helper "ftp" for port 21`, fix: `firewall-cmd --permanent --service=ftp --remove-helper=ftp && firewall-cmd --reload`,
	}
	faults["docker with legacy, related"] = testFault{
		firewall: "docker with legacy",
		script:   "iptables -R DOCKER-USER 1 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
		line:     `problem  related +table ip filter \(iptables-legacy\), chain FORWARD .*drops, and ` + onlyEstablished, fix: "iptables -I DOCKER-USER " + insertRelated,
	}
	faults["ufw with legacy, related"] = testFault{
		firewall: "ufw with legacy",
		script:   "sed -i '/ufw-before-forward/s/RELATED,ESTABLISHED/ESTABLISHED/' /etc/ufw/before.rules; ufw reload",
		line:     `problem  related +table ip filter \(iptables-legacy\), chain FORWARD drops, and ` + onlyEstablished, fix: `sed -i .* /etc/ufw/before.rules && ufw reload`,
	}
	faults["docker, related"] = testFault{
		firewall: "docker",
		script:   "iptables -D DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -I DOCKER-USER -m conntrack --ctstate ESTABLISHED -j ACCEPT",
		line:     `problem  related +table ip filter, chain FORWARD .*drops, and ` + onlyEstablished, fix: "iptables -I DOCKER-USER " + insertRelated,
	}
	faults["docker, a rule by hand"] = testFault{
		firewall: "docker",
		script:   "iptables -I FORWARD -m conntrack --ctstate RELATED -j DROP",
		line:     `problem  related +table ip filter, chain FORWARD .*drops related connections: -A FORWARD -m`, fix: "iptables -D FORWARD -m conntrack --ctstate RELATED -j DROP",
	}
	faults["shorewall, related"] = testFault{
		firewall: "shorewall",
		script:   "sed -i 's/^RELATED_DISPOSITION=.*/RELATED_DISPOSITION=DROP/' /etc/shorewall/shorewall.conf; shorewall reload",
		line:     `problem  related +table ip filter, chain FORWARD .*drops related connections: -A net-loc -m conntrack --ctstate RELATED -j DROP`, fix: `sed -i .* /etc/shorewall/shorewall.conf && shorewall reload`,
	}
	faults["shorewall, kernel's helper"] = testFault{
		firewall: "shorewall", works: true,
		script: `printf '?FORMAT 3\nCT:helper:ftp:PO\t-\t-\ttcp\t21\nCT:helper:tftp:PO\t-\t-\tudp\t69\n' >/etc/shorewall/conntrack; shorewall reload`,
		line:   `problem  other helpers +table ip raw, chain PREROUTING .*helper "ftp" for port 21`, fix: `sed -i .* /etc/shorewall/conntrack && shorewall reload`,
	}
	faults["shorewall, notrack"] = testFault{
		firewall: "shorewall",
		script:   `printf '?FORMAT 3\nNOTRACK:P\t-\t-\ttcp\t21\n' >/etc/shorewall/conntrack; shorewall reload`,
		line:     `problem  notrack +table ip raw, chain PREROUTING hides connections to port 21`, fix: `sed -i .* /etc/shorewall/conntrack && shorewall reload`,
	}
	return faults
}

// slowFirewalls take minutes to start in an emulator. They are iptables or nftables to the kernel.
var slowFirewalls = regexp.MustCompile(`^(docker|firewalld|shorewall|ufw)`)

// TestDoctorFixes makes each fault on a host with each firewall and runs the fix that doctor prints. After that
// doctor finds nothing, a transfer works, and the firewall is sound: it lists its rules, saves them and loads
// them again, and the transfer still works.
func TestDoctorFixes(t *testing.T) {
	t.Parallel()
	faults := map[string]map[string]testFault{}
	for name, c := range testFaults() {
		if faults[c.firewall] == nil {
			faults[c.firewall] = map[string]testFault{}
		}
		_, what, _ := strings.Cut(name, ", ")
		faults[c.firewall][what] = c
	}
	if len(faults) != len(testFirewalls) {
		t.Fatalf("faults of %d firewalls, want %d", len(faults), len(testFirewalls))
	}
	for name, firewall := range testFirewalls {
		if testing.Short() && slowFirewalls.MatchString(name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFirewallBench(t, firewall)
			for _, what := range slices.Sorted(maps.Keys(faults[name])) {
				t.Run(what, func(t *testing.T) { b.try(t, faults[name][what]) })
			}
		})
	}
}

// firewallBench is a router with a firewall, a client and a server.
type firewallBench struct {
	testFirewall
	lab  *Lab
	site *Site
	run  func(script string) (output string, err error)
}

func newFirewallBench(t *testing.T, firewall testFirewall) *firewallBench {
	lab := newLab(t, Config{Situation: Routed, Family: firewall.family, Helper: Ours})
	b := &firewallBench{
		testFirewall: firewall, lab: lab,
		site: startSite(t, lab.Server, firewall.family, SiteOptions{}),
		run:  inFirewallsNamespace(t, lab.ServerRouter()),
	}
	if err := lab.ServerRouter().Nft(testContext(t, 20*time.Second), "delete table inet filter"); err != nil { // the lab's own
		t.Fatal(err)
	}
	b.must(t, firewall.setUp)
	return b
}

// try makes a fault and runs the fixes that doctor prints.
func (b *firewallBench) try(t *testing.T, c testFault) {
	b.wantSound(t, "at first")
	b.must(t, c.script)
	report, code := b.doctor(t)
	wantCode := 1
	if strings.HasPrefix(c.line, "warning") {
		wantCode = 0
	}
	if code != wantCode || !regexp.MustCompile(`(?m)^`+c.line).MatchString(report) || !regexp.MustCompile(`(?ms)^ +=> .*?`+c.fix).MatchString(report) {
		t.Fatalf("want %s\n=> %s\nand exit code %d, got %d and\n%s", c.line, c.fix, wantCode, code, report)
	}
	t.Logf("exit code %d\n%s", code, findingsIn(report))
	if c.firewall == "nft" { // elsewhere one fault may be in several rules
		wantOneFinding(t, report)
	}
	timeout := failingTimeout
	if c.works {
		timeout = workingTimeout
	}
	if err := b.transfer(t, timeout); (err == nil) != c.works {
		t.Errorf("with the fault: %v, the rules are\n%s", err, b.rules())
	}
	for n := 0; ; n++ { // one fault may be in several rules
		fix := firstFix(report)
		if fix == "" {
			break
		}
		if n == 4 {
			t.Fatalf("not fixed yet:\n%s", report)
		}
		t.Log("=> " + fix)
		b.must(t, fix)
		report, _ = b.doctor(t)
	}
	b.wantSound(t, "fixed")
	b.must(t, b.sound)
	b.must(t, b.reload)
	b.wantSound(t, "loaded again")
}

func (b *firewallBench) must(t *testing.T, script string) {
	t.Helper()
	if output, err := b.run("set -e\n" + script); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
}

func (b *firewallBench) transfer(t *testing.T, timeout time.Duration) error {
	return b.lab.download(t, b.site, EPSV, timeout).Err
}

func (b *firewallBench) doctor(t *testing.T) (report string, code int) {
	t.Helper()
	d := daemon(t, BackEnd{})
	command := d.Binary + " doctor"
	if d.Rules == RulesOwn {
		command += " --queue " + strconv.Itoa(int(d.Queue))
	}
	report, err := b.run(command)
	return report, exitCode(t, err)
}

func (b *firewallBench) wantSound(t *testing.T, when string) {
	t.Helper()
	if report, code := b.doctor(t); code != 0 || strings.Contains(report, "\nproblem") {
		t.Errorf("%s: exit code %d, doctor says\n%s", when, code, report)
	}
	if err := b.transfer(t, workingTimeout); err != nil {
		t.Errorf("%s: %v, the rules are\n%s", when, err, b.rules())
	}
}

// rules are all that the kernel has.
func (b *firewallBench) rules() string {
	text, _ := b.run("nft list ruleset; iptables-legacy-save; ip6tables-legacy-save")
	return text
}

// TestDoctorOtherFixes runs the fixes that doctor prints for the daemon, its rules and the kernel's settings.
func TestDoctorOtherFixes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ script, line, fix string }{
		"no rules":       {"nft delete table inet nfq_ftphelper", `problem  rules +the queue rules are not installed`, `nfq-ftphelper rules apply`},
		"a rule missing": {"nft flush chain inet nfq_ftphelper prerouting", `problem  rules +table inet nfq_ftphelper: chain prerouting: rule 1 is not "ct state new`, `nfq-ftphelper rules apply`},
		"no ports":       {"nft flush set inet nfq_ftphelper ports", `problem  rules +set ports of table inet nfq_ftphelper is empty`, `nft add element inet nfq_ftphelper ports '\{ 21 \}'`},
		"not forwarding": {"sysctl -qw net.ipv4.ip_forward=0", `warning  forwarding +IPv4 is not forwarded between eth0, eth1`, `sysctl -w net\.ipv4\.ip_forward=1`},
		"stopped":        {"kill -STOP DAEMON", `problem  queue +queue \d+: nfq-ftphelper, process \d+, is stopped`, `kill -CONT \d+`},
		"no daemon":      {"kill -KILL DAEMON", `problem  queue +no program serves queue \d+`, `nfq-ftphelper run`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours})
			router, path := lab.ServerRouter(), filepath.Dir(daemon(t, BackEnd{}).Binary)
			site := startSite(t, lab.Server, IPv4, SiteOptions{})
			script := strings.ReplaceAll(c.script, "DAEMON", strconv.Itoa(router.DaemonProcess().Pid()))
			_, err := router.Run(testContext(t, 20*time.Second), "", "sh", "-c", script)
			must.Do(t, err)
			var report, fix string
			var code int
			waitFor(t, "the finding", func() bool {
				report, code = doctor(t, router)
				m := regexp.MustCompile(`(?m)^` + c.line + `.*\n .*\n +=> (.*` + c.fix + `.*)$`).FindStringSubmatch(report)
				if m != nil {
					fix, _, _ = strings.Cut(m[1], ", or ")
				}
				return m != nil
			})
			t.Log("=> " + fix)
			wantOneFinding(t, report)
			if problem := strings.HasPrefix(c.line, "problem"); problem != (code == 1) {
				t.Errorf("exit code %d of\n%s", code, report)
			}
			// The daemon's control socket is in a /run of its own.
			process, err := router.Start(exec.Command("unshare", "--mount", "--propagation", "private",
				"sh", "-c", "mount -t tmpfs tmpfs /run; PATH=$PATH:"+path+"; exec "+fix))
			must.Do(t, err)
			if strings.HasPrefix(fix, "nfq-ftphelper run") {
				err = process.WaitOutput(testContext(t, 20*time.Second), isReady)
			} else {
				err = process.Wait(testContext(t, 20*time.Second))
			}
			must.Do(t, err)
			if report, code := doctor(t, router); code != 0 || findingsIn(report) != "" {
				t.Errorf("fixed: exit code %d, doctor says\n%s", code, report)
			}
			lab.wantDownloads(t, site, EPSV)
		})
	}
}

// findingsIn are the lines of a report about what is not ok.
func findingsIn(report string) string {
	var b strings.Builder
	for line := range strings.Lines(report) {
		if !strings.HasPrefix(line, "ok ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// finding is one about the ruleset that comes with a fix.
var finding = regexp.MustCompile(`(?m)^(?:problem|warning  iptables) .*\n .*\n +=> (.*)$`)

// firstFix is that of the first finding in a report, "" if there is none.
func firstFix(report string) string {
	if m := finding.FindStringSubmatch(report); m != nil {
		return m[1]
	}
	return ""
}

// inFirewallsNamespace returns a function that runs scripts on a router, in a mount namespace and among
// processes of their own. All of these end with the test.
func inFirewallsNamespace(t *testing.T, r *Router) func(script string) (output string, err error) {
	t.Helper()
	process, err := r.Start(exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", copyFolders+"echo ready; exec sleep infinity"))
	must.Do(t, err)
	ctx := testContext(t, 10*time.Minute)
	must.Do(t, process.WaitOutput(ctx, func(output string) bool { return strings.Contains(output, "ready") }))
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", process.Pid(), process.Pid()))
	must.Do(t, err)
	child := strings.TrimSpace(string(children))
	own := copyFolders[strings.Index(copyFolders, "own()"):]
	return func(script string) (string, error) {
		return r.Run(ctx, "", "nsenter", "--target", child, "--mount", "--pid", "sh", "-c", "exec 2>&1\n"+own+script)
	}
}
