package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The values in the files.
const (
	// DefaultPorts is FTP's control port, for ParsePorts.
	DefaultPorts = "21"

	// DefaultQueue is the queue's number.
	DefaultQueue = 2121
)

// Ruleset selects which packets of control connections are queued.
type Ruleset string

const (
	// Full, ftp-queue.nft, queues the packets that carry payload, and the server's SYN-ACK.
	Full Ruleset = "full"

	// Lean, ftp-queue-lean.nft, queues packets by the first bytes of their payload: PORT, EPRT and AUTH, 234, and 227
	// and 229 if ReplyDue or Rewritten is set.
	Lean Ruleset = "lean"

	// CTHelper, ftp-cthelper.nft, assigns a helper in user space and queues nothing: the kernel queues to the helper's
	// queue (net/netfilter/nfnetlink_cthelper.c).
	CTHelper Ruleset = "cthelper"

	// Monitor, ftp-monitor.nft, queues packets with payload, and assigns no helper and no label: for a daemon that opens
	// and changes nothing.
	Monitor Ruleset = "monitor"
)

// maxQueues exceeds every use: one queue is enough for a processor.
const maxQueues = 256

// maxRanges keeps the ruleset within one netlink message.
const maxRanges = 256

// MaxHelper is the maximum length of a conntrack helper's name, in bytes. It is one less than the kernel's
// (NF_CT_HELPER_NAME_LEN, without the NUL): nft with libnftnl 1.2.4 cannot list a name of 15 bytes ("nf_tables kernel
// ABI is broken").
const MaxHelper = 14

// ftpHelper is the name of the kernel's FTP helper, and of a cthelper that replaces it.
const ftpHelper = "ftp"

// Config is the settings of the rules.
type Config struct {
	// Ruleset is one of the four; "" means Full.
	Ruleset Ruleset

	// Ports are the control ports that clients connect to, before DNAT: 1 to 256 ranges without port 0; they may
	// overlap.
	Ports []PortRange

	// Queue is the number of the netfilter queue, or of the first one. CTHelper ignores it: the helper has a queue.
	Queue uint16

	// Queues is the number of queues, with consecutive numbers; 0 means 1. Both directions of a connection use the same
	// queue.
	Queues uint16

	// Helper is the conntrack helper of control connections: one of Carriers, or one in user space. It has up to
	// MaxHelper bytes. "" means "ftp" for CTHelper, "sane" for the others. Monitor assigns none.
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

// Validate returns an error, one sentence, for a Config that cannot work.
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
