package doctor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/backend"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/cthelper"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// probe is the result of doing to one connection what the daemon does.
type probe struct {
	statement   rules.Statement // that hands packets to the queue
	noStatement error
	noHelper    string // why no helper can be assigned
	helper      string // assigned to the connection
	expect      error  // of installing and removing an expectation
	translate   error  // of setting up NAT; adjust needs it
	translated  bool   // conntrack translates the connection
	adjust      error  // of setting a sequence adjustment and reading it back
}

// checkProbe finds what the kernel cannot do, in a new network namespace: when a helper's rule is removed, the
// kernel drops all packets that wait in the namespace's queues.
func checkProbe(x *examination) []Finding {
	if x.noPlan != nil {
		return nil // checkPlan reports it
	}
	plan := x.plan
	if x.request.Monitor { // tried as if without --monitor
		r := x.request
		r.Monitor = false
		var err error
		if plan, err = x.choose(r); err != nil {
			return problem(strings.ReplaceAll(err.Error(), "\n", "; "), "without --monitor, the daemon could help no connection", "")
		}
	}
	t, err := x.probe(plan)
	if err != nil {
		return warning(fmt.Sprintf("no test in a network namespace: %v", err),
			"whether the kernel can queue, expect and adjust is not known",
			"run it with CAP_SYS_ADMIN, which root has outside of containers: sudo nfq-ftphelper doctor")
	}
	var found []Finding
	if !plan.KernelQueues() {
		found = named("queue statement", statementFinding(t))
	}
	switch {
	case t.noStatement != nil:
		return found
	case t.noHelper != "":
		return append(found, named("expectations", warning("no test: "+t.noHelper,
			"whether the kernel can expect and adjust is not known", x.command("run")))...)
	}
	return slices.Concat(found, named("expectations", expectationFinding(t)), named("sequence adjustment", adjustmentFinding(t)))
}

func named(check string, found []Finding) []Finding {
	for i := range found {
		found[i].Check = check
	}
	return found
}

func statementFinding(t probe) []Finding {
	if t.noStatement != nil {
		return problem(t.noStatement.Error(), "no packet reaches the daemon",
			"modprobe nft_queue || modprobe -a nft_compat xt_NFQUEUE")
	}
	if t.statement == rules.Compat {
		return ok("packets are queued by iptables' NFQUEUE target; without CONFIG_NFT_QUEUE in the kernel the .nft files cannot be loaded: use %s rules apply, or run --rules", program)
	}
	return ok("packets are queued by nftables' queue statement")
}

func expectationFinding(t probe) []Finding {
	const why = "data connections are not translated by NAT and not \"related\""
	switch {
	case errors.Is(t.expect, expect.ErrNoHelper):
		return problem("the rules assign no helper to the test connection", why, "")
	case t.expect != nil:
		return problem(fmt.Sprintf("the kernel refuses the test expectation: %v", t.expect), why, "")
	}
	return ok("test expectation worked with helper %s (in a throw-away namespace)", t.helper)
}

func adjustmentFinding(t probe) []Finding {
	const unknown = "whether a line can change its length is not known"
	switch {
	case t.translate != nil:
		return warning(fmt.Sprintf("no test with NAT: %v", t.translate), unknown, "")
	case !t.translated:
		return warning("the test connection was not translated", unknown, "")
	case t.adjust != nil:
		return problem(t.adjust.Error(), "a line cannot change its length", "install a later kernel")
	}
	return ok("test adjustment worked with DNAT (in a throw-away namespace)")
}

// probe implements system.
func (host) probe(c backend.Plan) (t probe, err error) {
	err = inNewNamespace(func() error {
		if !c.KernelQueues() {
			t.statement, t.noStatement = rules.ProbeStatement()
		}
		if c.Helper == backend.CTHelper {
			if err := t.standInCarrier(&c); err != nil {
				return err
			}
		}
		if t.noStatement != nil || t.noHelper != "" {
			return nil
		}
		if _, err := rules.Apply(c.Rules); err != nil {
			return err
		}
		t.translate = translateProbe()
		conn, peer, err := connectProbe(c.Rules.Ports[0].First)
		if err != nil {
			return err
		}
		defer conn.Close()
		defer peer.Close()
		return t.try(conn)
	})
	return t, err
}

