package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// A transcript is a dialogue to replay: one paragraph of a file in testdata/dialogues, whose README explains the format.
type transcript struct {
	name, source string
	family       Family
	steps        []step
}

// step is one line of a dialogue.
type step struct {
	kind stepKind
	// text is what is sent, one rune for each byte, with placeholders, and cuts are where a segment ends before its end.
	text string
	cuts []int
	// want lists the outcome of a data connection with our helper, by the name of the ruleset.
	want map[string]verdict
}

type stepKind int

const (
	fromClient stepKind = iota
	fromServer
	delivered // wait until all segments have arrived
	forgotten // remove the control connection's conntrack entry
	dataConnection
)

// verdict is the listed outcome of a data connection with one of our rulesets.
type verdict string

const (
	works   verdict = "works"   // established, whatever the kernel's helper does
	refused verdict = "refused" // established with the kernel's helper, not with ours
	closed  verdict = "closed"  // established with neither
)

// rulesets are those that are compared with the kernel's helper.
var rulesets = []string{"full", "lean"}

var loginSteps = []string{
	`S 220 Service ready\r\n`, `C USER anonymous\r\n`, `S 331 Password, please\r\n`, `C PASS a\r\n`, `S 230 Logged in\r\n`,
}

// closingSteps show that the connection still passes bytes in both directions.
var closingSteps = []string{`C NOOP\r\n`, `S 200 Zzz...\r\n`, "wait"}

func readDialogues(t testing.TB) []transcript {
	t.Helper()
	files, err := filepath.Glob("testdata/dialogues/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogues: %v", err)
	}
	var all []transcript
	names := make(map[string]bool)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must.Do(t, err)
		for paragraph := range strings.SplitSeq(string(text), "\n\n") {
			d, err := parseDialogue(paragraph)
			if err == nil && d.name != "" && names[d.name] {
				err = errors.New("another dialogue has this name")
			}
			if err != nil {
				t.Fatalf("%s: %q: %v", file, d.name, err)
			}
			if d.name != "" {
				names[d.name] = true
				all = append(all, d)
			}
		}
	}
	return all
}

// parseDialogue returns a dialogue without a name for a paragraph that has only comments.
func parseDialogue(paragraph string) (d transcript, err error) {
	d.family = IPv4
	var lines []string
	hasData := false
	for line := range strings.Lines(paragraph) {
		line = strings.TrimSuffix(line, "\n")
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "", "#":
		case "=":
			d.name = rest
		case "source":
			d.source = rest
		case "IPv6":
			d.family = IPv6
		case "login":
			lines = append(lines, loginSteps...)
		default:
			lines = append(lines, line)
			hasData = hasData || word == "data"
		}
	}
	if d.name == "" && len(lines) == 0 {
		return d, nil
	}
	if d.name == "" || d.source == "" || !hasData {
		return d, errors.New(`a dialogue needs a name ("= NAME"), a source and a data connection`)
	}
	for _, line := range append(lines, closingSteps...) {
		steps, err := parseSteps(line)
		if err != nil {
			return d, fmt.Errorf("%q: %w", line, err)
		}
		d.steps = append(d.steps, steps...)
	}
	return d, nil
}

func parseSteps(line string) ([]step, error) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "wait":
		return []step{{kind: delivered}}, nil
	case "forget":
		return []step{{kind: delivered}, {kind: forgotten}}, nil
	case "data":
		want, err := parseWant(rest)
		return []step{{kind: delivered}, {kind: dataConnection, want: want}}, err
	}
	word, count, repeated := strings.Cut(word, "*")
	word, cuts, isCut := strings.Cut(word, "/")
	var all step
	switch word {
	case "C":
		all.kind = fromClient
	case "S":
		all.kind = fromServer
	default:
		return nil, errors.New("the line begins with none of the words that a dialogue knows")
	}
	var err error
	if all.text, err = unescape(rest); err != nil {
		return nil, err
	}
	if strings.ContainsAny(placeholder.ReplaceAllString(all.text, ""), "{}") {
		return nil, errors.New("there is no such placeholder")
	}
	if isCut {
		for cut := range strings.SplitSeq(cuts, ",") {
			at, err := strconv.Atoi(cut)
			if err != nil {
				return nil, err
			}
			all.cuts = append(all.cuts, at)
		}
	}
	n := 1
	if repeated {
		if n, err = strconv.Atoi(count); err != nil {
			return nil, err
		}
	}
	return slices.Repeat([]step{all}, n), nil
}

