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

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// step is one segment of a conversation, or a change of the label by the daemon.
type step struct {
	server bool // sender, else the client
	text   string
	queue  bool  // want
	labels []int // want afterwards, without Control

	set, clear int
}

func says(text string, labels ...int) step    { return step{text: text, labels: labels} }
func answers(text string, labels ...int) step { return step{server: true, text: text, labels: labels} }

func (s step) queued() step {
	s.queue = true
	return s
}

const (
	active = Active
	edited = Rewritten
	due    = ReplyDue
	opaque = Ignore

	passive  = "227 Entering Passive Mode (192,0,2,2,4,1)\r\n"
	extended = "229 Entering Extended Passive Mode (|||1025|)\r\n"
	port     = "PORT 192,0,2,1,4,1\r\n"
)

// opens is a PORT, which the daemon has read then.
var opens = []step{says(port, active).queued(), {clear: active}}

var conversations = map[string][]step{
	"passive": {
		answers("220 ready\r\n"), says("USER anonymous\r\n"), answers("331 and you are?\r\n"), says("PASS me\r\n"), answers("230 in\r\n"),
		answers(passive), says("NOOP\r\n"), answers("200 done\r\n"), // not due
		says("PASV\r\n", due), answers(passive, due).queued(), {clear: due, set: edited, labels: []int{edited}},
		says("RETR file\r\n", edited), answers("150 here it comes\r\n", edited), answers("226 that was it\r\n", edited),
		answers(passive, edited).queued(), answers(extended, edited).queued(), // retransmissions
		says("EPSV\r\n", edited, due), answers(extended, edited, due).queued(), says("QUIT\r\n", edited, due), answers("221 bye\r\n", edited, due).queued(),
	},
	"passive, unchanged by the daemon": {
		says("EPSV 1\r\n", due), answers("200 not yet\r\n", due).queued(), answers(extended, due).queued(), {clear: due}, answers(extended), answers(passive),
		says("PASV\r\n", due), answers("227", due).queued(),
	},
	"active": append(slices.Clone(opens), answers("200 done\r\n"), says("LIST\r\n"), answers("150 here it comes\r\n"),
		says("EPRT |2|2001:db8::1|1025|\r\n", active).queued(), step{clear: active}, answers("200 done\r\n")),
	"active, pipelined": {
		says(port, active).queued(), says("RETR file\r\n", active).queued(), says("PASV\r\n", active, due).queued(), says("NOOP\r\n", active, due).queued(),
		answers("200 done\r\n", active, due).queued(), {clear: active, labels: []int{due}}, says("NOOP\r\n", due),
	},
	"case": {says("pasv\r\n", due), says("port 192,0,2,1,4,1\r\n", due, active).queued(), {clear: active, labels: []int{due}},
		says("Eprt |1|192.0.2.1|1025|\r\n", due, active).queued(), {clear: active, labels: []int{due}}, says("aUtH tls\r\n", due).queued()},
	"P@SW":     {says("P@SW\r\n", due), answers(passive, due).queued(), {clear: due}, says("p@sw\r\n", due)},
	"case too": {says("ePsV\r\n", due), answers(extended, due).queued()},
	"AUTH": {
		says("AUTH TLS\r\n").queued(), answers("534 no\r\n"), says("AUTH TLS\r\n").queued(), answers("234 go on\r\n").queued(), {set: opaque, labels: []int{opaque}},
		says("\x16\x03\x01\x00\x04", opaque), answers("\x16\x03\x03\x00\x04", opaque), answers("234", opaque), says(port, opaque), says("PASV\r\n", opaque), answers(passive, opaque),
	},
	"EPSV ALL":                 {says("EPSV ALL\r\n", due), answers("200 done\r\n", due).queued(), says("EPSV\r\n", due), answers(extended, due).queued(), says(port, due, active).queued()},
	"a longer word":            {says("PASVX\r\n", due), answers("500 what?\r\n", due).queued(), answers(passive, due).queued()},
	"other words":              {says("XPASV\r\n"), says("PASS port\r\n"), says("REPORT\r\n"), says("EPS\r\n"), says("PAST\r\n"), answers(passive), answers(extended)},
	"three bytes":              {says("POR"), says("T 192,0,2,1,4,1\r\n"), says("PAS"), says("V\r\n"), answers("22"), answers("7 go\r\n"), says(".\r\n"), answers("2")},
	"three bytes of a reply":   {says("PASV\r\n", due), answers("22", due).queued(), answers("7 Entering Passive Mode (192,0,2,2,4,1)\r\n", due).queued(), answers(" "+passive, due).queued()},
	"after another line":       {says("NOOP\r\n" + port), says("NOOP\r\nPASV\r\n"), answers("200 done\r\n" + passive), answers("200 done\r\n234 go on\r\n")},
	"before another line":      {says("PASV\r\nNOOP\r\n", due), answers(passive+"200 done\r\n", due).queued(), says(port+"NOOP\r\n", due, active).queued()},
	"the wrong side":           append([]step{answers("PASV\r\n"), answers(port), answers("AUTH TLS\r\n"), answers("GET / HTTP/1.1\r\n"), says(passive), says("234\r\n")}, opens...),
	"other replies":            {says("PASV\r\n", due), answers("228 long\r\n", due).queued(), answers("334 more\r\n", due).queued(), answers("425 no\r\n", due).queued(), {clear: due}, answers("228 long\r\n"), answers("220 hello\r\n")},
	"no HTTP":                  append([]step{says("DELE file\r\n"), says("OPTS UTF8 ON\r\n"), says("HELP\r\n"), says("GETS\r\n"), says("PUTS\r\n"), says("CONF x\r\n"), says("HE")}, opens...),
	"HTTP after FTP":           {answers("220 ready\r\n"), says("USER me\r\n"), says("PASV\r\n", due), says("GET / HTTP/1.1\r\n", due, opaque), answers(passive, due, opaque), says(port, due, opaque)},
	"HTTP in lower case":       {says("get / http/1.1\r\n", opaque), says(port, opaque)},
	"TLS":                      {says("\x16\x03\x01\x02\x00\x01", opaque), says(port, opaque), says("AUTH TLS\r\n", opaque)},
	"binary, but no handshake": append([]step{says("\x17\x03\x03\x00\x04"), says("\x16\x02"), says("\x16")}, opens...),
	"telnet's urgent data":     append([]step{says("\xff\xf4\xff\xf2ABOR\r\n")}, opens...),
}

