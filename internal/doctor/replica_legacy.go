package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nftread"
)

// xtable is a table of iptables-legacy or ip6tables-legacy: one block of memory, which the kernel returns and takes
// in the same form (include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter_ipv6/ip6_tables.h).
type xtable struct {
	family  byte // unix.AF_INET or unix.AF_INET6
	info    xtInfo
	entries []byte
}

// xtInfo is struct ipt_getinfo, and the same for IPv6.
type xtInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32 // offset of the first rule of each built-in chain
	underflow  [5]uint32 // offset of its policy
	count      uint32
	size       uint32
}

// xtReplace is struct ipt_replace, without the entries.
type xtReplace struct {
	name        [32]byte
	validHooks  uint32
	count       uint32
	size        uint32
	hookEntry   [5]uint32
	underflow   [5]uint32
	numCounters uint32
	counters    unsafe.Pointer
}

// Socket options (IPT_SO_* and IP6T_SO_*).
const (
	xtSetReplace = 64
	xtGetInfo    = 64
	xtGetEntries = 65
)

func (t xtable) name() string { return unix.ByteSliceToString(t.info.name[:]) }

func (t xtable) level() int {
	if t.family == unix.AF_INET6 {
		return unix.SOL_IPV6
	}
	return unix.SOL_IP
}

// String returns "iptables-legacy, table filter", say.
func (t xtable) String() string {
	program := "iptables-legacy"
	if t.family == unix.AF_INET6 {
		program = "ip6tables-legacy"
	}
	return program + ", table " + t.name()
}

