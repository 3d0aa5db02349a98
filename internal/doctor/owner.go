package doctor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// owner implements system. The port id is the process id only for a process's first netlink
// socket, so the way is: port id, inode, file descriptor, process.
func (host) owner(portid uint32) (owner, error) {
	text, err := os.ReadFile("/proc/thread-self/net/netlink")
	if err != nil {
		return owner{}, err
	}
	socket, err := findSocket(string(text), portid)
	if err != nil {
		return owner{}, err
	}
	link := fmt.Sprintf("socket:[%s]", socket.inode)
	processes, err := filepath.Glob("/proc/[1-9]*")
	if err != nil {
		return owner{}, err
	}
	for _, dir := range processes {
		if !holds(dir, link) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return owner{}, err
		}
		o := owner{pid: pid, lost: socket.drops}
		o.name, o.stopped = describe(dir)
		return o, nil
	}
	return owner{}, errNoOwner
}

// holds tells whether a process has a file open. Processes end, and others may not be looked into.
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

// describe returns the name of the process's program, without its folder, and whether it is
// stopped. The file of a program that was upgraded is "... (deleted)".
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