// standInCarrier changes the plan of a cthelper to one that can be tried. Where the kernel queues for the cthelper,
// nothing would release the packets here, so a carrier replaces it. A cthelper that is not registered is not
// registered for the test, since removing it would drop packets.
func (t *probe) standInCarrier(c *backend.Plan) error {
	if c.KernelQueues() {
		c.Rules.Ruleset = rules.Full
		for _, c.Rules.Helper = range rules.Carriers {
			if rules.ProbeCarrier(c.Rules.Helper) == nil {
				return nil
			}
		}
		t.noHelper = "the kernel has no carrier to test with instead of the cthelper"
		return nil
	}
	_, registered, err := cthelper.Lookup(c.Rules.Helper)
	if err == nil && !registered {
		t.noHelper = fmt.Sprintf("the helper %s is not registered; the daemon does that", c.Rules.Helper)
	}
	return err
}

// In the test a client connects to one loopback address, and DNAT changes it to another one.
var (
	probeAddress = netip.AddrFrom4([4]byte{127, 0, 0, 2})
	probeServer  = netip.AddrFrom4([4]byte{127, 0, 0, 1})
)

// inNewNamespace runs do in a network namespace that is removed afterwards, with its loopback interface up.
func inNewNamespace(do func() error) error {
	done := make(chan error)
	go func() {
		// The thread is not unlocked, so it ends with the goroutine, unless it is the main one.
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(home)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("no network namespace can be created: %w", err)
			return
		}
		defer unix.Setns(home, unix.CLONE_NEWNET)
		if err := loopbackUp(); err != nil {
			done <- fmt.Errorf("the loopback interface: %w", err)
			return
		}
		done <- do()
	}()
	return <-done
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// translateProbe translates connections to probeAddress to probeServer.
func translateProbe() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "probe", Family: nftables.TableFamilyIPv4})
	chain := conn.AddChain(&nftables.Chain{Table: table, Name: "output", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: probeAddress.AsSlice()},
		&expr.Immediate{Register: 1, Data: probeServer.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}})
	return conn.Flush()
}

// connectProbe opens a connection to a port of probeAddress, and accepts it, with NAT or without.
func connectProbe(port uint16) (conn, peer net.Conn, err error) {
	listener, err := net.Listen("tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	dialer := net.Dialer{
		Timeout:   5 * time.Second,
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(probeServer, 0)),
	}
	dialer.SetMultipathTCP(false)
	if conn, err = dialer.Dial("tcp4", netip.AddrPortFrom(probeAddress, port).String()); err != nil {
		return nil, nil, err
	}
	if peer, err = listener.Accept(); err != nil {
		conn.Close()
	}
	return conn, peer, err
}

// try does to the connection what the daemon does.
func (t *probe) try(conn net.Conn) error {
	c, err := expect.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	m, _, err := c.Lookup(expect.Tuple{
		Src: conn.LocalAddr().(*net.TCPAddr).AddrPort(),
		Dst: conn.RemoteAddr().(*net.TCPAddr).AddrPort(),
	})
	if err != nil {
		return err
	}
	t.helper, t.translated = m.Helper, m.NAT()
	e := expect.For(m, expect.Reply, 40000)
	if t.expect = c.Announce(m, e, expect.Update{}); t.expect == nil {
		t.expect = c.Unexpect(e)
	}
	if t.translated {
		t.adjust = c.Update(m, expect.Update{Dir: expect.Reply, Adjust: &expect.SeqAdj{Position: 1000, Before: 0, After: 4}})
	}
	return nil
}
