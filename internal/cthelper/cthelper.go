// Package cthelper registers conntrack helpers in user space: names that rules can assign to connections, so that
// these may have expectations. It is a client of net/netfilter/nfnetlink_cthelper.c.
//
// A helper is global to the machine: rules of every network namespace that assign its name assign this helper. The
// kernel's helper of that name cannot be loaded while it is registered. The queue is that of the connection's network
// namespace.
package cthelper

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// Errors that callers distinguish.
var (
	// ErrUnsupported means that the kernel has no helpers in user space, and no module that it could load (alias
	// nfnetlink-subsys-9).
	ErrUnsupported = errors.New("the kernel lacks nfnetlink_cthelper: provide the module")
	// ErrPermission means that the process lacks CAP_NET_ADMIN in the initial user namespace. That of a rootless
	// container is not enough.
	ErrPermission = errors.New("CAP_NET_ADMIN is needed in the initial user namespace, as helpers are global to the machine")
	// ErrNameTaken means that another helper for TCP has the name: one of the kernel, such as nf_conntrack_ftp, or
	// one of another program.
	ErrNameTaken = errors.New("the name is taken")
	// ErrInUse means that rules of a network namespace hold the helper, perhaps of one that is being removed. Kernels
	// in which connections hold helpers too (ct_refcnt, 2026) remove it nevertheless.
	ErrInUse = errors.New("rules of some network namespace still use it: remove them first")
)

// Helper is a conntrack helper for TCP in user space.
type Helper struct {
	// Name is 1 to 14 bytes long.
	Name string
	// Queue is the number of the queue for the packets of its connections, if Enabled.
	Queue uint16
	// Enabled makes the kernel queue every packet of its connections, with payload or not, where it confirms them:
	// after all rules of input and postrouting. Without a program on the queue, packets pass, but are neither
	// confirmed nor adjusted: no connection can be opened, and some open ones stall.
	Enabled bool
}

// The policy of nf_conntrack_ftp: one expectation at a time.
const (
	expectMax     = 1
	expectTimeout = 5 * 60 // seconds
)

// include/uapi/linux/netfilter/nfnetlink_cthelper.h
const (
	msgNew = 0
	msgGet = 1
	msgDel = 2

	attrName        = 1
	attrTuple       = 2
	attrQueueNum    = 3
	attrPolicy      = 4
	attrPrivDataLen = 5
	attrStatus      = 6

	tupleL3ProtoNum = 1
	tupleL4ProtoNum = 2

	policySetNum   = 1
	policySetFirst = 2

	policyName          = 1
	policyExpectMax     = 2
	policyExpectTimeout = 3

	statusDisabled = 0
	statusEnabled  = 1
)

// family is the layer-3 protocol of a helper. The kernel has one helper for each.
type family uint16

const (
	ipv4 = family(unix.NFPROTO_IPV4)
	ipv6 = family(unix.NFPROTO_IPV6)
)

func (f family) String() string {
	if f == ipv4 {
		return "IPv4"
	}
	return "IPv6"
}

var families = []family{ipv4, ipv6}

// Register registers the helper for IPv4 and IPv6. Its connections may have one expectation at a time, for 300 s, as
// those of nf_conntrack_ftp.
//
// A registered helper with the same name and queue, of an earlier run say, is enabled or disabled and keeps its rules
// and connections. A missing family is added.
//
// Errors: ErrUnsupported, ErrPermission, ErrNameTaken, or the kernel's errno. Families that were added are removed then.
func Register(h Helper) error {
	c, err := dial()
	if err == nil {
		err = errors.Join(c.register(h), c.nf.Close())
	}
	if err != nil {
		return fmt.Errorf("register conntrack helper %q: %w", h.Name, err)
	}
	return nil
}

// Unregister removes the helper of that name for both families, of this or another program. A missing helper is no
// error.
//
// Its connections continue without a helper, permanently: their expectations are removed, their sequence numbers are
// adjusted as before, and a helper that is registered later does not apply to them. The kernel also drops all packets
// in the queues of all network namespaces (nf_ct_iterate_destroy), so the queue should be empty; senders retransmit.
//
// Errors: ErrUnsupported, ErrPermission, ErrInUse, or the kernel's errno. A helper is held by a ct helper object of
// nftables and by CT rules of iptables, not by connections. If one family is in use, the other may have been removed:
// rules that are loaded then apply to one family, until Register adds the other.
func Unregister(name string) error {
	c, err := dial()
	if err == nil {
		err = errors.Join(c.unregister(name), c.nf.Close())
	}
	if err != nil {
		return fmt.Errorf("remove conntrack helper %q: %w", name, err)
	}
	return nil
}

// Probe returns nil if this process could register helpers, else ErrUnsupported, ErrPermission, or the kernel's errno.
// It changes nothing, except that the kernel may load its module. It looks up a helper instead of registering one,
// since removing that would drop the packets in all queues.
func Probe() error {
	_, _, err := Lookup("probe")
	for _, known := range []error{ErrUnsupported, ErrPermission} {
		if errors.Is(err, known) {
			return known // without the name
		}
	}
	return err
}

