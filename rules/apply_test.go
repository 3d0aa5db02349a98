package rules

import (
	"errors"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

func TestApplyReplacesItsRules(t *testing.T) {
	newNamespace(t)
	other := Config{Ports: []PortRange{{990, 990}}, Queue: 8}
	s := apply(t, example)
	first := listing(t, s)
	apply(t, other)
	if err := Check(other); err != nil {
		t.Errorf("after a second Apply: got %v, want no error", err)
	}
	apply(t, example)
	apply(t, example)
	if got := listing(t, s); got != first {
		t.Errorf("applied again: got\n%s\nwant\n%s", got, first)
	}
}

func TestEachRulesetReplacesEach(t *testing.T) {
	newNamespace(t)
	for _, from := range rulesets {
		for _, to := range rulesets {
			apply(t, from)
			if err := Check(to); err == nil && !reflect.DeepEqual(from, to) {
				t.Errorf("Check of %+v: got no error with %+v, want one", to, from)
			}
			if s := apply(t, to); (s == "") != (to.Ruleset == CTHelper) {
				t.Errorf("%+v: got statement %q", to, s)
			}
			if err := Check(to); err != nil {
				t.Errorf("%+v after %+v: got %v, want no error", to, from, err)
			}
		}
	}
}

func TestApplyOverlappingPorts(t *testing.T) {
	newNamespace(t)
	c := Config{Ports: []PortRange{{30, 40}, {21, 21}, {35, 50}, {22, 22}}}
	apply(t, c)
	must.Do(t, Check(c))
}

func TestInvalidConfig(t *testing.T) {
	for _, c := range []Config{{}, {Ports: []PortRange{{0, 21}}}, {Ports: []PortRange{{30, 20}}}, {Ports: example.Ports, Ruleset: "fat"}} {
		if _, err := Apply(c); err == nil {
			t.Errorf("Apply of %v: got no error, want one", c)
		}
		if err := Check(c); err == nil || errors.Is(err, ErrMissing) {
			t.Errorf("Check of %v: got %v, want another error", c, err)
		}
	}
}

func TestFailedTransactionKeepsTheRules(t *testing.T) {
	newNamespace(t)
	apply(t, example)
	overlapping := Config{Ports: []PortRange{{30, 40}, {35, 50}}}
	if err := install(overlapping, Compat, nil); err == nil {
		t.Fatal("got no error of the kernel for overlapping elements, want one: this test shows nothing")
	}
	if err := Check(example); err != nil {
		t.Errorf("after a failed transaction: got %v, want no error", err)
	}
}

func TestApplyIsAtomic(t *testing.T) {
	ns := newNamespace(t)
	apply(t, example)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
		if err != nil {
			t.Error(err)
			return
		}
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := checkTable(conn, example); err != nil {
				t.Errorf("during Apply: got %v, want no error", err)
				return
			}
		}
	})
	for range 50 {
		apply(t, example)
	}
	close(done)
	wg.Wait()
}

func TestRemove(t *testing.T) {
	newNamespace(t)
	if err := Remove(); err != nil {
		t.Errorf("without rules: got %v, want no error", err)
	}
	apply(t, example)
	must.Do(t, Remove())
	if got := nft(t, "list ruleset"); got != "" {
		t.Errorf("got\n%s\nwant no rules", got)
	}
}

func TestOtherTablesStay(t *testing.T) {
	newNamespace(t)
	nft(t, `
		table inet filter {
			set ports { type inet_service; elements = { 22, 80 } }
			chain prerouting { type filter hook prerouting priority -150; tcp dport @ports counter accept; }
		}
		table ip nfq_ftphelper { chain control { ip saddr 192.0.2.1 drop; }; }`)
	list := func() string { return nft(t, "list table inet filter") + nft(t, "list table ip nfq_ftphelper") }
	before := list()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"Apply", func() error { _, err := Apply(example); return err }},
		{"Apply again", func() error { _, err := Apply(example); return err }},
		{"Check", func() error { return Check(example) }},
		{"Remove", func() error { return Remove() }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: got %v, want no error", step.name, err)
		}
		if after := list(); after != before {
			t.Errorf("%s: got other tables\n%s\nwant\n%s", step.name, after, before)
		}
	}
}

func TestNamespaceOption(t *testing.T) {
	ns := newNamespace(t)
	opt := nftables.WithNetNSFd(int(ns))
	errs := make(chan error, 1)
	go func() {
		if _, err := Apply(example, opt); err != nil {
			errs <- err
			return
		}
		errs <- Check(example, opt)
	}()
	must.Do(t, <-errs)
	if err := Check(example); err != nil {
		t.Errorf("in the namespace: got %v, want no error", err)
	}
	must.Do(t, Remove(opt))
}

func TestNeedsCapNetAdmin(t *testing.T) {
	ns := newNamespace(t)
	errs := make(chan error, 3)
	go func() {
		// The thread ends with the goroutine, so that no other one loses the capability.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			errs <- err
			return
		}
		if err := dropNetAdmin(); err != nil {
			errs <- err
			return
		}
		_, err := Apply(example)
		errs <- err
		errs <- Check(example)
		errs <- Remove()
	}()
	for _, name := range []string{"Apply", "Check", "Remove"} {
		err := <-errs
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Fatalf("%s: got %v, want EPERM", name, err)
		}
	}
}

// dropNetAdmin drops CAP_NET_ADMIN of the calling thread.
func dropNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	sets[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	return unix.Capset(&header, &sets[0])
}

// TestExplain has errnos that a working kernel does not return.
func TestExplain(t *testing.T) {
	for err, want := range map[error]string{
		unix.EPERM:           "CAP_NET_ADMIN",
		unix.EOPNOTSUPP:      "lacks nf_tables",
		unix.EPROTONOSUPPORT: "lacks nf_tables",
		unix.EAFNOSUPPORT:    "lacks nf_tables",
		unix.EBUSY:           unix.EBUSY.Error(),
	} {
		got := explain("trying", err)
		if !errors.Is(got, err) || !strings.Contains(got.Error(), want) {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}

func TestMissingHelper(t *testing.T) {
	newNamespace(t)
	for _, r := range []Ruleset{Lean, CTHelper} {
		_, err := Apply(Config{Ports: example.Ports, Ruleset: r, Helper: "no-such-helper"})
		if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), `no conntrack helper "no-such-helper"`) {
			t.Errorf("%s: got %v, want that there is no such helper", r, err)
		}
	}
	if err := missingHelper("pptp", unix.ENOENT); !strings.Contains(err.Error(), "provide the module nf_conntrack_pptp") {
		t.Errorf("a helper of the kernel: got %v, want its module", err)
	}
}

func TestMissingStatement(t *testing.T) {
	newNamespace(t)
	err := missing(example, unix.ENOENT, nil)
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "xt_NFQUEUE") {
		t.Errorf("with the helper: got %v, want that the statement is missing", err)
	}
	if got := nft(t, "list ruleset"); got != "" {
		t.Errorf("got\n%s\nwant no rules", got)
	}
}
