// Command demo shows what nfq-ftphelper is for: FTP transfers between clients and
// servers, in public or behind NAT, first without the helper and then with it.
//
// It builds the networks of package netns, downloads and uploads with curl from
// and to vsftpd, compares every byte, and prints a table. It needs root. It exits
// with 1 if a transfer with the helper fails.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

func main() {
	binary := flag.String("daemon", environment("FTPHELPER_BIN", "bin/nfq-ftphelper"),
		"`path` of the daemon's binary; the environment's FTPHELPER_BIN if that is set")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Usage: %s [-daemon path]\n\n"+
			"Shows FTP through NAT and firewalls, without the helper and with it. Needs root.\n\n", os.Args[0])
		flag.PrintDefaults()
	}
	flag.Parse()
	// A second signal ends the demo at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	ok, err := show(ctx, *binary)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func environment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// show makes all transfers and prints the table. It returns whether all those
// with the helper have worked.
func show(ctx context.Context, binary string) (bool, error) {
	if os.Geteuid() != 0 {
		return false, fmt.Errorf("network namespaces need root: run it as root")
	}
	if err := netns.CheckPrograms("nft", "curl", "vsftpd"); err != nil {
		return false, err
	}
	path, err := filepath.Abs(binary)
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(path); err != nil {
		return false, fmt.Errorf("the daemon (-daemon): %w", err)
	}
	begin := time.Now()
	fmt.Printf(introduction, kernelRelease())
	progress := newProgress(os.Stdout)
	rows, err := measureAll(ctx, path, progress)
	progress.end()
	if err != nil {
		return false, err
	}
	fmt.Print("Each cell: without nfq-ftphelper → with it.\n", table(rows, isTerminal(os.Stdout)))
	summary := count(rows)
	fmt.Printf("\nWithout the helper %d of %d work, with it %d of %d.\n"+
		"With it, %d downloads, uploads and listings arrived, every byte as it was sent. (%.1f s)\n",
		summary.without, summary.cells, summary.with, summary.cells, summary.transfers, time.Since(begin).Seconds())
	for _, r := range rows {
		for _, failure := range r.failures {
			fmt.Fprintln(os.Stderr, failure)
		}
	}
	if summary.with < summary.cells {
		return false, nil
	}
	fmt.Print(next)
	return true, nil
}

const introduction = `
This tries FTP between curl and vsftpd through NAT routers and firewalls, first without nfq-ftphelper,
then with it, on Linux %s. Clients, routers and servers are network namespaces that are removed
at the end; this machine's own network, firewall and files stay as they are. Each router accepts only what is
established, related, or new to port 21.

`

const next = `
From here:
  README.md, "Which setup do I need?"   on a gateway, a container host or Kubernetes node, or beside one server
  make build                            builds bin/nfq-ftphelper
  make test                             runs every test that this kernel allows (about 10 minutes)
`

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "?"
	}
	return unix.ByteSliceToString(name.Release[:])
}

// isTerminal says whether colours make sense on f; see https://no-color.org.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
