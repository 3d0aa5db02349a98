package engine

import (
	"fmt"
	"log/slog"
	"slices"

	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
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
		{"verb", "the command or the reply code that announces an endpoint", verbs},
		{"reason", "why an announced endpoint was not opened, or, of an expired event, why the data connection did not come", slices.Concat(Refusals(), Expiries())},
		{"state", "what happens to the text of a control connection", states[:]},
		{"sequence", "what adjusts the sequence numbers after a line whose length has changed", sequences[:]},
		{"result", "of expectations: the outcome for an endpoint that the policy allows; of packets: the outcome for a queued packet",
			slices.Concat(list(Results(), func(k Kind) Word { return kinds[k].Word }), outcomes[:])},
		{"source", "where the rules come from that queue packets to the daemon", sources},
	}
}

// Words returns the words of a term, nil if there is no such term.
func Words(term string) []Word {
	for _, t := range Vocabulary() {
		if t.Name == term {
			return t.Words
		}
	}
	return nil
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
	// Expected: the data connection of an announced endpoint is expected.
	Expected
	// WouldOpen: as Expected, but the engine only monitors, and conntrack expects nothing.
	WouldOpen
	// Used: the data connection of an Expected was opened. The engine does not see it; conntrack's
	// events do.
	Used
	// Expired: the data connection of an Expected was not opened in time. From conntrack's events.
	Expired
	// Refused: an announced endpoint is not opened, for the Reason.
	Refused
	// Failed: an announced endpoint is allowed, but could not be opened or rewritten (Err).
	Failed
	// Unreadable: there is no endpoint in a line that should announce one (Err).
	Unreadable
	// Odd: something about the dialogue is not as the RFCs have it (Err); it is helped all the same.
	Odd
	// Encrypted: the connection is, from here on; nothing in it is read any more.
	Encrypted
	// NotFTP: what the client said before its login is something else; nothing is read any more.
	NotFTP
	// Nonsense: what one side says, after the login, cannot be FTP; nothing is read any more.
	Nonsense
	// Unlabelled: conntrack does not take the label that says that the connection is recognised as FTP (Err).
	Unlabelled
	// StaysQueued: packets that need not be read stay queued (Err).
	StaysQueued
	// Unknown: a packet passes unread, since conntrack does not say what it belongs to (Err).
	// The Master has the packet's own tuple and nothing else.
	Unknown
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
	Expected:    {Word{"expected", "conntrack expects the data connection of the announced endpoint"}, slog.LevelDebug, "data connection expected", ""},
	WouldOpen:   {Word{"would-open", "--monitor: without it, conntrack would expect the data connection"}, slog.LevelInfo, "would open data connection", ""},
	Used:        {Word{"used", "an expected data connection came and passed this host's filter"}, slog.LevelDebug, "expected data connection opened", ""},
	Expired:     {Word{"expired", "an expected data connection did not come, for the reason given"}, slog.LevelInfo, "expected data connection was not opened", ""},
	Refused:     {Word{"refused", "the policy does not allow the announced endpoint; the line passed unchanged"}, slog.LevelWarn, "endpoint refused", "would refuse endpoint"},
	Failed:      {Word{"failed", "the policy allows the announced endpoint, but it could not be opened or rewritten"}, slog.LevelWarn, "data connection cannot be helped", "could not help data connection"},
	Unreadable:  {Word{"unreadable", "a line that should announce an endpoint has none"}, slog.LevelWarn, "line announces no endpoint that can be read, and is not helped", ""},
	Odd:         {Word{"odd", "the dialogue is not as the RFCs have it; it is helped all the same"}, slog.LevelInfo, "odd dialogue, helped all the same", ""},
	Encrypted:   {Word{"encrypted", "the client and the server have switched to TLS; nothing is read any more"}, slog.LevelInfo, "control connection is encrypted from here on, its data connections cannot be helped: give the server a fixed range of passive ports and accept new connections to it", ""},
	NotFTP:      {Word{"not-ftp", "before its login, the client sent what no FTP client sends; nothing is read any more"}, slog.LevelInfo, "control connection ignored: its client has not begun with FTP", ""},
	Nonsense:    {Word{"nonsense", "after the login, one side sent what cannot be FTP; nothing is read any more"}, slog.LevelInfo, "control connection ignored: what is sent on it cannot be FTP", ""},
	Unlabelled:  {Word{"unlabelled", "conntrack does not take the label for a recognised connection; when the daemon restarts or forgets the connection, its PORT and EPRT are refused"}, slog.LevelWarn, "recognised connection is not labelled: after a restart its PORT and EPRT are refused", ""},
	StaysQueued: {Word{"stays-queued", "packets that need not be read stay queued"}, slog.LevelWarn, "packets that need not be read stay queued", ""},
	Unknown:     {Word{"unknown", "a packet passed unread: conntrack does not know its connection"}, slog.LevelWarn, "packet passed unread", ""},
	Closed:      {Word{"closed", "one end has closed or reset the control connection, or conntrack has removed it"}, slog.LevelDebug, "control connection closed", ""},
	Missed:      {Word{"missed", "events are missing here"}, slog.LevelWarn, "events are missing", ""},
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

// verbs are those that announce an endpoint: a command of the client's, or the code of a reply.
var verbs = []Word{
	{parse.PORT.String(), "command: active transfer, IPv4 (RFC 959)"},
	{parse.EPRT.String(), "command: active transfer, IPv4 or IPv6 (RFC 2428)"},
	{parse.Reply227.String(), "reply to PASV: passive transfer, IPv4 (RFC 959)"},
	{parse.Reply229.String(), "reply to EPSV: passive transfer, IPv4 or IPv6 (RFC 2428)"},
}

// Reason is why an announced endpoint is not opened. Its line passes unchanged.
type Reason uint8

// The reasons, in the order in which they are looked for.
const (
	allowed    Reason = iota
	Unasked           // a 227 or 229 without a PASV or EPSV
	NotGreeted        // a PORT or EPRT before the server has greeted
	NoLogin           // a PORT or EPRT before USER
	Midstream         // a PORT or EPRT on a connection whose first lines were not read
	NotPeer           // an address that is not the sender's
	LowPort           // a port below Policy.MinPort
	TooMany           // more than Policy.Rate
	failed            // allowed, but the kernel did not do it
	numReasons
	unreadable // no Reason: of a connection, that an Unreadable was emitted
)

// reasons have, besides the word, the reason as part of a sentence.
var reasons = [numReasons]struct {
	Word
	sentence string
}{
	allowed:    {Word{"allowed", "it is opened"}, "allowed"},
	Unasked:    {Word{"unasked", "a 227 or 229 without a PASV or EPSV before it"}, "no PASV or EPSV asked for it"},
	NotGreeted: {Word{"not_greeted", "a PORT or EPRT before the server's greeting"}, "the server has not greeted yet"},
	NoLogin:    {Word{"no_login", "a PORT or EPRT before the client's USER"}, "the client has not logged in"},
	Midstream:  {Word{"midstream", "what precedes it was not read: the beginning of the connection (PORT and EPRT), or of the line, so that it may not be FTP: the client has to connect again"}, "what precedes it was not read (the daemon did not run, or its queue was full), so it may not be FTP: the client has to connect again"},
	NotPeer:    {Word{"not_peer", "the announced address is not the sender's own (bounce protection, see --allow)"}, "the address is not that of the one who announces it"},
	LowPort:    {Word{"low_port", "the announced port is below --min-port"}, "the port is below the lowest one allowed"},
	TooMany:    {Word{"too_many", "the client announced more than --rate data connections within a second"}, "too many data connections have been announced for this client within a second"},
	failed:     {Word{"failed", "allowed, but conntrack or the rewrite refused it"}, "conntrack or the rewrite refused it"},
}

// expiries are the reasons of an Expired: package control has the names as constants.
var expiries = []Word{
	{"timeout", "no data connection came before the kernel's time-out"},
	{"dropped", "the first packet came, but a filter on this host dropped it"},
	{"replaced", "the connection announced another data connection first"},
	{"closed", "the control connection closed first"},
	{"deleted", "another program removed the expectation"},
}

// sources are where rules come from: package control has the names as constants.
var sources = []Word{
	{"applied", "the daemon has applied them, and removes them at its stop"},
	{"in-place", "they were in place at the start and are as the settings say"},
	{"different", "they were missing or differed from the settings at the start"},
}

// String returns the reason as one word.
func (r Reason) String() string { return reasons[r].Name }

// MarshalText implements encoding.TextMarshaler.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Sentence returns the reason as part of a sentence.
func (r Reason) Sentence() string { return reasons[r].sentence }

// Reasons returns all reasons for which an endpoint is refused.
func Reasons() []Reason {
	return []Reason{Unasked, NotGreeted, NoLogin, Midstream, NotPeer, LowPort, TooMany}
}

// State is what happens to the text of a control connection.
type State uint8

// The states.
const (
	StateRead      State = iota // it is read
	StateMonitored              // it is read, and the engine only monitors
	StateEncrypted              // it is encrypted, and passes unread
	StateIgnored                // it is not FTP, and passes unread
	StateClosing                // one end has closed or reset it; conntrack says so, not an engine
	numStates
)

var states = [numStates]Word{
	StateRead:      {"read", "the daemon reads it"},
	StateMonitored: {"monitored", "the daemon reads it, and opens and changes nothing (--monitor)"},
	StateEncrypted: {"encrypted", "it uses TLS and passes unread"},
	StateIgnored:   {"ignored", "it is not FTP, and passes unread"},
	StateClosing:   {"closing", "one end has closed or reset it"},
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
	Kernel:     {"kernel", "the kernel adjusts sequence numbers"},
	SameLength: {"same-length", "nothing does: rewritten lines keep their length"},
}

// String returns the way as one word.
func (s Sequence) String() string { return sequences[s].Name }

// Refusals returns the words for why an announced endpoint was not opened.
func Refusals() []Word {
	return list(append(Reasons(), failed), func(r Reason) Word { return reasons[r].Word })
}

// Expiries returns the words for why an expected data connection did not come.
func Expiries() []Word { return expiries }

// IsWord returns an error if a term of Vocabulary does not have the word; nil for a name that is no
// term, whose values are free.
func IsWord(term, word string) error {
	words := Words(term)
	if words != nil && !slices.ContainsFunc(words, func(w Word) bool { return w.Name == word }) {
		return fmt.Errorf("%q is no %s", word, term)
	}
	return nil
}
