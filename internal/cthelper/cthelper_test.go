package cthelper

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// TestHelpers tests everything, or the errors of a kernel without helpers in user space.
func TestHelpers(t *testing.T) {
	if err := exec.Command("modprobe", "--dry-run", "--quiet", "nfnetlink_cthelper").Run(); err != nil {
		if !errors.As(err, new(*exec.ExitError)) {
			t.Fatal(err)
		}
		testUnsupported(t)
		return
	}
	if err := Probe(); err != nil {
		t.Errorf("Probe: got %v, want no error", err)
	}
	t.Run("Register", testRegister)
	t.Run("Nft", testNft)
	t.Run("Taken", testTaken)
	t.Run("Kernel", testKernel)
	t.Run("Connection", testConnection)
	t.Run("Permission", testPermission)
}

func testUnsupported(t *testing.T) {
	const sentence = "the kernel lacks nfnetlink_cthelper: provide the module"
	h := newHelper()
	for want, err := range map[string]error{
		sentence: Probe(),
		fmt.Sprintf("register conntrack helper %q: %s", h.Name, sentence): Register(h),
		fmt.Sprintf("remove conntrack helper %q: %s", h.Name, sentence):   Unregister(h.Name),
	} {
		if !errors.Is(err, ErrUnsupported) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestInvalidName(t *testing.T) {
	for _, name := range []string{"", "fifteen bytes..", "ftp\x00"} {
		for _, err := range []error{Register(Helper{Name: name}), Unregister(name)} {
			if err == nil || !strings.Contains(err.Error(), "a name has 1 to 14 bytes") {
				t.Errorf("name %q: got %v, want that it is not valid", name, err)
			}
		}
	}
}

// newHelper returns a helper with a random name, since helpers are global to the machine.
func newHelper() Helper {
	return Helper{Name: fmt.Sprintf("test-%09x", rand.Uint64()>>28), Queue: 4711}
}

// register registers h until the end of the test.
func register(t *testing.T, h Helper) {
	t.Helper()
	must.Do(t, Register(h))
	t.Cleanup(func() {
		if err := Unregister(h.Name); err != nil {
			t.Error(err)
		}
	})
}

// registered returns the kernel's helpers of that name.
func registered(t *testing.T, name string) map[family]Helper {
	t.Helper()
	c, err := dial()
	must.Do(t, err)
	defer c.nf.Close()
	found := map[family]Helper{}
	for _, f := range families {
		h, ok, err := c.lookup(name, f)
		must.Do(t, err)
		if ok {
			found[f] = h
		}
	}
	return found
}

func expectRegistered(t *testing.T, h Helper) {
	t.Helper()
	if got := registered(t, h.Name); len(got) != 2 || got[ipv4] != h || got[ipv6] != h {
		t.Errorf("got %+v, want %+v for both families", got, h)
	}
}

// attach returns a ruleset that assigns a helper to local connections.
func attach(name string) string {
	return fmt.Sprintf(`table inet attach {
	ct helper h {
		type %q protocol tcp
		l3proto inet
	}
	chain output {
		type filter hook output priority -150;
		tcp dport 21 ct helper set "h"
	}
}
`, name)
}

// testRegister registers, takes over, changes, and removes.
func testRegister(t *testing.T) {
	h := newHelper()
	for _, h.Enabled = range []bool{true, true, false, true} {
		must.Do(t, Register(h))
		expectRegistered(t, h)
	}
	other := h
	other.Queue++
	err := Register(other)
	if !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), "queue is 4711, not 4712") {
		t.Errorf("with another queue: got %v, want ErrNameTaken", err)
	}
	expectRegistered(t, h)
	// It exists in every network namespace, and can be removed from any.
	must.Do(t, netns.NewTestHost(t, "host").Do(func() error {
		expectRegistered(t, h)
		return Unregister(h.Name)
	}))
	if got := registered(t, h.Name); len(got) != 0 {
		t.Errorf("got %v, want none", got)
	}
	if err := Unregister(h.Name); err != nil {
		t.Errorf("removed again: got %v, want no error", err)
	}
}

// testNft has rules that use, and hold, a helper.
func testNft(t *testing.T) {
	h, host := newHelper(), netns.NewTestHost(t, "host")
	if err := host.Nft(t.Context(), attach(h.Name)); err == nil {
		t.Fatal("got no error of nft for a missing helper, want one")
	}
	register(t, h)
	must.Do(t, host.Nft(t.Context(), attach(h.Name)))
	text, err := host.Run(t.Context(), "", "nft", "list", "ruleset")
	if err != nil || !strings.Contains(text, "l3proto inet") {
		t.Errorf("got %s, %v of nft, want both families", text, err)
	}
	if err := Unregister(h.Name); !errors.Is(err, ErrInUse) {
		t.Errorf("removed while rules use it: got %v, want ErrInUse", err)
	}
	expectRegistered(t, h)
	// While in use, it can be enabled.
	h.Enabled = true
	must.Do(t, Register(h))
	expectRegistered(t, h)
	must.Do(t, host.Nft(t.Context(), "delete table inet attach"))
}

