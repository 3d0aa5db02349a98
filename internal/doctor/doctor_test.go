package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// fake is a host that answers as its fields say. Other files do not exist.
type fake struct {
	version    string
	admin      bool
	files      map[string]string
	owners     map[uint32]nfq.Owner
	noOwner    error
	interfaces map[string][]netip.Addr
	noLookup   error
	expected   int
	carriers   string
	noCTHelper error
	probed     probe
	noProbe    error
	tests      transfers
	noTests    error
	rules      error
	rs         *nftread.Ruleset
	programs   map[string]string // output of each command line
	broken     error             // of every method
}

func (f *fake) release() (string, error) { return f.version, f.broken }
func (f *fake) netAdmin() (bool, error)  { return f.admin, f.broken }
func (f *fake) readFile(name string) ([]byte, error) {
	if f.broken != nil {
		return nil, f.broken
	}
	text, ok := f.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(text), nil
}
func (f *fake) owner(portid uint32) (nfq.Owner, error) {
	if f.noOwner != nil {
		return nfq.Owner{}, f.noOwner
	}
	return f.owners[portid], nil
}
func (f *fake) addresses() (map[string][]netip.Addr, error) { return f.interfaces, f.broken }
func (f *fake) lookup() error                               { return errors.Join(f.broken, f.noLookup) }
func (f *fake) expectations() (int, error)                  { return f.expected, f.broken }
func (f *fake) choose(r backend.Request) (backend.Plan, error) {
	if f.broken != nil {
		return backend.Plan{}, f.broken
	}
	return backend.Choose(r, f)
}
func (f *fake) Carrier(name string) error {
	if strings.Contains(f.carriers, name) {
		return nil
	}
	return fmt.Errorf("no %s", name)
}
func (f *fake) cthelper(name string) (cthelper.Helper, bool, error) {
	return cthelper.Helper{Name: name, Enabled: true}, true, f.broken
}
func (f *fake) CTHelper() error                   { return f.noCTHelper }
func (f *fake) Installed(rules.Config) error      { return rules.ErrMissing }
func (f *fake) probe(backend.Plan) (probe, error) { return f.probed, errors.Join(f.broken, f.noProbe) }
func (f *fake) transfers(backend.Plan) (transfers, error) {
	return f.tests, errors.Join(f.broken, f.noTests)
}
func (f *fake) checkRules(rules.Config) error      { return errors.Join(f.broken, f.rules) }
func (f *fake) ruleset() (*nftread.Ruleset, error) { return f.rs, f.broken }
func (f *fake) run(program string, args ...string) (string, error) {
	text, ok := f.programs[strings.Join(append([]string{program}, args...), " ")]
	if !ok {
		return "", fs.ErrNotExist
	}
	return text, f.broken
}
func (f *fake) set(name, text string) { f.files[name] = text }
func (f *fake) setting(name string, number int) {
	f.set("/proc/sys/net/netfilter/"+name, fmt.Sprintln(number))
}
func (f *fake) queue(format string, args ...any) {
	f.set(nfq.StatusFile, fmt.Sprintf(format+"\n", args...))
}
func (f *fake) examine(c rules.Config) []Finding { return f.examineRequest(backend.Request{Rules: c}) }
func (f *fake) examineRequest(r backend.Request) []Finding {
	return examine(newExamination(f, r), checks)
}
func (f *fake) wantFinding(t *testing.T, w want) { t.Helper(); wantFinding(t, f.examine(ftp), w) }

var ftp = rules.Config{Ports: []rules.PortRange{{First: 21, Last: 21}}, Queue: rules.DefaultQueue}

