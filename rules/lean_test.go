package rules

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	mdnetlink "github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// step is one segment of a conversation, and what becomes of it; or a change of the label, as the
// daemon makes it.
type step struct {
	server bool // sends it, and not the client
	text   string
	queue  bool  // it is queued
	labels []int // of the connection afterwards, but for ControlLabel

	set, clear int
}

func says(text string, labels ...int) step    { return step{text: text, labels: labels} }
func answers(text string, labels ...int) step { return step{server: true, text: text, labels: labels} }

func (s step) queued() step {
	s.queue = true
	return s
}

const (
	active = ActiveLabel
	edited = EditedLabel
	asked  = AskedLabel
	opaque = OpaqueLabel

	passive  = "227 Entering Passive Mode (192,0,2,2,4,1)\r\n"
	extended = "229 Entering Extended Passive Mode (|||1025|)\r\n"
	port     = "PORT 192,0,2,1,4,1\r\n"
)

// opens is a PORT, which the daemon has read then.
var opens = []step{says(port, active).queued(), {clear: active}}

var conversations = map[string][]step{
	"passive": {
		answers("220 ready\r\n"), says("USER anonymous\r\n"), answers("331 and you are?\r\n"), says("PASS me\r\n"), answers("230 in\r\n"),
		answers(passive), says("NOOP\r\n"), answers("200 done\r\n"), // one that nobody has asked for
		says("PASV\r\n", asked), answers(passive, asked).queued(), {clear: asked, set: edited, labels: []int{edited}},
		says("RETR file\r\n", edited), answers("150 here it comes\r\n", edited), answers("226 that was it\r\n", edited),
		answers(passive, edited).queued(), answers(extended, edited).queued(), // sent again
		says("EPSV\r\n", edited, asked), answers(extended, edited, asked).queued(), says("QUIT\r\n", edited, asked), answers("221 bye\r\n", edited, asked).queued(),
	},
	"passive, unchanged by the daemon": {
		says("EPSV 1\r\n", asked), answers("200 not yet\r\n", asked).queued(), answers(extended, asked).queued(), {clear: asked}, answers(extended), answers(passive),
		says("PASV\r\n", asked), answers("227", asked).queued(),
	},
	"active": append(slices.Clone(opens), answers("200 done\r\n"), says("LIST\r\n"), answers("150 here it comes\r\n"),
		says("EPRT |2|2001:db8::1|1025|\r\n", active).queued(), step{clear: active}, answers("200 done\r\n")),
	"active, pipelined": {
		says(port, active).queued(), says("RETR file\r\n", active).queued(), says("PASV\r\n", active, asked).queued(), says("NOOP\r\n", active, asked).queued(),
		answers("200 done\r\n", active, asked).queued(), {clear: active, labels: []int{asked}}, says("NOOP\r\n", asked),
	},
	"case": {says("pasv\r\n", asked), says("port 192,0,2,1,4,1\r\n", asked, active).queued(), {clear: active, labels: []int{asked}},
		says("Eprt |1|192.0.2.1|1025|\r\n", asked, active).queued(), {clear: active, labels: []int{asked}}, says("aUtH tls\r\n", asked).queued()},
	"P@SW":     {says("P@SW\r\n", asked), answers(passive, asked).queued(), {clear: asked}, says("p@sw\r\n", asked)},
	"case too": {says("ePsV\r\n", asked), answers(extended, asked).queued()},
	"AUTH": {
		says("AUTH TLS\r\n").queued(), answers("534 no\r\n"), says("AUTH TLS\r\n").queued(), answers("234 go on\r\n").queued(), {set: opaque, labels: []int{opaque}},
		says("\x16\x03\x01\x00\x04", opaque), answers("\x16\x03\x03\x00\x04", opaque), answers("234", opaque), says(port, opaque), says("PASV\r\n", opaque), answers(passive, opaque),
	},
	"EPSV ALL":                   {says("EPSV ALL\r\n", asked), answers("200 done\r\n", asked).queued(), says("EPSV\r\n", asked), answers(extended, asked).queued(), says(port, asked, active).queued()},
	"a longer word":              {says("PASVX\r\n", asked), answers("500 what?\r\n", asked).queued(), answers(passive, asked).queued()},
	"other words":                {says("XPASV\r\n"), says("PASS port\r\n"), says("REPORT\r\n"), says("EPS\r\n"), says("PAST\r\n"), answers(passive), answers(extended)},
	"three bytes":                {says("POR"), says("T 192,0,2,1,4,1\r\n"), says("PAS"), says("V\r\n"), answers("22"), answers("7 go\r\n"), says(".\r\n"), answers("2")},
	"three bytes of a reply":     {says("PASV\r\n", asked), answers("22", asked).queued(), answers("7 Entering Passive Mode (192,0,2,2,4,1)\r\n", asked).queued(), answers(" "+passive, asked).queued()},
	"behind another line":        {says("NOOP\r\n" + port), says("NOOP\r\nPASV\r\n"), answers("200 done\r\n" + passive), answers("200 done\r\n234 go on\r\n")},
	"in front of another line":   {says("PASV\r\nNOOP\r\n", asked), answers(passive+"200 done\r\n", asked).queued(), says(port+"NOOP\r\n", asked, active).queued()},
	"the wrong side":             append([]step{answers("PASV\r\n"), answers(port), answers("AUTH TLS\r\n"), answers("GET / HTTP/1.1\r\n"), says(passive), says("234\r\n")}, opens...),
	"other replies":              {says("PASV\r\n", asked), answers("228 long\r\n", asked).queued(), answers("334 more\r\n", asked).queued(), answers("425 no\r\n", asked).queued(), {clear: asked}, answers("228 long\r\n"), answers("220 hello\r\n")},
	"no HTTP":                    append([]step{says("DELE file\r\n"), says("OPTS UTF8 ON\r\n"), says("HELP\r\n"), says("GETS\r\n"), says("PUTS\r\n"), says("CONF x\r\n"), says("HE")}, opens...),
	"HTTP after FTP":             {answers("220 ready\r\n"), says("USER me\r\n"), says("PASV\r\n", asked), says("GET / HTTP/1.1\r\n", asked, opaque), answers(passive, asked, opaque), says(port, asked, opaque)},
	"HTTP in lower case":         {says("get / http/1.1\r\n", opaque), says(port, opaque)},
	"TLS":                        {says("\x16\x03\x01\x02\x00\x01", opaque), says(port, opaque), says("AUTH TLS\r\n", opaque)},
	"binary, but no handshake":   append([]step{says("\x17\x03\x03\x00\x04"), says("\x16\x02"), says("\x16")}, opens...),
	"attention, in telnet's way": append([]step{says("\xff\xf4\xff\xf2ABOR\r\n")}, opens...),
}