// Lookup returns the helper in user space of that name, for IPv4. Errors are those of Probe.
func Lookup(name string) (h Helper, registered bool, err error) {
	c, err := dial()
	if err == nil {
		h, registered, err = c.lookup(name, ipv4)
		err = errors.Join(err, c.nf.Close())
	}
	if err != nil {
		return h, false, fmt.Errorf("look up conntrack helper %q: %w", name, err)
	}
	return h, registered, nil
}

// client is a socket to the kernel. Its network namespace does not matter.
type client struct{ nf *netlink.Conn }

func dial() (client, error) {
	nf, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return client{}, ErrUnsupported
	}
	return client{nf}, err
}

func (c client) register(h Helper) error {
	if err := check(h.Name); err != nil {
		return err
	}
	registered := map[family]bool{}
	for _, f := range families {
		old, ok, err := c.lookup(h.Name, f)
		if err != nil {
			return err
		}
		if ok && old.Queue != h.Queue {
			return fmt.Errorf("%w for %s by a helper whose queue is %d, not %d: choose another name, or the same queue",
				ErrNameTaken, f, old.Queue, h.Queue)
		}
		registered[f] = ok
	}
	for i, f := range families {
		err := c.put(h, f, registered[f])
		if err == nil {
			continue
		}
		for _, done := range families[:i] {
			if !registered[done] {
				err = errors.Join(err, c.remove(h.Name, done))
			}
		}
		return err
	}
	return nil
}

// put registers the helper for one family, or changes the registered one.
func (c client) put(h Helper, f family, registered bool) error {
	flags := netlink.Create | netlink.Excl
	if registered {
		flags = 0
	}
	_, err := c.query(msgNew, flags, h.attributes(f))
	switch {
	case err == nil || !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY):
		return err
	case registered: // its policy or size of private data differs
		return fmt.Errorf("%w for %s by a helper of another kind: choose another name, or stop the program that registered it",
			ErrNameTaken, f)
	}
	// One of nfnetlink_cthelper would have been found. EEXIST, in newer kernels EBUSY.
	return fmt.Errorf("%w for %s by a helper of the kernel: unload its module, nf_conntrack_%s perhaps, or choose another name",
		ErrNameTaken, f, h.Name)
}

func (c client) unregister(name string) error {
	if err := check(name); err != nil {
		return err
	}
	// One message for each family: for both in one, the kernel reports no error if one is in use.
	for _, f := range families {
		if err := c.remove(name, f); err != nil {
			return err
		}
	}
	return nil
}

func (c client) remove(name string, f family) error {
	_, err := c.query(msgDel, 0, key(name, f))
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return ErrInUse
	}
	return err
}

// lookup returns the helper in user space of that name and family.
func (c client) lookup(name string, f family) (Helper, bool, error) {
	answer, err := c.query(msgGet, 0, key(name, f))
	// nfnl_cthelper_get answers with success and no helper instead of ENOENT if the query has a family.
	if errors.Is(err, unix.ENOENT) {
		return Helper{}, false, nil
	}
	if err != nil || len(answer) == 0 || answer[0].Header.Type == netlink.Error {
		return Helper{}, false, err
	}
	attrs, err := nfnetlink.Body(answer[0].Data)
	if err != nil {
		return Helper{}, false, err
	}
	return Helper{Name: name, Queue: uint16(attrs.Uint32(attrQueueNum)), Enabled: attrs.Uint32(attrStatus) == statusEnabled}, true, nil
}

func (c client) query(msg netlink.HeaderType, flags netlink.HeaderFlags, attrs nfnetlink.Buffer) ([]netlink.Message, error) {
	answer, err := c.nf.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_CTHELPER<<8 | msg, Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   nfnetlink.Data(unix.NFPROTO_UNSPEC, attrs),
	})
	switch {
	case errors.Is(err, unix.EINVAL): // of nfnetlink, for an unknown subsystem
		return nil, ErrUnsupported
	case errors.Is(err, unix.EPERM):
		return nil, ErrPermission
	}
	return answer, err
}

// check returns an error for a name that rules cannot have.
func check(name string) error {
	if name == "" || len(name) > rules.MaxHelper || strings.Contains(name, "\x00") {
		return fmt.Errorf("a name has 1 to %d bytes, none of them NUL", rules.MaxHelper)
	}
	return nil
}

// key identifies a helper: by name, family and protocol.
func key(name string, f family) (b nfnetlink.Buffer) {
	b.Text(attrName, name)
	tuple := b.Nest(attrTuple)
	b.Uint16(tupleL3ProtoNum, uint16(f))
	b.Bytes(tupleL4ProtoNum, unix.IPPROTO_TCP)
	b.End(tuple)
	return b
}

// attributes returns all attributes of the helper, which the kernel requires for a new one.
func (h Helper) attributes(f family) nfnetlink.Buffer {
	b := key(h.Name, f)
	b.Uint32(attrQueueNum, uint32(h.Queue))
	policies := b.Nest(attrPolicy)
	b.Uint32(policySetNum, 1)
	policy := b.Nest(policySetFirst)
	b.Text(policyName, h.Name)
	b.Uint32(policyExpectMax, expectMax)
	b.Uint32(policyExpectTimeout, expectTimeout)
	b.End(policy)
	b.End(policies)
	b.Uint32(attrPrivDataLen, 0)
	status := uint32(statusDisabled)
	if h.Enabled {
		status = statusEnabled
	}
	b.Uint32(attrStatus, status)
	return b
}
