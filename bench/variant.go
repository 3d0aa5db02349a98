package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// variant is a helper on the router, or a limit to compare helpers with.
type variant struct {
	name string
	// in are the situations to measure it in; stock is true if it needs a stock kernel.
	in    []netns.Situation
	stock bool
	// before is true for an earlier build.
	before bool
	// workloads are those that it supports; nil for all.
	workloads []Operation
	// keepsAddress is true if the reply to PASV is not rewritten.
	keepsAddress bool
	// limit names the variant that queues the same packets and accepts them.
	limit string
	// start sets up the router and returns the process that packets are queued to, if any.
	start func(ctx context.Context, b binaries, lab *netns.Lab) (*netns.Process, error)
	// stop removes what outlives the lab; it may be nil.
	stop func(ctx context.Context, lab *netns.Lab) error
}

// binaries are the paths of the measured programs.
type binaries struct {
	daemon string // nfq-ftphelper
	before string // an earlier build of it, or ""
	accept string // the C program
}

// The names of variants, as the tables have them.
const (
	noHelper   = "no helper"
	kernel     = "kernel"
	conntrackd = "conntrackd"
	cFull      = "C full"
	cLean      = "C lean"
	oursFull   = "ours full"
	oursLean   = "ours lean"
	beforeFull = "before full"
	beforeLean = "before lean"
)

// queueNumber is the same in every lab, each of which has its own namespace.
const queueNumber = 100

var (
	throughNAT  = []netns.Situation{netns.DNAT}
	anywhere    = []netns.Situation{netns.DNAT, netns.Routed}
	withoutNAT  = []netns.Situation{netns.Routed}
	onlyControl = []Operation{Noop, Pasv}
)

// variants are in the order of the tables, helpers next to their limits.
var variants = []variant{
	{name: noHelper, in: anywhere, keepsAddress: true, start: openPorts},
	// A helper's name can be registered once, so a kernel cannot have these two at a time.
	{name: kernel, in: throughNAT, start: startKernel},
	{name: conntrackd, in: withoutNAT, stock: true, start: startConntrackd, stop: stopConntrackd},
	{name: cFull, in: throughNAT, workloads: onlyControl, keepsAddress: true, start: startFullAccept},
	{name: oursFull, in: anywhere, limit: cFull, start: ours()},
	{name: oursLean, in: anywhere, limit: cLean, start: ours("--ruleset", "lean")},
	{name: cLean, in: throughNAT, workloads: onlyControl, keepsAddress: true, start: startLeanAccept},
	{name: beforeFull, in: anywhere, before: true, limit: cFull, start: earlier(ours())},
	{name: beforeLean, in: anywhere, before: true, limit: cLean, start: earlier(ours("--ruleset", "lean"))},
}

// reference names the variant that others are compared with in a situation.
func reference(s netns.Situation) string {
	if s == netns.DNAT {
		return kernel
	}
	return conntrackd
}

func (c variant) fits(s netns.Situation, o Operation) bool {
	return slices.Contains(c.in, s) && (len(c.workloads) == 0 || slices.Contains(c.workloads, o))
}

// openPorts opens the server's passive ports, and translates them where the control port is translated: the cost of
// routing without a helper.
func openPorts(ctx context.Context, _ binaries, lab *netns.Lab) (*netns.Process, error) {
	data := fmt.Sprintf("%d-%d", firstDataPort, lastDataPort)
	ruleset := fmt.Sprintf("add rule inet filter forward ct state new tcp dport %s accept\n", data)
	if lab.Addresses.Public == lab.ServerAddress {
		ruleset += fmt.Sprintf("add rule ip nat prerouting ip daddr %s tcp dport %s dnat to %s\n",
			lab.Addresses.Public, data, lab.Addresses.Server.Addr())
	}
	return nil, lab.ServerRouter().Nft(ctx, ruleset)
}

func startKernel(ctx context.Context, _ binaries, lab *netns.Lab) (*netns.Process, error) {
	return nil, lab.ServerRouter().StartHelper(ctx, netns.Kernel, netns.Daemon{})
}

// ours starts the daemon, which applies its own rules. One client is not one user here, so it
// may have as many data connections as it likes.
func ours(flags ...string) func(context.Context, binaries, *netns.Lab) (*netns.Process, error) {
	return func(ctx context.Context, b binaries, lab *netns.Lab) (*netns.Process, error) {
		// It logs every expectation. To read that would be work of this process, so it goes to a file.
		log, err := os.CreateTemp("", "nfq-ftphelper-log-")
		if err != nil {
			return nil, fmt.Errorf("make a file for the daemon's log: %w", err)
		}
		defer log.Close()
		defer os.Remove(log.Name())
		cmd := exec.Command(b.daemon, append([]string{
			"run", "--config", "none", "--control", "", "--rules", "--ports", strconv.Itoa(controlPort), "--queue", strconv.Itoa(queueNumber), "--rate", "1000000",
		}, flags...)...)
		cmd.Stderr = log
		p, err := lab.ServerRouter().Start(cmd)
		if err != nil {
			return nil, err
		}
		return p, waitReady(ctx, p, log)
	}
}

// earlier starts the earlier build in place of the daemon.
func earlier(start func(context.Context, binaries, *netns.Lab) (*netns.Process, error)) func(context.Context, binaries, *netns.Lab) (*netns.Process, error) {
	return func(ctx context.Context, b binaries, lab *netns.Lab) (*netns.Process, error) {
		b.daemon = b.before
		return start(ctx, b, lab)
	}
}

// isReady reports whether the daemon's log says that it is ready.
func isReady(log string) bool { return strings.Contains(log, "msg=ready") }

