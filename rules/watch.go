package rules

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
)

// Watch reports the kernel's notifications of rule changes in a network namespace (nf_tables_commit of
// net/netfilter/nf_tables_api.c).
type Watch struct {
	conn   *netlink.Conn
	closed atomic.Bool
	own    chan struct{}
	any    chan struct{}
}

// NewWatch subscribes to changes. It needs CAP_NET_ADMIN.
func NewWatch() (*Watch, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("watch the rules: %w", err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the rules: %w", err), conn.Close())
	}
	return &Watch{conn: conn, own: make(chan struct{}, 1), any: make(chan struct{}, 1)}, nil
}

// Own receives a value after table inet nfq_ftphelper may have changed; several changes may be one value.
func (w *Watch) Own() <-chan struct{} { return w.own }

// Any is the same for all tables.
func (w *Watch) Any() <-chan struct{} { return w.any }

// Run receives changes until the Watch is closed, and then returns nil, or until an error, which it returns.
func (w *Watch) Run() error {
	for {
		changes, err := w.conn.Receive()
		switch {
		case err != nil && w.closed.Load():
			return nil
		case errors.Is(err, unix.ENOBUFS): // changes were lost
			signal(w.own)
		case err != nil:
			return fmt.Errorf("watch the rules: %w", err)
		}
		for _, c := range changes {
			if isOwn(c) {
				signal(w.own)
			}
		}
		signal(w.any)
	}
}

// Close ends the subscription and Run.
func (w *Watch) Close() error {
	w.closed.Store(true)
	return w.conn.Close()
}

// signal sends a value to a channel that has none.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// isOwn reports whether a change concerns the table. The first attribute of tables, chains, rules, sets, elements and
// objects is the table's name.
func isOwn(m netlink.Message) bool {
	attrs, err := nfnetlink.Body(m.Data)
	return err == nil && nftables.TableFamily(m.Data[0]) == table.Family && attrs.Text(unix.NFTA_TABLE_NAME) == table.Name
}
