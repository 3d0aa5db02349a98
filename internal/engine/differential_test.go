package engine_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/engine"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
)

// The differential test has a dialogue twice: once in whole lines, and once cut into random
// segments that are delayed, lost, sent again in another cut, and sent for nothing. Both
// times each receiver must get the same bytes, conntrack must expect the same, and sequence
// and acknowledgement numbers must be right at either end, as the kernel adjusts them.

// turn is what one side says before the other answers.
type turn struct {
	dir  expect.Direction
	text string
}

// natPair are the tuples of a translated control connection.
type natPair [2]expect.Tuple

// What each side announces gets shorter in one, longer in another, and either in the last.
var natPairs = []natPair{
	{natOriginal, natReply},
	{tuple("10.0.0.2:40000", "192.168.100.101:21"), tuple("10.0.0.3:21", "192.168.100.102:40000")},
	{tuple("10.0.0.2:40000", "192.0.2.200:21"), tuple("10.0.0.3:21", "192.0.2.201:40000")},
}

// dialogue makes up a conversation.
func dialogue(r *rand.Rand, nat natPair) []turn {
	own := [2][4]byte{nat[client].Src.Addr().As4(), nat[server].Src.Addr().As4()}
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	wide := 0
	padded := func(n int) string { return fmt.Sprintf("%0*d", max(wide, 1+r.IntN(3)), n) }
	numbers := func(dir expect.Direction) string {
		port := 1024 + r.IntN(64512)
		var s []string
		for _, n := range append(own[dir][:], byte(port>>8), byte(port)) {
			s = append(s, padded(int(n)))
		}
		return strings.Join(s, pick(",", ",", ",", ", ", " ,\t"))
	}
	eol := func() string { return pick("\r\n", "\r\n", "\r\n", "\n") }
	turns := []turn{
		{client, pick("", "", "", "PROXY TCP4 203.0.113.1 192.0.2.2 40000 21\r\n")},
		{server, pick("220 ready\r\n", "220-hello\r\n 227 (192,168,1,2,9,9)\r\n220 ready\r\n", "120 wait\r\n220 now\r\n", "220-never ended\r\n", "\xff\xfb\x01220 ready\r\n\x00")},
		{client, pick("", "", "OPEN ftp.example\r\n", "HOST x\r\nXSHA256 y\r\n", "\xff\xfd\x03", "\r\n\x00")},
		{client, "USER me\r\n"}, {server, "331 password?\r\n"},
		{client, "PASS " + strings.Repeat("x", r.IntN(40)) + "\r\n"}, {server, "230-hi\r\n227 (1,2,3,4,5,6)\r\n230 in\r\n"},
	}
	for range 1 + r.IntN(20) {
		wide = r.IntN(2) * 3
		switch r.IntN(15) {
		case 0, 1:
			turns = append(turns,
				turn{client, pick("", "TYPE I\r\n") + pick("PASV", "pasv", "EPSV") + eol()},
				turn{server, pick("227 Entering Passive Mode (", "227 v2 ok =", "227 ") + numbers(server) + pick(").", "", ")") + eol() + pick("", "150 go\r\n226 done\r\n")})
		case 2:
			turns = append(turns,
				turn{client, "EPSV\r\n" + pick("", "NOOP\r\n")},
				turn{server, fmt.Sprintf("229 Entering Extended Passive Mode (|||%d|)\r\n", 1024+r.IntN(64512)) + pick("", "200 ok\r\n")})
		case 3, 4:
			turns = append(turns,
				turn{client, pick("", "", "\xff\xf4\xff\xf2", "NOOP\r\n") + pick("PORT ", "port  ") + numbers(client) + pick("", " ") + eol() + pick("", "LIST\r\n")},
				turn{server, "200 PORT ok\r\n"})
		case 5:
			d := pick("|", "!")
			turns = append(turns,
				turn{client, fmt.Sprintf("EPRT %s1%s%s%s%d%s\r\n", d, d, nat[client].Src.Addr(), d, 1024+r.IntN(64512), d)},
				turn{server, "200 EPRT ok\r\n"})
		case 6: // refused, or no endpoint at all
			turns = append(turns, turn{client, pick("PORT 1,2,3,4,5,6\r\n", "PORT 203,0,113,101,0,22\r\n", "PORT 203,0,113,101,4\r\n",
				"EPRT |1|203.0.113.101|65558|\r\n", "SITE x PORT 203,0,113,101,9,9\r\n", "PASV\r\n")},
				turn{server, pick("500 no\r\n", "227 Logout.\r\n", "227 (0,0,0,0,9,9)\r\n", "227-(192,168,1,2,9,9)\r\n227 end\r\n")})
		case 7:
			turns = append(turns, turn{client, "LIST " + strings.Repeat("y", r.IntN(30)) + eol()},
				turn{server, "150 here it comes\r\n226 PORT 203,0,113,101,9,9\r\n"})
		case 11: // the last line of a reply announces
			turns = append(turns, turn{client, pick("PASV\r\n", "P@SW\r\n", "EPSV ALL\r\nPASV\r\n")},
				turn{server, pick("", "200 ok\r\n", "502 no\r\n", "226 done\r\n426 aborted\r\n") + pick("227-", "227-(192,168,1,2,9,9)\r\n\r\n200 ") + "hello\r\n227 (" + numbers(server) + ")" + pick("\r\n", "\n\r\n", "\r\n\x00")})
		case 12: // a reply that is not ended
			turns = append(turns, turn{client, pick("FEAT\r\n", "STAT\r\nNOOP\r\n")},
				turn{server, pick("211-x\r\n y\r\n200 End\r\n", "553-\r\n553- no\r\n150 go\r\n", "211-x\r\n211-y\r\n\r\n", "211-x\r\n y\r\n", "550-no\r\n550\r\n")})
		case 13: // more commands than answers, more answers than commands
			turns = append(turns, turn{client, strings.Repeat("NOOP\r\n", r.IntN(80))}, turn{server, strings.Repeat(pick("200 ok\r\n", "426 aborted\r\n"), r.IntN(80))})
		case 14: // an endpoint in the text of a reply
			turns = append(turns, turn{client, "STAT x\r\nPASV\r\n"},
				turn{server, "213-x\r\n227 (" + numbers(server) + ")\r\n213 end\r\n227 (" + numbers(server) + ")\r\n"})
		case 9: // two edits in a row
			turns = append(turns,
				turn{client, "PORT " + numbers(client) + "\r\nPORT " + numbers(client) + "\r\n"},
				turn{server, "200 ok\r\n200 ok\r\n"})
		case 10:
			turns = append(turns,
				turn{client, "PASV\r\nPASV\r\nEPSV\r\n"},
				turn{server, "227 (" + numbers(server) + ")\r\n227 (" + numbers(server) + ")\r\n229 (|||9447|)\r\n"})
		case 8:
			turns = append(turns, turn{client, "NOOP\r\nNOOP\r\nPASV\r\n"},
				turn{server, "200 ok\r\n200 ok\r\n227 (" + numbers(server) + ")\r\n"})
		}
	}
	return append(turns, turn{client, "QUIT\r\n"}, turn{server, "221 bye\r\n"})
}

