package parse

import "testing"

// Lines that are looked at, by what they make the parser do. They serve the allocation tests
// and the benchmarks.
var (
	commandLines = []struct{ name, line string }{
		{"Other", "RETR file\r"},
		{"Unknown", "X-Header: value\r"},
		{"PASV", "PASV\r"},
		{"EPSVALL", "EPSV ALL\r"},
		{"PORT", "PORT 192,168,0,2,4,1\r"},
		{"EPRT4", "EPRT |1|192.168.0.2|1025|\r"},
		{"EPRT6", "EPRT |2|2001:db8::2|1025|\r"},
		{"Telnet", "\xff\xf4\xff\xf2ABOR\r"},
		{"Refused", "PORT 192,168,0,258,4,1\r"},
	}
	replyLines = []struct{ name, line string }{
		{"Other", "226 Transfer complete.\r"},
		{"227", "227 Entering Passive Mode (198,51,100,9,4,1).\r"},
		{"229", "229 Entering Extended Passive Mode (|||50006|).\r"},
		{"Refused", "227 Logout.\r"},
	}
)

func checkAllocs(t *testing.T, name string, f func()) {
	t.Helper()
	if n := testing.AllocsPerRun(100, f); n != 0 {
		t.Errorf("%s allocates %v times", name, n)
	}
}

func TestAllocs(t *testing.T) {
	for _, l := range commandLines {
		line := []byte(l.line)
		checkAllocs(t, "ParseCommand "+l.name, func() { ParseCommand(line) })
		checkAllocs(t, "CommandEndpoint "+l.name, func() { CommandEndpoint(line) })
	}
	for _, l := range replyLines {
		line := []byte(l.line)
		checkAllocs(t, "ParseReply "+l.name, func() { ParseReply(line) })
		checkAllocs(t, "ReplyEndpoint "+l.name, func() { ReplyEndpoint(line) })
		checkAllocs(t, "ReplyText "+l.name, func() { ReplyText(line) })
	}
	buf := make([]byte, 0, 64)
	for _, s := range []string{commandLines[4].line, commandLines[5].line, replyLines[1].line, replyLines[2].line} {
		e := endpointOf(t, s)
		checkAllocs(t, "AppendText "+s, func() { e.AppendText(buf, other4) })
	}
	e := endpointOf(t, commandLines[6].line)
	checkAllocs(t, "AppendText, IPv6", func() { e.AppendText(buf, other6) })

	line := []byte(replyLines[1].line)
	e = endpointOf(t, replyLines[1].line)
	checkAllocs(t, "AppendSameLength", func() { e.AppendSameLength(buf, line, other4) })
}

func BenchmarkParseCommand(b *testing.B) {
	for _, l := range commandLines {
		b.Run(l.name, func(b *testing.B) {
			line := []byte(l.line)
			b.ReportAllocs()
			for b.Loop() {
				ParseCommand(line)
			}
		})
	}
}

func BenchmarkParseReply(b *testing.B) {
	for _, l := range replyLines {
		b.Run(l.name, func(b *testing.B) {
			line := []byte(l.line)
			b.ReportAllocs()
			for b.Loop() {
				ParseReply(line)
			}
		})
	}
}

func BenchmarkAppendText(b *testing.B) {
	e := endpointOf(b, "227 Entering Passive Mode (198,51,100,9,4,1).\r")
	buf := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		e.AppendText(buf, other4)
	}
}