func init() {
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "PATCH"} {
		conversations["HTTP "+method] = []step{
			answers("220 ready\r\n"), says(method+" / HTTP/1.1\r\nHost: example.com\r\n", opaque), says(port, opaque), says("EPRT |1|192.0.2.1|1025|\r\n", opaque),
			says("AUTH TLS\r\n", opaque), answers("234 go on\r\n", opaque), says("PASV\r\n", opaque), answers(passive, opaque),
		}
	}
}

// Of what is said, the ruleset Lean queues what must be read, and nothing else.
func TestLeanQueued(t *testing.T) {
	for _, queues := range []uint16{1, 4} {
		for _, place := range []string{"server's host", "client's host", "loopback"} {
			t.Run(fmt.Sprintf("%s, %d queues", place, queues), func(t *testing.T) { testLeanQueued(t, place, queues) })
		}
	}
}

func testLeanQueued(t *testing.T, place string, queues uint16) {
	client, server := newLab(t)
	here := server // where the rules are
	switch place {
	case "client's host":
		here = client
	case "loopback":
		client = server
	}
	lean := Config{Ports: example.Ports, Queue: 7, Queues: queues, Ruleset: Lean}
	within(t, here, func() { apply(t, lean) })
	var all []*queue
	for i := range queues {
		all = append(all, openQueue(t, here, lean.Queue+i))
	}
	ct, err := conntrack.Dial(&mdnetlink.Config{NetNS: int(here)})
	must(t, err)
	defer ct.Close()
	used := make(map[int]bool)
	for _, addr := range []netip.Addr{server4, server6} {
		for name, steps := range conversations {
			used[testConversation(t, name, client, netip.AddrPortFrom(addr, 21), all, ct, steps)] = true
		}
	}
	if delete(used, -1); len(used) < min(len(all), 2) {
		t.Errorf("of %d queues this is used: %v", len(all), used)
	}
}