// receiver reassembles what arrives of one direction.
type receiver struct {
	start uint32 // its first sequence number
	bytes []byte
	known []bool
	// passes says that bytes which it has acknowledged may be others when they come again: TCP
	// does not look at them. Otherwise they have to be the same.
	passes bool
}

func (v *receiver) take(seq uint32, payload []byte) error {
	at := int(int32(seq - v.start))
	if at < 0 {
		return fmt.Errorf("bytes from %d before the beginning", -at)
	}
	if n := at + len(payload); n > len(v.bytes) {
		v.bytes = append(v.bytes, make([]byte, n-len(v.bytes))...)
		v.known = append(v.known, make([]bool, n-len(v.known))...)
	}
	for i, b := range payload {
		if v.passes && int32(v.start+uint32(at+i)-v.ack()) < 0 {
			continue
		}
		if v.known[at+i] && v.bytes[at+i] != b {
			return fmt.Errorf("byte %d was %q and is %q now", at+i, v.bytes[at+i], b)
		}
		v.bytes[at+i], v.known[at+i] = b, true
	}
	return nil
}

// ack returns the number of the first byte that is missing.
func (v *receiver) ack() uint32 {
	n := slices.Index(v.known, false)
	if n < 0 {
		n = len(v.known)
	}
	return v.start + uint32(n)
}

