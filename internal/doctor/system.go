package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfq"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// system is the host, as the checks need it.
type system interface {
	// release returns the kernel's, such as "6.1.0-50-amd64".
	release() (string, error)
	netAdmin() (bool, error)
	// readFile reads a file of /proc, whose "net" is that of the calling thread.
	readFile(name string) ([]byte, error)
	// owner returns the program that owns a netlink socket of the netfilter protocol.
	owner(portid uint32) (nfq.Owner, error)
	// addresses returns those of each interface that is up, without loopback.
	addresses() (map[string][]netip.Addr, error)

	choose(backend.Request) (backend.Plan, error)
	cthelper(name string) (h cthelper.Helper, registered bool, err error)
	// lookup looks up a connection that does not exist.
	lookup() error
	// expectations returns the number of expectations.
	expectations() (int, error)
	// probe does what the daemon does to a connection, in a new network namespace. The error is why there is no
	// such namespace.
	probe(backend.Plan) (probe, error)

	// transfers runs test transfers in a copy of this network namespace. The error is why there is no copy,
	// errNoInterface if no interface is up.
	transfers(backend.Plan) (transfers, error)

	checkRules(rules.Config) error
	ruleset() (*nftread.Ruleset, error)
	// run returns the output of a program that changes nothing, in the network namespace of the calling thread.
	// The error is fs.ErrNotExist if the program is missing.
	run(program string, args ...string) (string, error)
}

// host is the system that the program runs on.
type host struct{}

func (host) release() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

func (host) netAdmin() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return false, err
	}
	return sets[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0, nil
}

func (host) readFile(name string) ([]byte, error) { return os.ReadFile(name) }

func (host) run(program string, args ...string) (string, error) {
	path := program
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err == nil {
			path = filepath.Join(dir, program)
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s: %w", program, fs.ErrNotExist)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

func (host) addresses() (map[string][]netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	found := make(map[string][]netip.Addr)
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				found[i.Name] = append(found[i.Name], p.Addr())
			}
		}
	}
	return found, nil
}

func (host) owner(portid uint32) (nfq.Owner, error) { return nfq.FindOwner(portid) }

func (host) choose(r backend.Request) (backend.Plan, error) { return backend.Choose(r, backend.Host{}) }

func (host) cthelper(name string) (cthelper.Helper, bool, error) { return cthelper.Lookup(name) }

func (host) lookup() error {
	c, err := expect.Dial()
	if err != nil {
		return err
	}
	unused := netip.MustParseAddrPort("192.0.2.1:1") // TEST-NET-1, RFC 5737
	_, _, err = c.Lookup(expect.Tuple{Src: unused, Dst: unused})
	if errors.Is(err, expect.ErrNoEntry) {
		err = nil
	}
	return errors.Join(err, c.Close())
}

func (host) expectations() (int, error) {
	c, err := conntrack.Dial(nil)
	if err != nil {
		return 0, err
	}
	all, err := c.DumpExpect()
	return len(all), errors.Join(err, c.Close())
}

func (host) checkRules(c rules.Config) error { return rules.Check(c) }

func (host) ruleset() (*nftread.Ruleset, error) { return nftread.Read() }
