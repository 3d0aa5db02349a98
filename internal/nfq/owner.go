package nfq

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Owner is the program that has bound a queue.
type Owner struct {
	PID     int
	Name    string // of its file, without the folder
	Stopped bool   // by SIGSTOP or a debugger
	Lost    int    // messages that did not fit into its socket
}

// Errors of FindOwner.
var (
	ErrNoSocket = errors.New("no such socket")
	ErrNoOwner  = errors.New("no program that can be seen from here has it")
)

// FindOwner returns the process with the netlink socket of that port id (Status.Portid), in the network
// namespace of the calling thread. It returns ErrNoSocket, ErrNoOwner if no process whose files may be read has
// the socket, or an error of /proc. The port id equals the process id only for a process's first netlink
// socket, so the lookup is: port id, inode, file descriptor, process.
func FindOwner(portid uint32) (Owner, error) {
	text, err := os.ReadFile("/proc/thread-self/net/netlink")
	if err != nil {
		return Owner{}, err
	}
	socket, err := findSocket(string(text), portid)
	if err != nil {
		return Owner{}, err
	}
	link := fmt.Sprintf("socket:[%s]", socket.inode)
	processes, err := filepath.Glob("/proc/[1-9]*")
	if err != nil {
		return Owner{}, err
	}
	for _, dir := range processes {
		if !holds(dir, link) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return Owner{}, err
		}
		o := Owner{PID: pid, Lost: socket.drops}
		o.Name, o.Stopped = describe(dir)
		return o, nil
	}
	return Owner{}, ErrNoOwner
}

// holds reports whether a process has a file open. Processes that ended or cannot be read do not.
func holds(dir, link string) bool {
	files, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false
	}
	for _, f := range files {
		if to, err := os.Readlink(filepath.Join(dir, "fd", f.Name())); err == nil && to == link {
			return true
		}
	}
	return false
}

// describe returns the name of the process's program without its folder, and whether it is stopped. The file
// of an upgraded program is "... (deleted)".
func describe(dir string) (name string, stopped bool) {
	if path, err := os.Readlink(filepath.Join(dir, "exe")); err == nil {
		name = filepath.Base(strings.TrimSuffix(path, " (deleted)"))
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat")) // "pid (name) state ..."
	begin, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if err != nil || begin < 0 || end < begin || len(stat) < end+3 {
		return name, false
	}
	if name == "" {
		name = string(stat[begin+1 : end])
	}
	state := stat[end+2]
	return name, state == 'T' || state == 't'
}

// netlinkSocket is a line of /proc/net/netlink.
type netlinkSocket struct {
	inode string
	drops int
}

const netfilterProtocol = "12" // NETLINK_NETFILTER

// findSocket finds the netfilter socket with a port id in the text of /proc/net/netlink
// (netlink_native_seq_show of net/netlink/af_netlink.c).
func findSocket(text string, portid uint32) (netlinkSocket, error) {
	const columns = 10 // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
	for row := range strings.Lines(text) {
		f := strings.Fields(row)
		if len(f) < columns || f[1] != netfilterProtocol || f[2] != strconv.FormatUint(uint64(portid), 10) {
			continue
		}
		drops, err := strconv.Atoi(f[8])
		return netlinkSocket{inode: f[9], drops: drops}, err
	}
	return netlinkSocket{}, ErrNoSocket
}