// testConversation returns which of the queues was used, -1 for none.
func testConversation(t *testing.T, name string, ns netns.NsHandle, dialled netip.AddrPort, queues []*queue, ct *conntrack.Conn, steps []step) int {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(dialled))
	must(t, err)
	defer l.Close()
	must(t, l.SetDeadline(time.Now().Add(20*time.Second)))
	var client net.Conn
	within(t, ns, func() {
		client, err = net.DialTimeout("tcp", dialled.String(), 20*time.Second)
		must(t, err)
	})
	defer client.Close()
	server, err := l.Accept()
	must(t, err)
	defer server.Close()
	for _, conn := range []net.Conn{client, server} {
		must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	}
	ends := map[bool]netip.AddrPort{
		false: client.LocalAddr().(*net.TCPAddr).AddrPort(),
		true:  server.LocalAddr().(*net.TCPAddr).AddrPort(),
	}
	flow := conntrack.NewFlow(unix.IPPROTO_TCP, 0, ends[false].Addr(), ends[true].Addr(), ends[false].Port(), ends[true].Port(), 0, 0)

	type position struct {
		src netip.AddrPort
		seq uint32
	}
	seen := make(map[position]bool)
	used := -1
	for i, step := range steps {
		what := fmt.Sprintf("%s, to %v, step %d, %q", name, dialled, i, step.text)
		from, to := client, server
		if step.server {
			from, to = server, client
		}
		if step.text == "" {
			setLabels(t, ct, flow, step.set, step.clear)
		} else {
			_, err := io.WriteString(from, step.text)
			must(t, err)
			got := make([]byte, len(step.text))
			if _, err := io.ReadFull(to, got); err != nil || string(got) != step.text {
				t.Fatalf("%s: got %q, %v", what, got, err)
			}
		}
		queued := false
		for n, q := range queues {
			for _, segment := range q.between(ends[false], ends[true]) {
				p := position{segment.src, segment.seq}
				if seen[p] { // in an earlier step, or sent again
					continue
				}
				seen[p] = true
				if queued = true; segment.src != ends[step.server] || segment.payload != step.text {
					t.Errorf("%s: from %v this is queued: %q", what, segment.src, segment.payload)
				}
				if used >= 0 && used != n {
					t.Errorf("%s is in queue %d, others are in %d", what, n, used)
				}
				used = n
			}
		}
		if queued != step.queue {
			t.Errorf("%s: queued: %v, want %v", what, queued, step.queue)
		}
		if got, want := labels(t, ct, flow), append([]int{ControlLabel}, step.labels...); !same(got, want) {
			t.Errorf("%s: the labels are %v, want %v", what, got, want)
		}
	}
	return used
}

// between returns the queued packets of a connection.
func (q *queue) between(a, b netip.AddrPort) []segment {
	q.mu.Lock()
	defer q.mu.Unlock()
	var found []segment
	for _, s := range q.packets {
		if s.src == a && s.dst == b || s.src == b && s.dst == a {
			found = append(found, s)
		}
	}
	return found
}

// labels returns the bits of the connection's label.
func labels(t *testing.T, ct *conntrack.Conn, f conntrack.Flow) []int {
	t.Helper()
	found, err := ct.Get(f)
	must(t, err)
	var bits []int
	for i := range found.Labels {
		for bit := range 8 {
			if found.Labels[i]>>bit&1 != 0 {
				bits = append(bits, i*8+bit)
			}
		}
	}
	return bits
}

// setLabels sets and clears a bit of the label, 0 for none.
func setLabels(t *testing.T, ct *conntrack.Conn, f conntrack.Flow, set, clear int) {
	t.Helper()
	f.Labels, f.LabelsMask = make([]byte, 16), make([]byte, 16)
	for _, bit := range []int{set, clear} {
		if bit > 0 {
			f.LabelsMask[bit/8] |= 1 << (bit % 8)
		}
	}
	if set > 0 {
		f.Labels[set/8] |= 1 << (set % 8)
	}
	must(t, ct.Update(f))
}

func same(a, b []int) bool {
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
