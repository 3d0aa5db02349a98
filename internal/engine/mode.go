package engine

// Mode is how an engine works: which rules queue its packets, and what it may do. Full, Lean and Monitor make
// one; the zero Mode is Full without labels.
type Mode struct {
	lean, monitor bool
	labels        Labels
}

// Labels are bits of the conntrack label, 1 to 127, by which the rules, the daemon and its successor know
// what a connection is. 0 means that there is none.
type Labels struct {
	// Recognised is set on a connection that is recognised as FTP: when it is looked up again, its PORT and EPRT
	// are helped at once. Without it, a connection that was evicted is not recognised again.
	Recognised int
	// InLine is set on a recognised connection that the daemon forgets in the middle of a line from the client: the rest of that
	// line is no line.
	InLine int
	// Proxied is the bit of connections whose SYN-ACK is not queued.
	Proxied int
	// Ignore makes the rules queue nothing more of a connection.
	Ignore int
	// ReplyDue is set by the lean rules when the client has sent PASV or EPSV: they queue all that the server sends
	// until it is cleared.
	ReplyDue int
	// Active is set by the lean rules when the client has sent PORT or EPRT: they queue all that the client sends until
	// it is cleared.
	Active int
	// Rewritten makes the lean rules queue retransmissions of replies.
	Rewritten int
}

// Full is the mode for rules that queue every packet with payload.
func Full(l Labels) Mode {
	l.ReplyDue, l.Active, l.Rewritten = 0, 0, 0
	return Mode{labels: l}
}

// Lean is the mode for rules that queue only segments that begin with a command or reply that has to be read.
func Lean(l Labels) Mode { return Mode{lean: true, labels: l} }

// Monitor is the mode that decides as Full does, and opens and changes nothing: every packet passes
// unchanged and at once, and of conntrack only Lookup is called. What it would have opened are
// WouldOpen events.
func Monitor() Mode { return Mode{monitor: true} }

// labelled reports whether a label is used, and set.
func labelled(label func(int) bool, bit int) bool { return bit != 0 && label(bit) }
