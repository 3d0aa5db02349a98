package rules

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// newNamespace locks the test to a thread in a new network namespace, with lo up, until the test ends.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	orig, err := netns.Get()
	if err != nil {
		t.Fatalf("looking up the network namespace: %v", err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("creating a network namespace (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		ns.Close()
		// Otherwise the thread stays locked, and ends with the test.
		if err := netns.Set(orig); err != nil {
			t.Errorf("leaving the network namespace: %v", err)
			return
		}
		orig.Close()
		runtime.UnlockOSThread()
	})
	lo, err := netlink.LinkByName("lo")
	must.Do(t, err)
	must.Do(t, netlink.LinkSetUp(lo))
	return ns
}

// within runs f on this thread in another namespace.
func within(t *testing.T, ns netns.NsHandle, f func()) {
	t.Helper()
	here, err := netns.Get()
	must.Do(t, err)
	defer here.Close()
	must.Do(t, netns.Set(ns))
	defer func() {
		must.Do(t, netns.Set(here))
	}()
	f()
}

// tryNft runs nft(8) on a script in the thread's network namespace.
func tryNft(script string) (stdout, stderr string, err error) {
	var out, errs strings.Builder
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func nft(t *testing.T, script string) string {
	t.Helper()
	stdout, stderr, err := tryNft(script)
	if err != nil {
		t.Fatalf("nft: %v\n%s\nin\n%s", err, stderr, script)
	}
	return stdout
}

func apply(t *testing.T, c Config) Statement {
	t.Helper()
	s, err := Apply(c)
	must.Do(t, err)
	return s
}
