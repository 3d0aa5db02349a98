// Package confine gives up what the process was started with and needs no more: capabilities
// (capabilities(7)), the ways to get new ones (PR_SET_NO_NEW_PRIVS), and files, connections and
// signals (landlock(7)). All of it is for good, and for all threads: Linux keeps it per thread, and Go
// runs a goroutine on any of them.
package confine

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Paths are the folders that the process still needs. What is in them, at any depth, counts; one
// that is not there when Self is called is out of reach even if it appears later.
type Paths struct {
	// Read are folders whose files may be read.
	Read []string
	// Remove are folders whose files and sockets may be removed.
	Remove []string
}

// Report says how far the process is confined.
type Report struct {
	// Bounding says that the capability bounding set is CAP_NET_ADMIN or less, too. To reduce it
	// takes CAP_SETPCAP. Where it stays larger, no_new_privs still keeps programs from using it.
	Bounding bool
	// Landlock is the version of Landlock's ABI that is in force; 0 if the kernel has none
	// (before 5.13, left out, or not named in the boot parameter lsm=). From 4 on (6.7) it has
	// connections, from 6 on (6.12) signals and abstract unix sockets.
	Landlock int
}

const (
	// newest is the latest version of Landlock's ABI that Self asks for.
	newest = 11

	read   landlock.AccessFSSet = ll.AccessFSReadFile | ll.AccessFSReadDir
	remove landlock.AccessFSSet = ll.AccessFSRemoveFile
)

// Self confines the process. What remains:
//   - of capabilities, CAP_NET_ADMIN, if it is there: permitted and effective. Programs that the
//     process might run inherit nothing;
//   - no_new_privs: no program gets more by being set-user-ID or having file capabilities;
//   - of files, those of the paths, and the process's own folder in /proc. What is open stays
//     open. Nothing can be made, written or executed;
//   - of sockets, netlink, and what is open already. No other TCP or UDP socket can be bound or connected
//     (but for Multipath TCP, which Landlock has no rule for).
//
// The part with files and sockets is up to what the kernel has of Landlock, which is no error; see Report.
// An error means that the process may be confined in part.
func Self(p Paths) (Report, error) {
	var r Report
	var err error
	if r.Bounding, err = dropCapabilities(); err != nil {
		return r, fmt.Errorf("giving up capabilities: %w", err)
	}
	if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return r, fmt.Errorf("giving up the ways to new privileges: %w", err)
	}
	_, _ = time.Now().Zone() // reads /etc/localtime, once and for all
	var rules []landlock.Rule
	for _, path := range append([]string{"/proc/self"}, p.Read...) {
		rules = append(rules, landlock.PathAccess(read, path).IgnoreIfMissing())
	}
	for _, path := range p.Remove {
		rules = append(rules, landlock.PathAccess(remove, path).IgnoreIfMissing())
	}
	if err := landlock.V11.BestEffort().Restrict(rules...); err != nil {
		return r, fmt.Errorf("giving up files: %w", err)
	}
	if abi, err := ll.LandlockGetABIVersion(); err == nil {
		r.Landlock = min(abi, newest)
	}
	return r, nil
}

// dropCapabilities gives up all capabilities but CAP_NET_ADMIN. It tells whether that goes for the
// bounding set, too.
func dropCapabilities() (bounding bool, err error) {
	// Before CAP_SETPCAP goes, which this takes.
	bounding = true
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		unknown := errors.Is(err, unix.EINVAL) // to this kernel
		if c == unix.CAP_NET_ADMIN || unknown || err == nil && has == 0 {
			continue
		}
		if err := prctl(unix.PR_CAPBSET_DROP, c); errors.Is(err, unix.EPERM) {
			bounding = false
			break
		} else if err != nil {
			return false, err
		}
	}

	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // capabilities 0 to 31, and 32 to 63
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return false, err
	}
	const netAdmin = 1 << unix.CAP_NET_ADMIN
	left := sets[0].Permitted & netAdmin
	sets = [2]unix.CapUserData{{Permitted: left, Effective: left}} // with no inheritable ones, no ambient ones
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0)
	if errno != 0 {
		return false, errno
	}
	return bounding, nil
}

// prctl is prctl(2) on all threads.
func prctl(option, argument uintptr) error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, option, argument, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
