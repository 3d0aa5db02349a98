package control

import "github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"

// Word is a value that a field can have.
type Word = engine.Word

// Kinds of events besides those of an engine.
const (
	KindUsed    = "used"
	KindExpired = "expired"
	KindClosed  = "closed"
	KindMissed  = "missed"
)

// StateClosing is the State of a Flow besides those of an engine.
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

// The values of Event.Kind, Flow.State, Flow.Sequence, of Endpoint.Reason and Event.Reason, and of Rules.Source.
var (
	Kinds       = engine.Words("kind")
	States      = engine.Words("state")
	Sequences   = engine.Words("sequence")
	Refusals    = engine.Refusals() // of an endpoint that was not opened
	Expiries    = engine.Expiries() // of a KindExpired
	RuleSources = engine.Words("source")
)
