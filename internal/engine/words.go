package engine

import (
	"fmt"
	"log/slog"
	"slices"
)

// The words with which the log, the events, the flows and the metrics name things are all here: each
// has one name, whoever says it. Vocabulary lists them for the manual and for tests.

// Term is what log lines, events and flows have under one key, and metrics as a label.
type Term struct {
	Name    string
	Meaning string
	Words   []Word
}

// Word is a value that a Term may have.
type Word struct{ Name, Meaning string }

// Vocabulary returns all terms whose values are words.
func Vocabulary() []Term {
	return []Term{
		{"kind", "what an event is about", list(kinds[:], func(k kindWord) Word { return k.Word })},
		{"verb", "the command or the reply code that announces an endpoint", verbs[:]},
		{"reason", "why an announced endpoint is refused", list(Reasons(), func(r Reason) Word { return reasons[r] })},
		{"state", "what happens to the text of a control connection", states[:]},
		{"sequence", "what adjusts the sequence numbers after a line whose length has changed", sequences[:]},
		{"result", "of expectations: what became of an endpoint that the policy allows", list(Results(), func(k Kind) Word { return kinds[k].Word })},
		{"verdict", "of packets: what became of one that was queued", outcomes[:]},
	}
}

func list[T any](of []T, word func(T) Word) []Word {
	var words []Word
	for _, v := range of {
		words = append(words, word(v))
	}
	return words
}

// Kind is what an Event is about.
type Kind uint8

// The kinds of events.
const (
	// Tracked: conntrack has the connection, and its lines are read from now on.
	Tracked Kind = iota
	// Unknown: a packet passes unread, since conntrack does not say what it belongs to (Err).
	// The Master has the packet's own tuple and nothing else.
	Unknown
	// Expected: the data connection of an announced endpoint is expected.
	Expected
	// WouldOpen: as Expected, but the engine only monitors, and conntrack expects nothing.
	WouldOpen
	// Refused: an announced endpoint is not opened, for the Reason.
	Refused
	// Failed: an announced endpoint is allowed, but could not be opened or rewritten (Err).
	Failed
	// Unreadable: there is no endpoint in a line that should announce one (Err).
	Unreadable
	// Encrypted: the connection is, from here on; nothing in it is read any more.
	Encrypted
	// NotFTP: what the client said first is something else, or was missed; nothing is read any more.
	NotFTP
	// StaysQueued: packets that need not be read stay queued (Err).
	StaysQueued
	// Used: the data connection of an Expected was opened. The engine does not see it; conntrack's
	// events do.
	Used
	// Expired: the data connection of an Expected was not opened in time. From conntrack's events.
	Expired
	// Closed: the control connection is over. From conntrack's events.
	Closed
	// Missed stands for events that a reader lost, since it was too slow.
	Missed
	numKinds
)

// kindWord has, besides the name of a kind, the level and the text with which events are logged, and the
// text if the engine only monitors.
type kindWord struct {
	Word
	level     slog.Level
	text      string
	monitored string
}

var kinds = [numKinds]kindWord{
	Tracked:     {Word{"tracked", "conntrack has the connection, and its lines are read"}, slog.LevelDebug, "control connection tracked", ""},
	Unknown:     {Word{"unknown", "a packet passed unread: conntrack does not know its connection"}, slog.LevelWarn, "packet passed unread", ""},
	Expected:    {Word{"expected", "conntrack expects the data connection of the announced endpoint"}, slog.LevelDebug, "data connection expected", ""},
	WouldOpen:   {Word{"would-open", "--monitor: without it, conntrack would expect the data connection"}, slog.LevelInfo, "would open data connection", ""},
	Refused:     {Word{"refused", "the policy does not allow the announced endpoint; the line passed unchanged"}, slog.LevelWarn, "endpoint refused", "would refuse endpoint"},
	Failed:      {Word{"failed", "the policy allows the announced endpoint, but it could not be opened or rewritten"}, slog.LevelWarn, "data connection cannot be helped", "could not help data connection"},
	Unreadable:  {Word{"unreadable", "a line that should announce an endpoint has none"}, slog.LevelDebug, "no endpoint in line", ""},
	Encrypted:   {Word{"encrypted", "the client and the server have switched to TLS; nothing is read any more"}, slog.LevelInfo, "control connection is encrypted from here on, its data connections cannot be helped: give the server a fixed range of passive ports and accept new connections to it", ""},
	NotFTP:      {Word{"not-ftp", "the client does not speak FTP, or its first line was not seen; nothing is read any more"}, slog.LevelInfo, "control connection ignored: its client has not begun with FTP", ""},
	StaysQueued: {Word{"stays-queued", "packets that need not be read stay queued"}, slog.LevelWarn, "packets that need not be read stay queued", ""},
	Used:        {Word{"used", "the expected data connection was opened"}, slog.LevelDebug, "expected data connection opened", ""},
	Expired:     {Word{"expired", "the expected data connection was not opened in time"}, slog.LevelInfo, "expected data connection was not opened", ""},
	Closed:      {Word{"closed", "the control connection is over"}, slog.LevelDebug, "control connection closed", ""},
	Missed:      {Word{"missed", "events are missing here: they came faster than they were read"}, slog.LevelWarn, "events are missing", ""},
}

// String returns the kind as one word.
func (k Kind) String() string { return kinds[k].Name }

// Level returns the level at which events of the kind are logged.
func (k Kind) Level() slog.Level { return kinds[k].level }