// waitReady waits until a process has written to its log that it is ready.
func waitReady(ctx context.Context, p *netns.Process, log *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, netns.Scale(10*time.Second))
	defer cancel()
	var text [4096]byte
	for {
		running := p.Running()
		n, err := log.ReadAt(text[:], 0)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return fmt.Errorf("read the daemon's log: %w", err)
		case isReady(string(text[:n])):
			return nil
		case !running || ctx.Err() != nil:
			return fmt.Errorf("the daemon does not get ready; its log is:\n%s", text[:n])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// startFullAccept queues what the daemon's full rules queue to the C program.
func startFullAccept(ctx context.Context, b binaries, lab *netns.Lab) (*netns.Process, error) {
	config := rules.Config{Ports: []rules.PortRange{{First: controlPort, Last: controlPort}}, Queue: queueNumber}
	err := lab.ServerRouter().Do(func() error {
		_, err := rules.Apply(config)
		return err
	})
	if err != nil {
		return nil, err
	}
	return startAccept(ctx, b, lab)
}

// startLeanAccept queues answers to PASV, and nothing else, to the C program.
func startLeanAccept(ctx context.Context, b binaries, lab *netns.Lab) (*netns.Process, error) {
	if err := lab.ServerRouter().Do(queueAnswersToPASV); err != nil {
		return nil, err
	}
	return startAccept(ctx, b, lab)
}

func queueAnswersToPASV() error {
	statement, err := rules.ProbeStatement()
	if err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "bench", Family: nftables.TableFamilyINet})
	chain := conn.AddChain(&nftables.Chain{
		Name:     "prerouting",
		Table:    table,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityRef(-150),
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		// meta l4proto tcp, tcp sport 21, @ih,0,24 0x323237
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, controlPort}},
		&expr.Payload{Base: unix.NFT_PAYLOAD_INNER_HEADER, Offset: 0, Len: 3, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("227")},
		statement.Expr(queueNumber),
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("queue the answers to PASV: %w", err)
	}
	return nil
}

func startAccept(ctx context.Context, b binaries, lab *netns.Lab) (*netns.Process, error) {
	return startReady(ctx, lab.ServerRouter().Host, exec.Command(b.accept, strconv.Itoa(queueNumber)))
}

// startReady starts a program that prints "ready" when it is.
func startReady(ctx context.Context, h *netns.Host, cmd *exec.Cmd) (*netns.Process, error) {
	p, err := h.Start(cmd)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, netns.Scale(10*time.Second))
	defer cancel()
	return p, p.WaitOutput(ctx, func(output string) bool { return strings.Contains(output, "ready") })
}

const conntrackdConfig = `General {
	HashSize 1024
	HashLimit 8192
	LockFile %[1]s/lock
	UNIX {
		Path %[1]s/socket
	}
	LogFile no
	Syslog no
}
Helper {
	Type ftp inet tcp {
		QueueNum %[2]d
		QueueLen 10240
		Policy ftp {
			ExpectMax 1
			ExpectTimeout 300
		}
	}
}
`

const conntrackdRules = `table ip conntrackd {
	ct helper ftp {
		type "ftp" protocol tcp
	}
	chain prerouting {
		type filter hook prerouting priority -150;
		tcp dport 21 ct helper set "ftp"
	}
}
`

// startConntrackd registers the name "ftp" with the kernel, for all of its namespaces, and has
// conntrackd serve it.
func startConntrackd(ctx context.Context, _ binaries, lab *netns.Lab) (*netns.Process, error) {
	r := lab.ServerRouter()
	dir, err := os.MkdirTemp("", "conntrackd-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for conntrackd: %w", err)
	}
	// It reads its configuration once, and removes what it makes.
	defer os.RemoveAll(dir)
	config := filepath.Join(dir, "conntrackd.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, conntrackdConfig, dir, queueNumber), 0o600); err != nil {
		return nil, err
	}
	if _, err := r.Run(ctx, "", "nfct", "add", "helper", "ftp", "inet", "tcp"); err != nil {
		return nil, err
	}
	if err := r.Nft(ctx, conntrackdRules); err != nil {
		return nil, err
	}
	path, err := exec.LookPath("/usr/sbin/conntrackd")
	if err != nil {
		return nil, fmt.Errorf("conntrackd is missing; install it with: apt-get install conntrackd nfct (%w)", err)
	}
	p, err := r.Start(exec.Command(path, "-C", config))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, netns.Scale(10*time.Second))
	defer cancel()
	// Nothing that it prints says so, but the queue shows.
	for {
		bound, _, err := queued(r.Host)
		switch {
		case err != nil:
			return nil, err
		case bound:
			return p, nil
		case !p.Running():
			return nil, fmt.Errorf("conntrackd has ended: %s", p.Output())
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for conntrackd to bind queue %d: %w; its output is:\n%s", queueNumber, ctx.Err(), p.Output())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stopConntrackd gives the name back as soon as no connection has the helper any more.
func stopConntrackd(ctx context.Context, lab *netns.Lab) error {
	r := lab.ServerRouter()
	_, errTable := r.Run(ctx, "", "nft", "delete", "table", "ip", "conntrackd")
	_, errFlush := r.Run(ctx, "", "conntrack", "-F")
	if err := errors.Join(errTable, errFlush); err != nil {
		return err
	}
	var err error
	for deadline := time.Now().Add(netns.Scale(10 * time.Second)); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if _, err = r.Run(ctx, "", "nfct", "delete", "helper", "ftp", "inet", "tcp"); err == nil {
			return nil
		}
	}
	return err
}