// parseWant reads the listed outcomes of a data connection, such as "works; lean: closed, REASON".
func parseWant(text string) (map[string]verdict, error) {
	want := make(map[string]verdict)
	for i, part := range strings.Split(text, "; ") {
		names := rulesets
		if i > 0 {
			name, rest, _ := strings.Cut(part, ": ")
			if !slices.Contains(rulesets, name) {
				return nil, fmt.Errorf("there is no ruleset %q", name)
			}
			names, part = []string{name}, rest
		}
		result, reason, _ := strings.Cut(part, ", ")
		if v := verdict(result); v != works && v != refused && v != closed {
			return nil, fmt.Errorf("%q is none of %s, %s, %s", result, works, refused, closed)
		} else if (v == works) != (reason == "") {
			return nil, fmt.Errorf("%q: a reason is for what does not work", part)
		}
		for _, name := range names {
			want[name] = verdict(result)
		}
	}
	return want, nil
}

// unescape reads the escapes of Go's strings.
func unescape(text string) (string, error) {
	var b strings.Builder
	for text != "" {
		r, _, rest, err := strconv.UnquoteChar(text, 0)
		if err == nil && r > 0xff {
			err = errors.New("not a byte: write it with escapes")
		}
		if err != nil {
			return "", fmt.Errorf("at %q: %w", text, err)
		}
		b.WriteRune(r)
		text = rest
	}
	return b.String(), nil
}

// A placeholder stands for where an end listens for data: {server}, {client}, or {public} for the server's port at its
// public address. ":22" fixes the port. The rest is the format: six numbers with commas, with a blank after each comma, or
// with at least three digits (" 03"); ".ip", ".port", or ".pp" for the two numbers of the port.
var placeholder = regexp.MustCompile(`\{(server|client|public)(?::(\d+))?(\.ip|\.port|\.pp| 0\d|, )?\}`)

// written is a placeholder's text and a pattern for what a helper may write in its place.
func written(format string, at netip.AddrPort) (text, pattern string) {
	six := func(number, separator string) string {
		return strings.ReplaceAll(numbers(at, number), ",", separator)
	}
	switch {
	case format == ".ip":
		return at.Addr().String(), `[0-9a-fA-F.:]+`
	case format == ".port":
		return strconv.Itoa(int(at.Port())), `\d+`
	case format == ".pp":
		return fmt.Sprintf("%d,%d", at.Port()>>8, at.Port()&0xff), `\d+,\d+`
	case format == ", ":
		return six("%d", ", "), `[\d, ]+`
	case format != "":
		return six("%"+strings.TrimSpace(format)+"d", ","), `[\d,]+`
	}
	return six("%d", ","), `[\d,]+`
}

// end is the client or the server of a replay.
type end struct {
	host *Host
	conn *net.TCPConn
	// data is where it listens for data connections, and peer the address at which it reaches the other end.
	data *net.TCPListener
	peer netip.Addr
	// expected is a pattern for what the other end has sent and it has not yet received.
	expected string
}

// replay is one run of a dialogue over a lab.
type replay struct {
	lab            *Lab
	client, server end
	patience       time.Duration
	// receiver is the end that received the last announcement, and announced the endpoint in it.
	receiver  *end
	announced netip.AddrPort
	// outcomes say which data connections could be made.
	outcomes []bool
}