func healthy() *fake {
	f := &fake{
		version: "6.12.0",
		admin:   true,
		files:   map[string]string{"/proc/sys/net/ipv4/ip_forward": "1\n", "/proc/sys/net/ipv6/conf/all/forwarding": "1\n"},
		owners:  map[uint32]nfq.Owner{77: {PID: 7, Name: program}},
		interfaces: map[string][]netip.Addr{
			"eth0": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
			"eth1": {netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			"eth2": {netip.MustParseAddr("fe80::1")},
		},
		carriers: "sane pptp",
		probed:   probe{helper: "sane", translated: true},
		noTests:  errNoInterface,
		rs:       &nftread.Ruleset{},
	}
	f.setting(conntrackCount, 10)
	f.setting(conntrackMax, 100)
	f.setting(expectMax, 100)
	f.queue(" 2121     77     0 2 65535     0     0      123  1")
	return f
}

// want is a finding, with substrings of its texts.
type want struct {
	level            Level
	check, what, fix string
}

// wantFinding checks that one finding is not ok, and which.
func wantFinding(t *testing.T, findings []Finding, w want) {
	t.Helper()
	var bad []Finding
	for _, f := range findings {
		if f.Level != OK {
			bad = append(bad, f)
		}
	}
	if len(bad) != 1 {
		t.Fatalf("want %v, got\n%s", w, text(findings))
	}
	f := bad[0]
	if f.Level != w.level || f.Check != w.check || !strings.Contains(f.What, w.what) || !strings.Contains(f.Fix, w.fix) || f.Why == "" {
		t.Errorf("want %v, got\n%s", w, text(bad))
	}
}

func text(findings []Finding) string {
	var b strings.Builder
	_ = WriteText(&b, findings, false)
	return b.String()
}

func TestHealthyHostIsOK(t *testing.T) {
	for _, f := range healthy().examine(ftp) {
		if f.Level != OK || f.Why != "" || f.Fix != "" || f.What == "" || f.Check == "" {
			t.Errorf("got %+v, want an ok finding with nothing to fix", f)
		}
	}
}

// TestFindings has the faults of kernels and programs that the test's host may not have, and of numbers.
func TestFindings(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(*fake)
		want  want
	}{
		"old kernel":       {func(f *fake) { f.version = "5.15.0-1" }, want{Problem, "kernel", "5.15.0-1", "later"}},
		"very old kernel":  {func(f *fake) { f.version = "4.19.0" }, want{Problem, "kernel", "4.19.0", "later"}},
		"odd version":      {func(f *fake) { f.version = "strange" }, want{Warning, "kernel", "strange", ""}},
		"no queue":         {func(f *fake) { f.probed.noStatement = errors.New("no queue statement") }, want{Problem, "queue statement", "no queue statement", "modprobe nft_queue"}},
		"no sane":          {func(f *fake) { f.carriers = "pptp" }, want{Warning, "helper", "carrier pptp, the kernel lacks sane", "modprobe nf_conntrack_sane"}},
		"no carrier":       {func(f *fake) { f.carriers = "" }, want{Problem, "helper", "no sane; no pptp", "modprobe nf_conntrack_sane"}},
		"no ctnetlink":     {func(f *fake) { f.noLookup = errors.New("no answer") }, want{Problem, "conntrack look-up", "no answer", "modprobe nf_conntrack_netlink"}},
		"no probe":         {func(f *fake) { f.noProbe = errors.New("EPERM") }, want{Warning, "probe", "EPERM", "sudo"}},
		"no helper":        {func(f *fake) { f.probed.expect = expect.ErrNoHelper }, want{Problem, "expectations", "no helper", ""}},
		"refused":          {func(f *fake) { f.probed.expect = errors.New("EINVAL") }, want{Problem, "expectations", "EINVAL", ""}},
		"no adjustment":    {func(f *fake) { f.probed.adjust = expect.ErrNoSeqAdj }, want{Problem, "sequence adjustment", "does not adjust", "later kernel"}},
		"no NAT":           {func(f *fake) { f.probed.translate = errors.New("no nft_nat") }, want{Warning, "sequence adjustment", "no nft_nat", ""}},
		"NAT did nothing":  {func(f *fake) { f.probed.translated = false }, want{Warning, "sequence adjustment", "not translated", ""}},
		"no test transfer": {func(f *fake) { f.noTests = errors.New("a VRF") }, want{Warning, "transfer", "the rules were only read: this host cannot be copied: a VRF", ""}},
		"no way for FTP":   {func(f *fake) { f.noTests = nil }, want{Warning, "transfer", "no control connection passed", ""}},
		"lost somewhere": {func(f *fake) {
			f.noTests, f.tests.paths = nil, []transferPath{{from: "eth0", to: "eth1", passive: &loss{}}}
		}, want{Problem, "transfer", "passive data connections of test transfers did not pass: eth0 to eth1 (IPv4)", ""}},
		"no expectation": {func(f *fake) {
			f.noTests, f.tests.paths = nil, []transferPath{{from: "eth0", to: "eth1", helper: expect.ErrNoHelper}}
		}, want{Warning, "transfer", "no conntrack helper is attached", ""}},
		"conntrack full":   {func(f *fake) { f.setting(conntrackCount, 100) }, want{Problem, "conntrack table", "100 of 100", "nf_conntrack_max=200"}},
		"conntrack 80 %":   {func(f *fake) { f.setting(conntrackCount, 80) }, want{Warning, "conntrack table", "80 of 100", "nf_conntrack_max=200"}},
		"no conntrack max": {func(f *fake) { delete(f.files, "/proc/sys/net/netfilter/"+conntrackMax) }, want{Warning, "conntrack table", "cannot be read", ""}},
		"expectations":     {func(f *fake) { f.expected = 80 }, want{Warning, "expectation table", "80 of 100", "nf_conntrack_expect_max=200"}},
		"rules missing":    {func(f *fake) { f.rules = rules.ErrMissing }, want{Problem, "rules", "not installed", "nfq-ftphelper rules apply, or"}},
		"no queue file":    {func(f *fake) { delete(f.files, nfq.StatusFile) }, want{Problem, "queue", "no program serves queue 2121", "nfq-ftphelper run"}},
		"queue unbound":    {func(f *fake) { f.queue(" 7 77 0 2 65535 0 0 123 1") }, want{Problem, "queue", "no program serves queue 2121", "nfq-ftphelper run"}},
		"odd queue file":   {func(f *fake) { f.queue("nonsense") }, want{Warning, "queue", "cannot be read", ""}},
		"dead peer":        {func(f *fake) { f.noOwner = nfq.ErrNoSocket }, want{Problem, "queue", "socket 77, which was closed", "run"}},
		"hidden peer":      {func(f *fake) { f.noOwner = nfq.ErrNoOwner }, want{Warning, "queue", "the program cannot be seen", ""}},
		"unknown peer":     {func(f *fake) { f.noOwner = errors.New("EIO") }, want{Warning, "queue", "EIO", ""}},
		"another program":  {func(f *fake) { f.owners[77] = nfq.Owner{PID: 8, Name: "suricata"} }, want{Problem, "queue", "suricata, process 8", "--queue NUMBER"}},
		"stopped":          {func(f *fake) { f.owners[77] = nfq.Owner{PID: 7, Name: program, Stopped: true} }, want{Problem, "queue", "is stopped", "kill -CONT 7"}},
		"socket overflow":  {func(f *fake) { f.owners[77] = nfq.Owner{PID: 7, Name: program, Lost: 3} }, want{Warning, "queue", "3 packets exceeded the socket buffer", "--queues 2"}},
		"queue full":       {func(f *fake) { f.queue("2121 77 0 2 65535 4 0 123 1") }, want{Warning, "queue", "dropped 4", "run"}},
		"queue lost":       {func(f *fake) { f.queue("2121 77 0 2 65535 0 5 123 1") }, want{Warning, "queue", "dropped 5", "run"}},
		"many waiting":     {func(f *fake) { f.queue("2121 77 256 2 65535 0 0 123 1") }, want{Warning, "queue", "256 packets wait", "run --rules --queues 2"}},
		"automatic helper": {func(f *fake) { f.setting("nf_conntrack_helper", 1) }, want{Problem, "other helpers", "its own helper to port 21", "nf_conntrack_helper=0"}},
		"iptables-legacy":  {func(f *fake) { f.set("/proc/thread-self/net/ip_tables_names", "mangle\nfilter\n") }, want{Warning, "iptables", "table filter", "iptables-legacy-save"}},
		"no ip_forward":    {func(f *fake) { f.set("/proc/sys/net/ipv4/ip_forward", "0\n") }, want{Warning, "forwarding", "IPv4 is not forwarded between eth0, eth1", "net.ipv4.ip_forward=1"}},
		"no forwarding":    {func(f *fake) { f.set("/proc/sys/net/ipv6/conf/all/forwarding", "0\n") }, want{Warning, "forwarding", "IPv6 is not forwarded between eth0, eth1", "net.ipv6.conf.all.forwarding=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			c.fault(f)
			f.wantFinding(t, c.want)
		})
	}
}

