package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// An Early has the ruleset User queue the server's packets of a connection before conntrack
// (priority -300), where no label can be looked at: by elements of the maps adjusted4 and
// adjusted6. It is not for concurrent use.
//
// The element says when packets are queued early, UserLabel that they are not queued again
// later. Between the two, a packet with payload is queued twice; where the label comes first, it
// is not queued at all.
type Early struct {
	dial  func() (*nftables.Conn, error)
	conn  *nftables.Conn
	chain string // that the elements jump to
}

// OpenEarly opens a netlink connection for the queue with that number, one of c's. Close ends it.
// Errors are one sentence; they are about c, or wrap the kernel's errno.
func OpenEarly(c Config, queue uint16, opts ...nftables.ConnOption) (*Early, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Ruleset != User {
		return nil, fmt.Errorf("the ruleset %s queues nothing before conntrack; use %s", c.ruleset(), User)
	}
	if queue < c.Queue || queue-c.Queue >= c.queues() {
		return nil, fmt.Errorf("queue %d is none of the %d from %d on that the rules fill", queue, c.queues(), c.Queue)
	}
	dial := func() (*nftables.Conn, error) {
		return nftables.New(append(slices.Clip(opts), nftables.AsLasting())...)
	}
	conn, err := dial()
	if err != nil {
		return nil, fmt.Errorf("opening a netlink connection for the rules: %w", err)
	}
	return &Early{dial: dial, conn: conn, chain: queueChain(queue - c.Queue).Name}, nil
}

// Close closes the netlink connection. Elements stay.
func (e *Early) Close() error { return e.conn.CloseLasting() }

// Add has the packets from src to dst queued before conntrack: src is the server as it really
// is, dst the client as the server sees it, the ends of the conntrack entry's reply tuple. What
// is there for another queue is replaced; what is there already is no error.
//
// It takes about 0.1 ms, and 1 ms where there are 10000 elements: with each one that is added the
// kernel looks at all that the table can jump to (nft_table_validate).
//
// Errors are one sentence, and wrap the kernel's errno: ENOENT if the rules are not there.
func (e *Early) Add(src, dst netip.AddrPort) error {
	m, key, err := element(src, dst)
	if err == nil {
		jump := nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: e.chain}}
		err = e.commit(func() error { return e.conn.SetAddElements(m, []nftables.SetElement{jump}) })
		if errors.Is(err, unix.EEXIST) {
			// The connection before with those ends was another queue's. (Kernels without "fix
			// spurious set element insertion failure", of 2023, may say so of the same verdict.)
			err = e.commit(func() error {
				return errors.Join(e.conn.SetDeleteElements(m, []nftables.SetElement{{Key: key}}),
					e.conn.SetAddElements(m, []nftables.SetElement{jump}))
			})
		}
	}
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("the ruleset %s is not installed (%w)", User, err)
	}
	if err != nil {
		return explain(fmt.Sprintf("queueing the packets from %v to %v before conntrack", src, dst), err)
	}
	return nil
}

// Remove ends what Add began. That there is nothing to end is no error; others are as Add's.
func (e *Early) Remove(src, dst netip.AddrPort) error {
	m, key, err := element(src, dst)
	if err == nil {
		err = e.commit(func() error { return e.conn.SetDeleteElements(m, []nftables.SetElement{{Key: key}}) })
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return explain(fmt.Sprintf("ending that packets from %v to %v are queued before conntrack", src, dst), err)
	}
	return nil
}

// commit runs a transaction. The library takes one answer for each message, and the kernel has
// one more for a transaction that fails at its end: so after an error there is a new connection.
func (e *Early) commit(add func() error) error {
	if err := add(); err != nil {
		return err
	}
	err := e.conn.Flush()
	if err != nil {
		e.conn.CloseLasting()
		if conn, err := e.dial(); err == nil {
			e.conn = conn
		}
	}
	return err
}

// ClearEarly empties the maps: a daemon that starts knows nothing of what an earlier one kept.
// That there are none is no error; others are one sentence and wrap the kernel's errno.
func ClearEarly(opts ...nftables.ConnOption) error {
	conn, err := nftables.New(opts...)
	if err == nil {
		conn.FlushSet(adjusted4)
		conn.FlushSet(adjusted6)
		err = conn.Flush()
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return explain("emptying the maps adjusted4 and adjusted6", err)
}

// element is the key of a verdictMap: addresses, and ports that are padded to a register of 4 bytes.
func element(src, dst netip.AddrPort) (*nftables.Set, []byte, error) {
	m := adjusted4
	switch {
	case src.Addr().Is4() && dst.Addr().Is4():
	case src.Addr().Is6() && dst.Addr().Is6():
		m = adjusted6
	default:
		return nil, nil, errors.New("these are not addresses of one family")
	}
	var key []byte
	for _, end := range []netip.AddrPort{src, dst} {
		key = append(key, end.Addr().AsSlice()...)
		key = append(binary.BigEndian.AppendUint16(key, end.Port()), 0, 0)
	}
	return m, key, nil
}