// run makes each step. It returns an error if the control connection does not carry what it should.
func (r *replay) run(d transcript, connect func() (client, server *net.TCPConn, err error)) error {
	r.client.host, r.server.host = r.lab.Client, r.lab.Server
	r.client.peer = r.lab.ServerAddress
	var err error
	if r.client.conn, r.server.conn, err = connect(); err != nil {
		return err
	}
	defer r.client.conn.Close()
	defer r.server.conn.Close()
	r.server.peer = remoteAddr(r.server.conn)
	for _, e := range []*end{&r.client, &r.server} {
		if err := e.listen(d); err != nil {
			return err
		}
		defer e.data.Close()
	}
	for _, s := range d.steps {
		if err := r.step(s); err != nil {
			return err
		}
	}
	return nil
}

func (r *replay) step(s step) error {
	switch s.kind {
	case fromClient:
		return r.say(&r.client, &r.server, s)
	case fromServer:
		return r.say(&r.server, &r.client, s)
	case delivered:
		return errors.Join(r.hear(&r.server), r.hear(&r.client))
	case forgotten:
		return r.forget()
	}
	opened, err := r.connectData()
	r.outcomes = append(r.outcomes, opened)
	return err
}

// forget removes the control connection from the router's conntrack, as a time-out does during a long transfer. No
// acknowledgement is on its way then, so that the next step's segment is the first packet to be seen.
func (r *replay) forget() error {
	ctx, cancel := context.WithTimeout(context.Background(), r.patience)
	defer cancel()
	for _, conn := range []*net.TCPConn{r.client.conn, r.server.conn} {
		for info, err := tcpInfo(conn); err != nil || info.Unacked > 0; info, err = tcpInfo(conn) {
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	}
	client := r.client.conn.LocalAddr().(*net.TCPAddr)
	_, err := r.lab.ServerRouter().Run(ctx, "", "conntrack", "-D", "-p", "tcp", "--orig-src", client.IP.String(),
		"--orig-port-src", strconv.Itoa(client.Port), "--orig-port-dst", "21")
	return err
}

func remoteAddr(conn *net.TCPConn) netip.Addr {
	return conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// listen opens the end's data listener, on a port that the dialogue's placeholders may fix.
func (e *end) listen(d transcript) (err error) {
	ctx, cancel := scaledContext(5 * time.Second)
	defer cancel()
	at := e.conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	var port uint64
	for _, s := range d.steps {
		for _, match := range placeholder.FindAllStringSubmatch(s.text, -1) {
			if match[2] != "" && (match[1] == "client") == (e.host.Name == "client") {
				if port, err = strconv.ParseUint(match[2], 10, 16); err != nil {
					return err
				}
			}
		}
	}
	e.data, err = e.host.Listen(ctx, netip.AddrPortFrom(at, uint16(port)))
	return err
}

// say sends one segment, or several. What the peer has sent before has arrived by then.
func (r *replay) say(from, to *end, s step) error {
	if err := r.hear(from); err != nil {
		return err
	}
	template := s.text
	var text, pattern strings.Builder
	rest := 0
	for _, match := range placeholder.FindAllStringSubmatchIndex(template, -1) {
		literal := template[rest:match[0]]
		rest = match[1]
		at := address(r.server.data)
		switch template[match[2]:match[3]] {
		case "client":
			at = address(r.client.data)
		case "public":
			at = netip.AddrPortFrom(r.lab.ServerAddress, at.Port())
		}
		format := ""
		if match[6] >= 0 {
			format = template[match[6]:match[7]]
		}
		number, other := written(format, at)
		text.WriteString(literal + number)
		pattern.WriteString(regexp.QuoteMeta(literal) + other)
	}
	text.WriteString(template[rest:])
	pattern.WriteString(regexp.QuoteMeta(template[rest:]))
	to.expected += pattern.String()
	if err := from.conn.SetWriteDeadline(time.Now().Add(r.patience)); err != nil {
		return err
	}
	bytes := toBytes(text.String())
	sent := 0
	for _, cut := range append(s.cuts, len(bytes)) {
		if err := writeSegment(from.conn, bytes[sent:cut]); err != nil {
			return err
		}
		sent = cut
	}
	return nil
}

// hear reads what the peer has sent. The bytes must be the same but for the placeholders.
func (r *replay) hear(e *end) error {
	if e.expected == "" {
		return nil
	}
	pattern, err := regexp.Compile(`(?s)^` + e.expected + `$`)
	if err != nil {
		return err
	}
	if err := e.conn.SetReadDeadline(time.Now().Add(r.patience)); err != nil {
		return err
	}
	var heard string
	buf := make([]byte, 4096)
	for !pattern.MatchString(heard) {
		n, err := e.conn.Read(buf)
		heard += fromBytes(buf[:n])
		if err != nil {
			return fmt.Errorf("the %s received %q, want %s: %w", e.host.Name, heard, e.expected, err)
		}
	}
	e.expected = ""
	if at := parseAnnouncement(heard, e.peer); at.IsValid() {
		r.receiver, r.announced = e, at
	}
	return nil
}

// fromBytes and toBytes have one rune stand for each byte, so that patterns match bytes.
func fromBytes(b []byte) string {
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}

func toBytes(text string) string {
	var b []byte
	for _, r := range text {
		b = append(b, byte(r))
	}
	return string(b)
}

var (
	sixNumbers      = regexp.MustCompile(`\d+(?: *, *\d+){5}`)
	eprtArgument    = regexp.MustCompile(`(?i)EPRT +(.)\d.([0-9a-f.:]+).(\d+).`)
	epsvDelimitered = regexp.MustCompile(`229[^\n]*?([^\w\s])[^\w\s]{2}(\d+)[^\w\s]`)
)

// parseAnnouncement returns the endpoint in the last announcement of a text, read as tolerant programs do, and the zero
// value without one; peer is the address of the sender.
func parseAnnouncement(text string, peer netip.Addr) netip.AddrPort {
	if all := sixNumbers.FindAllString(text, -1); all != nil {
		at, _ := parseNumbers(strings.ReplaceAll(all[len(all)-1], " ", "")) // an invalid one is none
		return at
	}
	var ip, port string
	if match := eprtArgument.FindStringSubmatch(text); match != nil {
		ip, port = match[2], match[3]
	} else if match := epsvDelimitered.FindStringSubmatch(text); match != nil {
		ip, port = peer.String(), match[2]
	}
	addr, errAddr := netip.ParseAddr(ip)
	number, errPort := strconv.ParseUint(port, 10, 16)
	if errAddr != nil || errPort != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, uint16(number))
}

// connectData has the receiver of the last announcement connect, and returns whether the other end accepted the
// connection. Without an announcement that can be read there is none.
func (r *replay) connectData() (bool, error) {
	if r.receiver == nil {
		return false, nil
	}
	listener := r.client.data
	if r.receiver == &r.client {
		listener = r.server.data
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.patience)
	defer cancel()
	conn, err := r.receiver.host.Dial(ctx, netip.AddrPort{}, r.announced)
	if err != nil {
		return false, nil
	}
	defer conn.Close()
	if err := listener.SetDeadline(time.Now().Add(r.patience)); err != nil {
		return false, err
	}
	other, err := listener.AcceptTCP()
	if err != nil {
		return false, fmt.Errorf("the %s is connected to %s, which is not the announced listener: %w", r.receiver.host.Name, r.announced, err)
	}
	return true, other.Close()
}

// dialogueLab is a router with one helper, and all dialogues of one family over it.
type dialogueLab struct {
	*Lab
	listener *net.TCPListener
	mu       sync.Mutex
}

// connect opens a control connection and returns both ends of it. Only one is opened at a time, so that they belong
// together.
func (l *dialogueLab) connect() (client, server *net.TCPConn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := scaledContext(10 * time.Second)
	defer cancel()
	if client, err = l.Client.Dial(ctx, netip.AddrPort{}, netip.AddrPortFrom(l.ServerAddress, 21)); err != nil {
		return nil, nil, err
	}
	if server, err = l.listener.AcceptTCP(); err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return client, server, nil
}
