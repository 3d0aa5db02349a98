// Package confine drops what the process does not need after its start: capabilities (capabilities(7)), the ways to
// gain new ones (PR_SET_NO_NEW_PRIVS), and files, connections and signals (landlock(7)). This is permanent, and for all
// threads: Linux keeps it for each thread, and Go runs a goroutine on any of them.
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

// Paths are the folders that the process still needs, with everything in them. A folder that does not exist when Self
// is called stays forbidden.
type Paths struct {
	Read   []string // files in them may be read
	Remove []string // files and sockets in them may be removed
}

// Report says how far the process is confined.
type Report struct {
	// Bounding reports that the capability bounding set has CAP_NET_ADMIN at most. Reducing it needs CAP_SETPCAP; if
	// it stays larger, no_new_privs still keeps programs from using it.
	Bounding bool
	// Landlock is the ABI version of Landlock in force, 0 if the kernel has none (before 5.13, not built, or not in the
	// boot parameter lsm=). Version 4 (Linux 6.7) adds connections, 6 (6.12) signals and abstract unix sockets.
	Landlock int
}

const (
	// newest is the highest ABI version of Landlock that Self requests.
	newest = 11

	read   landlock.AccessFSSet = ll.AccessFSReadFile | ll.AccessFSReadDir
	remove landlock.AccessFSSet = ll.AccessFSRemoveFile
)

// Self confines the process:
//   - capabilities: CAP_NET_ADMIN stays permitted and effective if the process has it. Programs inherit none;
//   - no_new_privs: no program gains more by set-user-ID or file capabilities;
//   - files: those of the paths and of /proc/self stay accessible, and open files stay open. None can be created,
//     written or executed;
//   - sockets: netlink works, and open sockets stay open. No other TCP or UDP socket can be bound or connected, except
//     Multipath TCP, for which Landlock has no rule.
//
// Files and sockets are confined as far as the kernel's Landlock can; see Report. After an error the process may be
// confined in part.
func Self(p Paths) (Report, error) {
	var r Report
	var err error
	if r.Bounding, err = dropCapabilities(); err != nil {
		return r, fmt.Errorf("drop capabilities: %w", err)
	}
	if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return r, fmt.Errorf("set no_new_privs: %w", err)
	}
	_, _ = time.Now().Zone() // reads /etc/localtime while it can
	var rules []landlock.Rule
	for _, path := range append([]string{"/proc/self"}, p.Read...) {
		rules = append(rules, landlock.PathAccess(read, path).IgnoreIfMissing())
	}
	for _, path := range p.Remove {
		rules = append(rules, landlock.PathAccess(remove, path).IgnoreIfMissing())
	}
	if err := landlock.V11.BestEffort().Restrict(rules...); err != nil {
		return r, fmt.Errorf("restrict files and sockets: %w", err)
	}
	if abi, err := ll.LandlockGetABIVersion(); err == nil {
		r.Landlock = min(abi, newest)
	}
	return r, nil
}

// dropCapabilities drops all capabilities except CAP_NET_ADMIN. It reports whether the bounding set was reduced too.
func dropCapabilities() (bounding bool, err error) {
	// First, while the process has CAP_SETPCAP.
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
	kept := sets[0].Permitted & netAdmin
	sets = [2]unix.CapUserData{{Permitted: kept, Effective: kept}} // without inheritable, none is ambient
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0)
	if errno != 0 {
		return false, errno
	}
	return bounding, nil
}

// prctl calls prctl(2) on all threads.
func prctl(option, argument uintptr) error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, option, argument, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