// path carries the segments of a dialogue through an engine and a kernel that adjusts.
type path struct {
	*world
	r        *rand.Rand
	receives [2]receiver
	flying   map[uint32]expect.Direction // packets in the engine
	end      [2]uint32                   // of what each side has sent
	segments int
	lossy    bool // after the engine
}

func newPath(t testing.TB, r *rand.Rand, nat natPair, start [2]uint32) *path {
	p := &path{world: newWorld(t, nat[client], nat[server]), r: r, flying: map[uint32]expect.Direction{}}
	p.next, p.end = start, start
	for d := range p.receives {
		p.receives[d].start = start[d]
	}
	p.open()
	return p
}

// transmit sends the bytes of dir's stream from seq on, whose text begins at start.
func (p *path) transmit(dir expect.Direction, seq uint32, text string) error {
	p.acked[dir.Other()] = p.receives[dir.Other()].ack()
	p.id++
	p.segments++
	if end := seq + uint32(len(text)); int32(p.end[dir]-end) < 0 {
		p.end[dir] = end
	}
	packet := p.segment(dir, seq, text)
	p.flying[p.id], p.sent[p.id] = dir, packet
	return p.deliver(p.eng.Handle(p.id, packet, nil))
}

func (p *path) deliver(verdicts []engine.Verdict) error {
	for _, v := range verdicts {
		dir, ok := p.flying[v.ID]
		if !ok {
			return fmt.Errorf("packet %d has a second verdict", v.ID)
		}
		delete(p.flying, v.ID)
		packet := p.leave([]engine.Verdict{v})[0]
		if p.lossy && p.r.IntN(15) == 0 {
			continue
		}
		tcp := decode(p.t, packet)
		if err := p.receives[dir].take(p.entry.Seq(dir, tcp.Seq), tcp.Payload); err != nil {
			return fmt.Errorf("direction %s: %w", dir, err)
		}
		// The receiver acknowledges at once.
		if ack := p.receives[dir].ack(); p.entry.Invalid(dir.Other(), ack, p.end[dir]) {
			return fmt.Errorf("direction %s: conntrack finds the acknowledgement of %d bytes too high, with %+v", dir, ack-p.receives[dir].start, p.entry.SeqAdj[dir])
		}
	}
	return nil
}

// say sends a turn until the receiver has all of it.
func (p *path) say(t turn) error {
	start := p.next[t.dir]
	end := start + uint32(len(t.text))
	p.next[t.dir] = end
	type cut struct{ from, to int }
	from := 0
	for round := 0; ; round++ {
		// What the receiver has acknowledged is not sent again; of the rest, no more than a
		// congestion window at a time. An acknowledgement may come out lower than it was.
		ack := p.entry.Ack(t.dir.Other(), p.receives[t.dir].ack())
		from = max(from, int(int32(ack-start)))
		if from == len(t.text) {
			break
		}
		if from > len(t.text) {
			return fmt.Errorf("%q: acknowledgement of %d bytes", t.text, from)
		}
		if round > 1000 {
			return fmt.Errorf("%q: the receiver never got more than %d bytes", t.text, from)
		}
		var cuts []cut
		for at := from; at < len(t.text) && len(cuts) < 10; {
			n := 1 + p.r.IntN(min(len(t.text)-at, 1+p.r.IntN(60)))
			cuts = append(cuts, cut{at, at + n})
			at += n
		}
		if p.r.IntN(2) == 0 {
			p.r.Shuffle(len(cuts), func(i, j int) { cuts[i], cuts[j] = cuts[j], cuts[i] })
		}
		for _, c := range cuts {
			if p.r.IntN(10) == 0 && round < 20 {
				continue // lost
			}
			for range 1 + p.r.IntN(20)/19 { // twice now and then
				if err := p.transmit(t.dir, start+uint32(c.from), t.text[c.from:c.to]); err != nil {
					return fmt.Errorf("%q: %w", t.text, err)
				}
			}
		}
	}
	return nil
}