// Text returns the words with which events of the kind are logged, by an engine that only monitors or by
// one that helps.
func (k Kind) Text(monitors bool) string {
	if monitors && kinds[k].monitored != "" {
		return kinds[k].monitored
	}
	return kinds[k].text
}

// MarshalText implements encoding.TextMarshaler.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Results returns the kinds that say what became of an endpoint that the policy allows.
func Results() []Kind { return []Kind{Expected, Failed, WouldOpen} }

// Verb is what announces an endpoint.
type Verb uint8

// The verbs: a command of the client's, or the code of a reply.
const (
	VerbPORT Verb = iota
	VerbEPRT
	Verb227
	Verb229
	NumVerbs // how many there are
)

var verbs = [NumVerbs]Word{
	VerbPORT: {"PORT", "command: active transfer, IPv4 (RFC 959)"},
	VerbEPRT: {"EPRT", "command: active transfer, IPv4 or IPv6 (RFC 2428)"},
	Verb227:  {"227", "reply to PASV: passive transfer, IPv4 (RFC 959)"},
	Verb229:  {"229", "reply to EPSV: passive transfer, IPv4 or IPv6 (RFC 2428)"},
}

// String returns "PORT", "EPRT", "227" or "229".
func (v Verb) String() string { return verbs[v].Name }

// MarshalText implements encoding.TextMarshaler.
func (v Verb) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Reason is why an announced endpoint is not opened. Its line passes unchanged.
type Reason uint8

// The reasons, in the order in which they are looked for.
const (
	allowed      Reason = iota
	Unasked             // a 227 or 229 without a PASV or EPSV
	NotGreeted          // a PORT or EPRT before the server has greeted
	Midstream           // a PORT or EPRT where no line may begin
	AfterEPSVALL        // a PORT or EPRT after EPSV ALL
	NotPeer             // an address that is not the sender's
	LowPort             // a port below Policy.MinPort
	TooMany             // more than Policy.Rate
	failed              // allowed, but the kernel did not do it
	numReasons
)

// reasons have a sentence for people as their meaning.
var reasons = [numReasons]Word{
	allowed:      {"allowed", "allowed"},
	Unasked:      {"unasked", "no PASV or EPSV asked for it"},
	NotGreeted:   {"not_greeted", "the server has not greeted yet"},
	Midstream:    {"midstream", "it is not certain that a line begins there: the connection was not seen from its beginning"},
	AfterEPSVALL: {"after_epsv_all", "the client has promised to use nothing but EPSV (EPSV ALL)"},
	NotPeer:      {"not_peer", "the address is not that of the one who announces it"},
	LowPort:      {"low_port", "the port is below the lowest one allowed"},
	TooMany:      {"too_many", "too many data connections have been announced for this client within a second"},
	failed:       {"failed", "failed"},
}

// String returns the reason as one word.
func (r Reason) String() string { return reasons[r].Name }

// MarshalText implements encoding.TextMarshaler.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Sentence returns the reason as part of a sentence.
func (r Reason) Sentence() string { return reasons[r].Meaning }

// Reasons returns all reasons for which an endpoint is refused.
func Reasons() []Reason {
	return []Reason{Unasked, NotGreeted, Midstream, AfterEPSVALL, NotPeer, LowPort, TooMany}
}

// State is what happens to the text of a control connection.
type State uint8

// The states.
const (
	StateRead      State = iota // it is read
	StateMonitored              // it is read, and the engine only monitors
	StateEncrypted              // it is encrypted, and passes unread
	StateIgnored                // it is not FTP, and passes unread
	numStates
)

var states = [numStates]Word{
	StateRead:      {"read", "its lines are read, and its data connections are helped"},
	StateMonitored: {"monitored", "--monitor: its lines are read, and nothing is opened or changed"},
	StateEncrypted: {"encrypted", "it is encrypted, and passes unread"},
	StateIgnored:   {"ignored", "it is not FTP, and passes unread"},
}

// String returns the state as one word.
func (s State) String() string { return states[s].Name }

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Outcome is what became of a packet that was queued.
type Outcome uint8

// The outcomes.
const (
	Accepted Outcome = iota
	Changed
	Unread
	numOutcomes
)

var outcomes = [numOutcomes]Word{
	Accepted: {"accepted", "read, and passed unchanged"},
	Changed:  {"changed", "read, and passed with another payload, sequence or acknowledgement number"},
	Unread:   {"unread", "passed unread: conntrack did not know its connection, or it was no whole TCP packet"},
}

// String returns the outcome as one word.
func (o Outcome) String() string { return outcomes[o].Name }

// Sequence is what keeps sequence numbers right after a line that was rewritten.
type Sequence uint8

// The ways.
const (
	Kernel Sequence = iota
	SameLength
	numSequences
)

var sequences = [numSequences]Word{
	Kernel:     {"kernel", "conntrack adjusts them (nf_conntrack_seqadj.c)"},
	SameLength: {"same-length", "nothing adjusts them: a reply is rewritten in the same length"},
}

// String returns the way as one word.
func (s Sequence) String() string { return sequences[s].Name }

// IsWord returns an error if a term of Vocabulary does not have the word; nil for a name that is no
// term, whose values are free.
func IsWord(term, word string) error {
	for _, t := range Vocabulary() {
		if t.Name == term && !slices.ContainsFunc(t.Words, func(w Word) bool { return w.Name == word }) {
			return fmt.Errorf("%q is no %s", word, term)
		}
	}
	return nil
}