// testTaken has a helper with another size of private data for one family, which a look-up does not show: the other
// family is removed again.
func testTaken(t *testing.T) {
	h := newHelper()
	c, err := dial()
	must.Do(t, err)
	defer c.nf.Close()
	for _, f := range families {
		attrs := nfnetlink.Attributes(h.attributes(f)).Without(attrPrivDataLen)
		attrs.Uint32(attrPrivDataLen, 8)
		if _, err := c.query(msgNew, 0, attrs); err != nil {
			t.Fatal(err)
		}
		if err := Register(h); !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), f.String()+" by a helper of another kind") {
			t.Errorf("got %v, want ErrNameTaken", err)
		}
		if got := registered(t, h.Name); len(got) != 1 || got[f] != h {
			t.Errorf("got %v, want the one for %s only", got, f)
		}
		must.Do(t, Unregister(h.Name))
	}
}

// testKernel makes the kernel load its helper, and tries to register one of that name.
func testKernel(t *testing.T) {
	host := netns.NewTestHost(t, "host")
	must.Do(t, host.Nft(t.Context(), attach("ftp")))
	if _, err := os.Stat("/sys/module/nf_conntrack_ftp"); err != nil {
		t.Fatal(err)
	}
	err := Register(Helper{Name: "ftp", Queue: 4711})
	if !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), "nf_conntrack_ftp") {
		t.Errorf("got %v, want ErrNameTaken", err)
	}
	if got := registered(t, "ftp"); len(got) != 0 {
		t.Errorf("got %v, want no helper in user space", got)
	}
}

// testConnection removes the helper of a connection, which continues without one.
func testConnection(t *testing.T) {
	h, host := newHelper(), netns.NewTestHost(t, "host")
	register(t, h)
	must.Do(t, host.Nft(t.Context(), attach(h.Name)+`table ip nat {
	chain output {
		type nat hook output priority -100;
		ip daddr 192.0.2.2 tcp dport 21 dnat to 127.0.0.1
	}
}
`))
	must.Do(t, host.AddAddress("lo", netip.MustParsePrefix("192.0.2.1/24")))
	tuple := expect.Tuple{Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("192.0.2.2:21")}
	listener, err := host.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:21"))
	must.Do(t, err)
	defer listener.Close()
	conn, err := host.Dial(t.Context(), tuple.Src, tuple.Dst)
	must.Do(t, err)
	defer conn.Close()
	var client *expect.Client
	must.Do(t, host.Do(func() (err error) { client, err = expect.Dial(); return err }))
	defer client.Close()

	m, _, err := client.Lookup(tuple)
	if err != nil || m.Helper != h.Name {
		t.Fatalf("got %+v, %v, want the helper", m, err)
	}
	// One expectation, as the policy says: the second one replaces the first.
	for _, port := range []uint16{50000, 50001} {
		must.Do(t, client.Announce(m, expect.For(m, expect.Reply, port), expect.Update{}))
	}
	if text := expectations(t, host); strings.Count(text, "helper="+h.Name) != 1 || !strings.Contains(text, "dport=50001") {
		t.Errorf("got %s, want one expectation, port 50001", text)
	}
	adjustment := expect.SeqAdj{Position: 1000, Before: 0, After: -2}
	must.Do(t, client.Update(m, expect.Update{Dir: expect.Reply, Adjust: &adjustment}))

	// Connections do not hold it.
	must.Do(t, host.Nft(t.Context(), "delete table inet attach"))
	must.Do(t, Unregister(h.Name))
	if text := expectations(t, host); text != "" {
		t.Errorf("got %s, want no expectation", text)
	}
	// A helper that is registered later does not apply to them.
	for range 2 {
		m, _, err = client.Lookup(tuple)
		if err != nil || m.Helper != "" || m.SeqAdj[expect.Reply] != adjustment {
			t.Errorf("got %+v, %v, want no helper and the adjustment", m, err)
		}
		if err := client.Announce(m, expect.For(m, expect.Reply, 50002), expect.Update{}); !errors.Is(err, expect.ErrNoHelper) {
			t.Errorf("expectation: got %v, want ErrNoHelper", err)
		}
		must.Do(t, Register(h))
	}
}

func expectations(t *testing.T, host *netns.Host) string {
	t.Helper()
	text, err := host.Run(t.Context(), "", "conntrack", "-L", "expect")
	must.Do(t, err)
	return text
}

// testPermission tries in a new user and network namespace, as their root.
func testPermission(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), errorsOnly+"=1")
	root := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: root,
		GidMappings: root,
	}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), ErrPermission.Error()+"\n") != 3 {
		t.Errorf("got %v:\n%s\nwant ErrPermission three times", err, out)
	}
}

// errorsOnly is set in the environment of a process that prints the errors of all functions.
const errorsOnly = "FTPHELPER_CTHELPER_ERRORS"

func TestMain(m *testing.M) {
	if os.Getenv(errorsOnly) == "" {
		os.Exit(m.Run())
	}
	h := newHelper()
	for _, err := range []error{Probe(), Register(h), Unregister(h.Name)} {
		fmt.Println(err)
	}
}
