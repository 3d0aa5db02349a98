package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// TestExplain gives explain its flags, and files that it can and cannot read.
func TestExplain(t *testing.T) {
	const capture = "../../internal/explain/testdata/dnat.pcap"
	dir := t.TempDir()
	garbage, drawing := filepath.Join(dir, "garbage"), filepath.Join(dir, "ladder.svg")
	must.Do(t, os.WriteFile(garbage, []byte("this is not what tcpdump writes"), 0o600))
	file := configFile(t, "min-port: 65535\n")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{capture + " --config " + file, 0, "2 endpoints announced: 0 expected, 2 refused"},
		{capture, 0, "2 endpoints announced: 2 expected"},
		{capture + " --min-port 65535", 0, "2 endpoints announced: 0 expected, 2 refused"},
		{capture + " --min-port 65535 --allow 192.0.2.0/24 --loose", 0, "the port is below the lowest one allowed"},
		{capture + " --advertise 192.0.2.55", 0, "rewrites: 227 Entering Passive Mode (192,0,2,55,"},
		{capture + " --advertise 192.0.2.55 --advertise-except 203.0.113.0/24", 0, "rewrites: 227 Entering Passive Mode (192,0,2,2,"},
		{capture + " --client 203.0.113.0/24,2001:db8::/32", 0, "Summary: 2 control connections."},
		{capture + " --client 203.0.113.102", exitFailure, "none of its control connections is of that client: the clients are 203.0.113.101"},
		{capture + " --json", 0, `"server_reached_at": "192.0.2.2:21"`},
		{capture + " --json --client 203.0.113.102", exitFailure, "none of its control connections"},
		{capture + " --nat 10.0.0.1=192.0.2.9", 0, "--nat 10.0.0.1=192.0.2.9 goes with no connection"},
		{capture + " --svg " + drawing + " --connection 2", 0, "Connection 2"},
		{capture + " --svg " + drawing + " --connection 3", exitFailure, "connection 3 cannot be drawn: the capture has 2 control connections"},
		{capture + " --ports 2121", exitFailure, "dnat.pcap cannot be explained: none of its "},
		{garbage, exitFailure, "garbage cannot be explained: it is no capture: neither pcap nor pcapng"},
		{dir, exitFailure, "is a directory"},
		{filepath.Join(dir, "none"), exitFailure, "no such file"},
	} {
		code, stdout, stderr := call(t, append([]string{"explain"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(stdout+stderr, c.want) || code != 0 && stdout != "" {
			t.Errorf("explain %s: got exit code %d, want %d; output\n%s%swant %q", c.args, code, c.code, stdout, stderr, c.want)
		}
	}
	svg, err := os.ReadFile(drawing)
	if err != nil || !strings.Contains(string(svg), "FTP control connection 2") || strings.Contains(string(svg), "FTP control connection 1") {
		t.Errorf("got other connections than 2: %v", err)
	}
	if code, _, stderr := call(t, "explain", "--svg", drawing, capture); code != 0 {
		t.Fatal(stderr)
	}
	svg, err = os.ReadFile(drawing)
	if err != nil || !strings.Contains(string(svg), "FTP control connection 1") || !strings.Contains(string(svg), "FTP control connection 2") {
		t.Errorf("got not both connections: %v", err)
	}
}