// TestCTHelper has the findings about a helper in user space.
func TestCTHelper(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(*fake)
		want  want
	}{
		"missing":       {func(f *fake) { f.noCTHelper = errors.New("no nfnetlink_cthelper") }, want{Problem, "helper", "no nfnetlink_cthelper", "modprobe nfnetlink_cthelper"}},
		"not served":    {func(f *fake) { delete(f.files, nfq.StatusFile) }, want{Problem, "queue", "no program serves queue 2121", "nfq-ftphelper run --helper cthelper"}},
		"no helper yet": {func(f *fake) { f.probed.noHelper = "no carrier" }, want{Warning, "expectations", "no test: no carrier", "nfq-ftphelper run --helper cthelper"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			c.fault(f)
			wantFinding(t, f.examineRequest(backend.Request{Rules: ftp, Helper: backend.CTHelper}), c.want)
		})
	}
}

func TestUnreadableIsNeverOK(t *testing.T) {
	f := healthy()
	f.broken, f.noOwner = errors.New("no answer"), errors.New("no answer")
	for _, admin := range []bool{true, false} {
		f.admin = admin
		findings := f.examine(ftp)
		for _, finding := range findings {
			if finding.Level == OK {
				t.Errorf("got %+v, want no ok finding", finding)
			}
		}
		// Without a helper there is no trial and no test transfer.
		if want := map[bool]int{true: len(checks) - 2, false: 6}[admin]; len(findings) != want {
			t.Errorf("got %d findings, want %d:\n%s", len(findings), want, text(findings))
		}
	}
}

