// Package cthelper registers conntrack helpers that live in user space: a name that rules can
// attach to connections, so that these may have expectations. It is a client of
// net/netfilter/nfnetlink_cthelper.c.
//
// Helpers are global to the machine: one that is registered here is there in every network
// namespace, and its name is taken in every one. Rules of other tables and namespaces that
// attach a helper of that name attach this one; and while it is registered, the kernel's own
// helper of that name cannot be loaded. Its queue is the one with that number in the
// connection's own namespace.
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

// Errors, for what a caller decides on.
var (
	// ErrUnsupported is returned where the kernel has no helpers in user space. It loads
	// the module by itself where there is one (alias nfnetlink-subsys-9).
	ErrUnsupported = errors.New("the kernel lacks nfnetlink_cthelper: provide the module")
	// ErrPermission is returned to a process without CAP_NET_ADMIN in the initial user
	// namespace. That of a rootless container is not enough.
	ErrPermission = errors.New("CAP_NET_ADMIN is needed in the initial user namespace, as helpers are global to the machine")
	// ErrNameTaken is returned where another helper for TCP has the name: one of the
	// kernel, such as nf_conntrack_ftp, or one of another program.
	ErrNameTaken = errors.New("the name is taken")
	// ErrInUse is returned where rules of some network namespace hold the helper, or of one
	// that is just going away. Kernels in which connections hold helpers, too (ct_refcnt, 2026),
	// remove it all the same.
	ErrInUse = errors.New("rules of some network namespace still use it: remove them first")
)

// Helper is a conntrack helper for TCP in user space.
type Helper struct {
	// Name is what rules call it by: 1 to 14 bytes.
	Name string
	// Queue is where the kernel queues the packets of its connections, if Enabled.
	Queue uint16
	// Enabled makes the kernel queue every packet of its connections, with payload or not,
	// from the place where it confirms them, behind all rules of input and postrouting.
	// Otherwise it queues none. While nobody listens, packets pass, but are neither confirmed nor
	// adjusted, so that no connection can be opened and some that are open stall.
	Enabled bool
}

// The policy of nf_conntrack_ftp: one expectation at a time, for so many seconds.
const (
	expectMax     = 1
	expectTimeout = 5 * 60
)

// nfnetlink_cthelper.h
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

// family is the layer-3 protocol of a helper: for the kernel a helper has one.
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

// Register registers the helper for IPv4 and IPv6. Its connections may have one expectation at
// a time, for 300 s, as those of nf_conntrack_ftp.
//
// A helper of that name and queue that is there already, from an earlier run for one, is taken
// over, together with the rules and the connections that have it, and enabled or disabled. Where
// one family is missing, it is added.
//
// Errors: ErrUnsupported, ErrPermission, ErrNameTaken, or what the kernel said. Then what has
// been added is removed again.
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

// Unregister removes the helper of that name from both families, whoever has registered it. That
// there is none is no error.
//
// Its connections go on without a helper, for good: what was expected of them is forgotten, their
// sequence numbers are adjusted as before, and a helper that is registered later is not theirs.
// The kernel also drops the packets that wait in queues at that time, those of all programs in
// all network namespaces (nf_ct_iterate_destroy); their senders send them again. So a queue should
// be empty by then.
//
// Errors: ErrUnsupported, ErrPermission, ErrInUse, or what the kernel said. A helper is held
// by a ct helper object of nftables, by CT rules of iptables, not by connections. One family may be
// gone when the other is in use: rules that are loaded then apply to the other one alone, until
// Register adds it.
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

// Probe says whether this process could register helpers: it returns ErrUnsupported,
// ErrPermission, or what the kernel said. It leaves nothing behind but the module that the
// kernel has loaded for it. It only looks a helper up, since removing one would drop the
// packets in all queues.
func Probe() error {
	_, _, err := Lookup("probe")
	for _, known := range []error{ErrUnsupported, ErrPermission} {
		if errors.Is(err, known) {
			return known // it is not about that name
		}
	}
	return err
}

// Lookup returns the helper in user space of that name, for IPv4; false if there is none. Errors
// are those of Probe.
func Lookup(name string) (h Helper, there bool, err error) {
	c, err := dial()
	if err == nil {
		h, there, err = c.lookup(name, ipv4)
		err = errors.Join(err, c.nf.Close())
	}
	if err != nil {
		return h, false, fmt.Errorf("look up conntrack helper %q: %w", name, err)
	}
	return h, there, nil
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
	// First look, then touch.
	there := map[family]bool{}
	for _, f := range families {
		old, ok, err := c.lookup(h.Name, f)
		if err != nil {
			return err
		}
		if ok && old.Queue != h.Queue {
			return fmt.Errorf("%w for %s by a helper whose queue is %d, not %d: choose another name, or the same queue",
				ErrNameTaken, f, old.Queue, h.Queue)
		}
		there[f] = ok
	}
	for i, f := range families {
		err := c.put(h, f, there[f])
		if err == nil {
			continue
		}
		for _, done := range families[:i] {
			if !there[done] {
				err = errors.Join(err, c.remove(h.Name, done))
			}
		}
		return err
	}
	return nil
}

// put registers the helper for one family, or changes the one that is there.
func (c client) put(h Helper, f family, there bool) error {
	flags := netlink.Create | netlink.Excl
	if there {
		flags = 0
	}
	_, err := c.query(msgNew, flags, h.attributes(f))
	switch {
	case err == nil || !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY):
		return err
	case there: // classes of expectations and room for data can't change
		return fmt.Errorf("%w for %s by a helper of another kind: choose another name, or stop the program that registered it",
			ErrNameTaken, f)
	}
	// Not one of nfnetlink_cthelper: that would be there. EEXIST; newer kernels say EBUSY.
	return fmt.Errorf("%w for %s by a helper of the kernel: unload its module, nf_conntrack_%s perhaps, or choose another name",
		ErrNameTaken, f, h.Name)
}

func (c client) unregister(name string) error {
	if err := check(name); err != nil {
		return err
	}
	// One family in a message: for both in one, the kernel says nothing if only one is in use.
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

// lookup returns the helper in user space of that name and family; false if there is none.
func (c client) lookup(name string, f family) (Helper, bool, error) {
	answer, err := c.query(msgGet, 0, key(name, f))
	// nfnl_cthelper_get means ENOENT, but says success and nothing else if a family is asked for.
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
	case errors.Is(err, unix.EINVAL): // nfnetlink's answer for a subsystem that it does not have
		return nil, ErrUnsupported
	case errors.Is(err, unix.EPERM):
		return nil, ErrPermission
	}
	return answer, err
}

// check returns an error for what is no name, or none that rules can have.
func check(name string) error {
	if name == "" || len(name) > rules.MaxHelper || strings.Contains(name, "\x00") {
		return fmt.Errorf("a name has 1 to %d bytes, none of them NUL", rules.MaxHelper)
	}
	return nil
}

// key names a helper: the kernel tells them apart by name, family and protocol.
func key(name string, f family) (b nfnetlink.Buffer) {
	b.Text(attrName, name)
	tuple := b.Nest(attrTuple)
	b.Uint16(tupleL3ProtoNum, uint16(f))
	b.Bytes(tupleL4ProtoNum, unix.IPPROTO_TCP)
	b.End(tuple)
	return b
}

// attributes describe the whole helper. The kernel wants them all for a new one.
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
	b.Uint32(attrPrivDataLen, 0) // no room for data of its own in its connections
	status := uint32(statusDisabled)
	if h.Enabled {
		status = statusEnabled
	}
	b.Uint32(attrStatus, status)
	return b
}