func init() {
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "PATCH"} {
		conversations["HTTP "+method] = []step{
			answers("220 ready\r\n"), says(method+" / HTTP/1.1\r\nHost: example.com\r\n", opaque), says(port, opaque), says("EPRT |1|192.0.2.1|1025|\r\n", opaque),
			says("AUTH TLS\r\n", opaque), answers("234 go on\r\n", opaque), says("PASV\r\n", opaque), answers(passive, opaque),
		}
	}
}

// TestLeanQueues has conversations, with the segments that the ruleset Lean queues and the labels that it sets.
func TestLeanQueues(t *testing.T) {
	for _, queues := range []uint16{1, 4} {
		for _, place := range []string{"server's host", "client's host", "loopback"} {
			t.Run(fmt.Sprintf("%s, %d queues", place, queues), func(t *testing.T) { testLeanQueues(t, place, queues) })
		}
	}
}

func testLeanQueues(t *testing.T, place string, queues uint16) {
	client, server := newLab(t)
	here := server // has the rules
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
	must.Do(t, err)
	defer ct.Close()
	used := make(map[int]bool)
	for _, addr := range []netip.Addr{server4, server6} {
		for name, steps := range conversations {
			used[testConversation(t, name, client, netip.AddrPortFrom(addr, 21), all, ct, steps)] = true
		}
	}
	if delete(used, -1); len(used) < min(len(all), 2) {
		t.Errorf("got queues %v, want at least two of %d", used, len(all))
	}
}

// testConversation returns the index of the queue that was used, -1 for none.
func testConversation(t *testing.T, name string, ns netns.NsHandle, dialled netip.AddrPort, queues []*queue, ct *conntrack.Conn, steps []step) int {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(dialled))
	must.Do(t, err)
	defer l.Close()
	must.Do(t, l.SetDeadline(time.Now().Add(20*time.Second)))
	var client net.Conn
	within(t, ns, func() {
		client, err = net.DialTimeout("tcp", dialled.String(), 20*time.Second)
		must.Do(t, err)
	})
	defer client.Close()
	server, err := l.Accept()
	must.Do(t, err)
	defer server.Close()
	for _, conn := range []net.Conn{client, server} {
		must.Do(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
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
			must.Do(t, err)
			got := make([]byte, len(step.text))
			if _, err := io.ReadFull(to, got); err != nil || string(got) != step.text {
				t.Fatalf("%s: got %q, %v", what, got, err)
			}
		}
		queued := false
		for n, q := range queues {
			for _, segment := range q.between(ends[false], ends[true]) {
				p := position{segment.src, segment.seq}
				if seen[p] { // of an earlier step, or a retransmission
					continue
				}
				seen[p] = true
				if queued = true; segment.src != ends[step.server] || segment.payload != step.text {
					t.Errorf("%s: got %q from %v in the queue", what, segment.payload, segment.src)
				}
				if used >= 0 && used != n {
					t.Errorf("%s: got queue %d, want %d", what, n, used)
				}
				used = n
			}
		}
		if queued != step.queue {
			t.Errorf("%s: got queued %v, want %v", what, queued, step.queue)
		}
		if got, want := labels(t, ct, flow), append([]int{Control}, step.labels...); !same(got, want) {
			t.Errorf("%s: got labels %v, want %v", what, got, want)
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
	must.Do(t, err)
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
	must.Do(t, ct.Update(f))
}

func same(a, b []int) bool {
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