// compare has one dialogue both ways and returns the number of segments it took.
func compare(t testing.TB, seed uint64) (segments int, err error) {
	r := rand.New(rand.NewPCG(seed, 1))
	start := [2]uint32{r.Uint32(), r.Uint32()}
	if r.IntN(4) == 0 { // near the wrap-around
		start = [2]uint32{-uint32(r.IntN(200)), -uint32(r.IntN(200))}
	}
	nat := natPairs[r.IntN(len(natPairs))]
	turns := dialogue(r, nat)

	whole := newPath(t, r, nat, start)
	header := ""
	if r.IntN(8) == 0 { // in a segment of its own, as programs send it
		header = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\n\xc0\x00\x02\x02\xdc\x04\x00\x15"
	}
	begin := func(p *path) error {
		if header == "" {
			return nil
		}
		err := p.transmit(client, p.next[client], header)
		p.next[client] += uint32(len(header))
		return err
	}
	if err := begin(whole); err != nil {
		return 0, err
	}
	for _, u := range turns {
		for _, l := range strings.SplitAfter(u.text, "\n") {
			if l == "" {
				continue
			}
			if err := whole.transmit(u.dir, whole.next[u.dir], l); err != nil {
				return 0, fmt.Errorf("in whole lines: %w", err)
			}
			whole.next[u.dir] += uint32(len(l))
		}
	}
	cut := newPath(t, r, nat, start)
	if err := begin(cut); err != nil {
		return 0, err
	}
	cut.lossy = true
	for _, u := range turns {
		if err := cut.say(u); err != nil {
			return 0, err
		}
	}
	if n := len(cut.flying); n != 0 {
		// Copies that were held when the original went.
		if err := cut.deliver(cut.eng.Flush(nil)); err != nil || len(cut.flying) != 0 {
			return 0, fmt.Errorf("%d packets were held at the end: %v", n, err)
		}
	}
	for d := range cut.receives {
		if got, want := cut.receives[d].bytes, whole.receives[d].bytes; !bytes.Equal(got, want) {
			return 0, fmt.Errorf("direction %s: received\n%q, in whole lines\n%q", expect.Direction(d), got, want)
		}
	}
	if len(cut.ct.Installed) == 0 && strings.Contains(fmt.Sprint(turns), "PORT ok") {
		return 0, fmt.Errorf("no PORT was helped")
	}
	if got, want := fmt.Sprint(cut.ct.Installed), fmt.Sprint(whole.ct.Installed); got != want {
		return 0, fmt.Errorf("expected %s, in whole lines %s", got, want)
	}
	return cut.segments, nil
}

// TestDifferential has as many dialogues as make 200,000 segments; FTPHELPER_SEGMENTS sets
// another number.
func TestDifferential(t *testing.T) {
	budget := 200_000
	if s := os.Getenv("FTPHELPER_SEGMENTS"); s != "" {
		var err error
		if budget, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	segments, dialogues := 0, 0
	for seed := uint64(0); segments < budget; seed++ {
		n, err := compare(t, seed)
		if err != nil {
			t.Fatalf("dialogue %d: %v", seed, err)
		}
		segments += n
		dialogues++
	}
	t.Logf("%d segments of %d dialogues", segments, dialogues)
}

func FuzzDifferential(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		if _, err := compare(t, seed); err != nil {
			t.Fatal(err)
		}
	})
}