// readLegacy reads the tables that exist. Reading another one would make the kernel load it.
func (s *snapshot) readLegacy() error {
	for _, f := range []struct {
		family byte
		file   string
	}{{unix.AF_INET, "ip_tables_names"}, {unix.AF_INET6, "ip6_tables_names"}} {
		text, err := os.ReadFile("/proc/thread-self/net/" + f.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(string(text)) {
			t := xtable{family: f.family}
			copy(t.info.name[:], name)
			if err := t.read(); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
			s.legacy = append(s.legacy, t)
		}
	}
	return nil
}

// read reads the table from the calling thread's namespace.
func (t *xtable) read() error {
	fd, err := unix.Socket(int(t.family), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := getsockopt(fd, t.level(), xtGetInfo, unsafe.Slice((*byte)(unsafe.Pointer(&t.info)), unsafe.Sizeof(t.info))); err != nil {
		return err
	}
	const header = 40 // the name, the size, and space up to the first entry
	request := make([]byte, header+int(t.info.size))
	copy(request, t.info.name[:])
	binary.NativeEndian.PutUint32(request[len(t.info.name):], t.info.size)
	if err := getsockopt(fd, t.level(), xtGetEntries, request); err != nil {
		return err
	}
	t.entries = request[header:]
	return nil
}

func getsockopt(fd, level, name int, value []byte) error {
	length := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// rebuild creates the table in the calling thread's namespace, with counters at 0.
func (t xtable) rebuild() error {
	now := xtable{family: t.family}
	now.info.name = t.info.name
	if err := now.read(); err != nil {
		return err
	}
	fd, err := unix.Socket(int(t.family), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	old := make([]byte, 16*max(now.info.count, 1)) // struct xt_counters of the replaced rules
	r := xtReplace{name: t.info.name, validHooks: t.info.validHooks, count: t.info.count, size: t.info.size,
		hookEntry: t.info.hookEntry, underflow: t.info.underflow, numCounters: now.info.count, counters: unsafe.Pointer(&old[0])}
	var pin runtime.Pinner // the collector does not see this address
	pin.Pin(&old[0])
	defer pin.Unpin()
	for _, e := range t.list() {
		e.passQueued()
	}
	request := append(bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))), t.entries...)
	return unix.SetsockoptString(fd, t.level(), xtSetReplace, string(request))
}

// xtRule is a rule, with its number of iptables -L --line-numbers, 0 for the chain's policy.
type xtRule struct {
	chain   string
	number  int
	builtIn bool // chain
	drops   bool
	packets uint64
}

// xtEntry is struct ipt_entry or ip6t_entry, with the parts that vary in size.
type xtEntry struct {
	at       int // offset in the table
	bytes    []byte
	target   int // offset of the target
	counters int
}

// list splits the table into its entries.
func (t xtable) list() []xtEntry {
	targetAt, counters := 88, 96
	if t.family == unix.AF_INET6 {
		targetAt, counters = 140, 152
	}
	var all []xtEntry
	for at := 0; at+counters+16 <= len(t.entries); {
		rest := t.entries[at:]
		target, next := int(binary.NativeEndian.Uint16(rest[targetAt:])), int(binary.NativeEndian.Uint16(rest[targetAt+2:]))
		if next < counters+16 || next > len(rest) || target+36 > next {
			return all
		}
		all = append(all, xtEntry{at, rest[:next], target, counters})
		at += next
	}
	return all
}

// passQueued sets the bypass flag of NFQUEUE, as no program reads queues in a replica (struct xt_NFQ_info_v3).
func (e xtEntry) passQueued() {
	const revision, flags = 31, 32 + 4
	name := unix.ByteSliceToString(e.bytes[e.target+2 : e.target+revision])
	if name == "NFQUEUE" && e.bytes[e.target+revision] >= 2 && len(e.bytes) >= e.target+flags+2 {
		binary.NativeEndian.PutUint16(e.bytes[e.target+flags:], binary.NativeEndian.Uint16(e.bytes[e.target+flags:])|queueBypass)
	}
}

// rules returns the rules in the order of the table.
func (t xtable) rules() []xtRule {
	builtIn := []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
	var all []xtRule
	var chain string
	number, isBuiltIn := 0, false
	for _, e := range t.list() {
		policy := false
		for hook, name := range builtIn {
			if t.info.validHooks&(1<<hook) == 0 {
				continue
			}
			if t.info.hookEntry[hook] == uint32(e.at) {
				chain, number, isBuiltIn = name, 0, true
			}
			policy = policy || t.info.underflow[hook] == uint32(e.at)
		}
		// struct xt_entry_target: the size, the name, the revision; then what the target has.
		name := unix.ByteSliceToString(e.bytes[e.target+2 : e.target+31])
		if name == "ERROR" { // start of a chain
			chain, number, isBuiltIn = unix.ByteSliceToString(e.bytes[e.target+32:]), 0, false
			continue
		}
		number++
		r := xtRule{chain: chain, number: number, builtIn: isBuiltIn, packets: binary.NativeEndian.Uint64(e.bytes[e.counters:])}
		if name == "" { // a verdict: -NF_DROP - 1 is a drop
			r.drops = int32(binary.NativeEndian.Uint32(e.bytes[e.target+32:])) == -nftread.VerdictDrop-1
		}
		r.drops = r.drops || name == "REJECT"
		if policy {
			r.number = 0
		}
		all = append(all, r)
	}
	return all
}

// dropped returns the place where this table has dropped a packet since before was read. A packet that was sent
// here passes the chain OUTPUT; one that was received does not, but an answer to it may.
func (t xtable) dropped(before []xtRule, sent bool) (at place, ok bool) {
	table := nftread.Table{Family: nftread.FamilyIPv4, Name: t.name(), Legacy: true}
	if t.family == unix.AF_INET6 {
		table.Family = nftread.FamilyIPv6
	}
	for i, r := range t.rules() {
		if i >= len(before) || r.packets == before[i].packets {
			continue
		}
		if r.builtIn && (r.chain == "POSTROUTING" || sent == (r.chain == "OUTPUT")) { // in the order of the hooks
			at.base = nftread.Object{Table: table, Name: r.chain}
		}
		if r.drops && !ok {
			at.chain, at.number, ok = r.chain, r.number, true
		}
	}
	return at, ok
}

// addresses returns the source and destination addresses of all rules.
func (t xtable) addresses() [][]byte {
	length := 4
	if t.family == unix.AF_INET6 {
		length = 16
	}
	var all [][]byte
	for _, e := range t.list() {
		all = append(all, e.bytes[:length], e.bytes[length:2*length])
	}
	return all
}

// matches reports whether a rule has a match of that name (struct xt_entry_match).
func (t xtable) matches(name string) bool {
	const header = 32
	for _, e := range t.list() {
		for at := e.counters + 16; at+header <= e.target; {
			size := int(binary.NativeEndian.Uint16(e.bytes[at:]))
			if unix.ByteSliceToString(e.bytes[at+2:at+header-1]) == name {
				return true
			}
			if size < header {
				break
			}
			at += size
		}
	}
	return false
}
