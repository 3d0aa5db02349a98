package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// What the files are set to as they are shipped.
const (
	// DefaultPorts is FTP's own control port, as ParsePorts takes it.
	DefaultPorts = "21"

	// DefaultQueue is the queue's number.
	DefaultQueue = 2121
)

// A Ruleset is what becomes of control connections.
type Ruleset string

const (
	// Full, ftp-queue.nft, queues the packets that carry payload, and the server's SYN-ACK.
	Full Ruleset = "full"

	// Lean, ftp-queue-lean.nft, queues only what must be read, as the first bytes of a packet's
	// payload say: PORT, EPRT and AUTH, 234, and 227 and 229 where AskedLabel or EditedLabel is set.
	Lean Ruleset = "lean"

	// CTHelper, ftp-cthelper.nft, attaches a helper of user space and queues nothing: the kernel
	// hands the packets to that helper's queue (net/netfilter/nfnetlink_cthelper.c).
	CTHelper Ruleset = "cthelper"

	// Monitor, ftp-monitor.nft, queues what Full does, and attaches no helper and sets no label: for
	// a daemon that opens and changes nothing.
	Monitor Ruleset = "monitor"
)

// maxQueues is more than there is use for: a queue is for a processor.
const maxQueues = 256

// maxRanges keeps the ruleset within one netlink message.
const maxRanges = 256

// MaxHelper is how long the name of a conntrack helper may be, in bytes. It is one less than the kernel
// takes (NF_CT_HELPER_NAME_LEN, without the NUL): nft with libnftnl 1.2.4 can't list a table that has a
// name of 15 ("nf_tables kernel ABI is broken").
const MaxHelper = 14

// ftpHelper is the name of the kernel's own FTP helper, and of helpers in its place.
const ftpHelper = "ftp"

// Config is what can be chosen about the ruleset.
type Config struct {
	// Ruleset is one of the four; "" means Full.
	Ruleset Ruleset

	// Ports are the control ports: those that clients dial, before any DNAT. At
	// least 1 range and at most 256, without port 0; they may overlap.
	Ports []PortRange

	// Queue is the number of the netfilter queue, or of the first one. CTHelper has none: the
	// helper was registered with it.
	Queue uint16

	// Queues is how many queues there are, with consecutive numbers; 0 means 1. Both
	// directions of a connection go to the same one.
	Queues uint16

	// Helper is the type of the conntrack helper that is attached to control connections: one of
	// Carriers, or one that is registered through nfnetlink_cthelper. It has 14 bytes at most.
	// "" means "ftp" for CTHelper, "sane" for the others. Monitor attaches none.
	Helper string
}

func (c Config) queues() uint16 { return max(c.Queues, 1) }

func (c Config) ruleset() Ruleset {
	if c.Ruleset == "" {
		return Full
	}
	return c.Ruleset
}

func (c Config) helper() string {
	switch {
	case c.Helper != "":
		return c.Helper
	case c.Ruleset == CTHelper:
		return ftpHelper
	}
	return Carriers[0]
}

// Validate returns an error, one sentence, for a Config that can't work.
func (c Config) Validate() error {
	if !slices.Contains([]Ruleset{Full, Lean, CTHelper, Monitor}, c.ruleset()) {
		return fmt.Errorf("there is no ruleset %q; there are %s, %s, %s and %s", c.Ruleset, Full, Lean, CTHelper, Monitor)
	}
	if err := c.validateHelper(); err != nil {
		return err
	}
	if len(c.Ports) == 0 {
		return errors.New("no control port is given; FTP's own is 21")
	}
	if last := int(c.Queue) + int(c.queues()) - 1; last > 65535 {
		return fmt.Errorf("%d queues from number %d on are too many; the last number is 65535", c.Queues, c.Queue)
	}
	if c.Queues > maxQueues {
		return fmt.Errorf("%d queues are too many; up to %d are possible", c.Queues, maxQueues)
	}
	if c.Queues > 1 && c.Ruleset == CTHelper {
		return fmt.Errorf("%d queues are too many; with the ruleset %s the kernel fills one", c.Queues, CTHelper)
	}
	for _, r := range c.Ports {
		switch {
		case r.First == 0:
			return fmt.Errorf("control ports %v: ports are numbers from 1 to 65535", r)
		case r.Last < r.First:
			return fmt.Errorf("control ports %v: the range ends before it begins", r)
		}
	}
	if n := len(merge(c.Ports)); n > maxRanges {
		return fmt.Errorf("%d separate ranges of control ports are too many; up to %d are possible", n, maxRanges)
	}
	return nil
}

func (c Config) validateHelper() error {
	name := c.helper()
	unquotable := func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }
	switch {
	case len(name) > MaxHelper:
		return fmt.Errorf("the helper's name %q is too long; up to %d bytes are possible", name, MaxHelper)
	case strings.ContainsFunc(name, unquotable):
		return fmt.Errorf("the helper's name %q has more than ASCII letters, digits and signs, or a quotation mark", name)
	case c.ruleset() != CTHelper && name == ftpHelper:
		return fmt.Errorf("the helper %q reads FTP itself; with the ruleset %s use one that does not: %s",
			name, c.ruleset(), strings.Join(Carriers, " or "))
	case c.ruleset() == CTHelper && slices.Contains(Carriers, name):
		return fmt.Errorf("the helper %q is the kernel's and reads nothing; with the ruleset %s use one of user space, such as %q",
			name, CTHelper, ftpHelper)
	}
	return nil
}