func TestUnprivilegedReportsWhatItSkips(t *testing.T) {
	f := healthy()
	f.admin = false
	findings := f.examine(ftp)
	s := text(findings)
	if Count(findings, Problem) != 1 || !strings.Contains(s, "needs CAP_NET_ADMIN: run as root") ||
		!strings.Contains(s, "not examined") || !strings.Contains(s, "helper, conntrack look-up, probe") {
		t.Errorf("want one problem, of privileges, and the checks that were not examined, got\n%s", s)
	}
}

func TestEachQueueIsExamined(t *testing.T) {
	f := healthy()
	f.queue("2121 77 0 2 65535 0 0 1 1\n2123 77 0 2 65535 0 0 1 1")
	c := ftp
	c.Queues = 3
	wantFinding(t, f.examine(c), want{Problem, "queue", "no program serves queue 2122", "nfq-ftphelper run --queues 3"})
}

func TestCommandHasTheFlags(t *testing.T) {
	x := &examination{config: rules.Config{Ports: []rules.PortRange{{First: 21, Last: 21}, {First: 30, Last: 40}}, Queue: 7, Queues: 2}}
	want := "nfq-ftphelper run --ports 21,30-40 --queue 7 --queues 2"
	if got := x.command("run"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	x.request = backend.Request{Ruleset: rules.Lean}
	if got, want := x.command("run"), want+" --ruleset lean"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	x.request = backend.Request{Ruleset: rules.Full, Helper: backend.CTHelper, Name: "x"}
	if got, want := x.command("run"), want+" --helper cthelper --helper-name x"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestStatementSaysWhichFilesLoad(t *testing.T) {
	for statement, want := range map[rules.Statement]string{
		rules.Native: "packets are queued by nftables' queue statement",
		rules.Compat: "the .nft files cannot be loaded: use nfq-ftphelper rules apply",
	} {
		f := healthy()
		f.probed.statement = statement
		if s := text(f.examine(ftp)); !strings.Contains(s, want) {
			t.Errorf("%s: want %q, got\n%s", statement, want, s)
		}
	}
}
