package control

// Word is a value that a field can have.
type Word struct {
	Name string
	// Meaning is one sentence, without its full stop.
	Meaning string
}

// Kinds of events that are not those of an engine.
const (
	KindUsed    = "used"
	KindExpired = "expired"
	KindClosed  = "closed"
	KindMissed  = "missed"
)

// StateClosing is the State of a Flow that is not an engine's.
const StateClosing = "closing"

// Reasons of a KindExpired.
const (
	ExpiredTimeout  = "timeout"
	ExpiredDropped  = "dropped"
	ExpiredReplaced = "replaced"
	ExpiredClosed   = "closed"
	ExpiredDeleted  = "deleted"
)

// Sources of Rules.
const (
	RulesApplied   = "applied"
	RulesInPlace   = "in-place"
	RulesDifferent = "different"
)

// Kinds are the values of Event.Kind.
var Kinds = []Word{
	{"tracked", "the daemon has found the control connection in conntrack and reads it"},
	{"expected", "a data connection was announced, and conntrack expects it"},
	{KindUsed, "an expected data connection came and passed this host's filter"},
	{KindExpired, "an expected data connection did not come, for the reason given"},
	{"refused", "an announced data connection is not opened, for the reason given; the line is forwarded unmodified"},
	{"failed", "an announced data connection is allowed but could not be opened"},
	{"unreadable", "a line that should announce an address and a port has none"},
	{"encrypted", "the connection uses TLS from here on; its data connections cannot be helped"},
	{"not-ftp", "the client's first bytes are not FTP; the connection is ignored"},
	{"lost", "the sequence numbers of the connection were adjusted by a daemon that has stopped or has forgotten it; the client has to connect again"},
	{"length-kept", "sequence numbers cannot be adjusted, so rewritten lines keep their length"},
	{"stays-queued", "packets that need no reading stay queued"},
	{"unknown", "conntrack does not know the connection of a packet; the packet was accepted unread"},
	{KindClosed, "one end has closed or reset the control connection, or conntrack has removed it"},
	{KindMissed, "events are missing here"},
}

// States are the values of Flow.State.
var States = []Word{
	{"read", "the daemon reads it"},
	{"encrypted", "it uses TLS and passes unread"},
	{"ignored", "it is not FTP, or its sequence numbers are lost, and passes unread"},
	{StateClosing, "one end has closed or reset it"},
}

// Sequences are the values of Flow.Sequence.
var Sequences = []Word{
	{"kernel", "the kernel adjusts sequence numbers"},
	{"same-length", "nothing does: rewritten lines keep their length"},
	{"user", "the daemon adjusts sequence numbers"},
}

// Refusals are the values of Endpoint.Reason, and of Event.Reason for an endpoint that was refused.
var Refusals = []Word{
	{"unasked", "a 227 or 229 without a PASV or EPSV before it"},
	{"not_greeted", "a PORT or EPRT before the server's greeting"},
	{"midstream", "a PORT or EPRT where no line is certain to begin: the connection was not seen from its start"},
	{"after_epsv_all", "a PORT or EPRT after EPSV ALL"},
	{"not_peer", "the announced address is not the sender's own (bounce protection, see --allow)"},
	{"low_port", "the announced port is below --min-port"},
	{"too_many", "the client announced more than --rate data connections within a second"},
	{"failed", "allowed, but conntrack or the rewrite refused it"},
}

// Expiries are the values of Event.Reason for an "expired".
var Expiries = []Word{
	{ExpiredTimeout, "no data connection came before the kernel's time-out"},
	{ExpiredDropped, "the first packet came, but a filter on this host dropped it"},
	{ExpiredReplaced, "the connection announced another data connection first"},
	{ExpiredClosed, "the control connection closed first"},
	{ExpiredDeleted, "another program removed the expectation"},
}

// RuleSources are the values of Rules.Source.
var RuleSources = []Word{
	{RulesApplied, "the daemon has applied them, and removes them at its stop"},
	{RulesInPlace, "they were in place at the start and are as the settings say"},
	{RulesDifferent, "they were missing or differed from the settings at the start"},
}
