package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/config"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// configFile writes a configuration file.
func configFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "nfq-ftphelper.yaml")
	must.Do(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

// The file's faults end every command that reads it in the same way; FILE stands for its name.
func TestConfigFaults(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"rules: true\nport: 21\n", "nfq-ftphelper: FILE:2:1: there is no setting \"port\"; did you mean ports?\n" +
			"   1 | rules: true\n" +
			">  2 | port: 21\n" +
			"       ^\n"},
		{"ports: [21, 0]", "nfq-ftphelper: FILE:1:13: ports: \"0\" is not a port, a number from 1 to 65535\n" +
			">  1 | ports: [21, 0]\n" +
			"                   ^\n"},
		{"helper: kernel", "nfq-ftphelper: FILE:1:9: helper: it must be auto, carrier or cthelper\n" +
			">  1 | helper: kernel\n" +
			"               ^\n"},
		{"allow: 10.0.0.0/33", "nfq-ftphelper: FILE:1:8: allow: \"10.0.0.0/33\" is neither an address nor a network such as 192.0.2.0/24\n" +
			">  1 | allow: 10.0.0.0/33\n" +
			"              ^\n"},
		{"log-level: loud", "nfq-ftphelper: FILE:1:12: log-level: it must be debug, info, warn or error\n" +
			">  1 | log-level: loud\n" +
			"                  ^\n"},
		{"queues: 0", "nfq-ftphelper: FILE:1:9: queues must be at least 1\n" +
			">  1 | queues: 0\n" +
			"               ^\n"},
		{"hold-time: -1s", "nfq-ftphelper: FILE:1:12: hold-time must be longer than 0\n" +
			">  1 | hold-time: -1s\n" +
			"                  ^\n"},
	} {
		name := configFile(t, c.text)
		for _, args := range [][]string{
			{"config", "check", name},
			{"config", "show", "--config", name},
			{"run", "--config", name},
			{"doctor", "--config", name},
			{"rules", "print", "--config", name},
			// A flag does not make the file right.
			{"run", "--config", name, "--ports", "21", "--helper", "carrier", "--allow", "", "--queues", "1", "--hold-time", "1s", "--log-level", "info"},
		} {
			code, stdout, stderr := call(t, args...)
			if want := strings.ReplaceAll(c.want, "FILE", name); code != exitUsage || stdout != "" || stderr != want {
				t.Errorf("%q with %q: got exit code %d, want 2; output\n%s%s\nwant\n%s", args, c.text, code, stdout, stderr, want)
			}
		}
	}
}

// Every fault is found, by all commands; what does not go together counts only where nothing else is a guess.
func TestConfigAllFaults(t *testing.T) {
	const text = `rate: 0
ports: [21, 0, x]
prot: 5
control: relative.sock
metrics: x
helper-name: pptp
queues: 0
`
	faults := []string{
		"1:7: rate must be at least 1",
		`2:13: ports: "0" is not a port`,
		`2:16: ports: "x" is not a port`,
		`3:1: there is no setting "prot"; did you mean ports?`,
		`4:10: control: "relative.sock" is not an absolute path, such as /run/nfq-ftphelper/control.sock`,
		`5:10: metrics: "x" is not an address with a port, such as 127.0.0.1:9921`,
		"7:9: queues must be at least 1",
	}
	name := configFile(t, text)
	for _, args := range [][]string{{"config", "check", name}, {"run", "--config", name}, {"events", "--config", name}} {
		code, stdout, stderr := call(t, args...)
		var got []string
		for line := range strings.Lines(stderr) {
			if fault, is := strings.CutPrefix(line, "nfq-ftphelper: "+name+":"); is {
				got = append(got, fault)
			}
		}
		if code != exitUsage || stdout != "" || len(got) != len(faults) || strings.Count(stderr, "^\n") != len(faults) {
			t.Fatalf("%q: got exit code %d, output\n%s%s", args, code, stdout, stderr)
		}
		for i, want := range faults {
			if !strings.HasPrefix(got[i], want) {
				t.Errorf("%q: fault %d is %q, want %q", args, i+1, got[i], want)
			}
		}
	}
	_, _, stderr := call(t, "config", "check", configFile(t, "rate: 0\nhelper-name: pptp\n"))
	if !strings.Contains(stderr, "rate must be at least 1") || !strings.Contains(stderr, "whether it is a carrier or a cthelper") {
		t.Errorf("of a number and of what does not go together output\n%s", stderr)
	}
}

// The usual file counts where no other is named, and that is said once, where no program reads it.
func TestConfigDefault(t *testing.T) {
	before := defaultFile
	t.Cleanup(func() { defaultFile = before })
	defaultFile = configFile(t, "ports: 2121\nqueue: 7\n")
	other := configFile(t, "queue: 9\n")
	note := "nfq-ftphelper: settings are read from " + defaultFile + " (--config none ignores it)\n"
	const capture = "../../internal/explain/testdata/dnat.pcap"
	for _, c := range []struct {
		args      []string
		code      int
		out, errs string
		noted     bool
	}{
		{args: []string{"rules", "print"}, out: "define queue_number = 7\n", noted: true},
		{args: []string{"config", "show"}, out: "queue: 7\n", noted: true},
		{args: []string{"rules", "print", "--queue", "8"}, out: "define queue_number = 8\n", noted: true},
		{args: []string{"rules", "print", "--config", other}, out: "define queue_number = 9\n"},
		{args: []string{"rules", "print", "--config", ""}, out: "define queue_number = 2121\n"},
		{args: []string{"rules", "print", "--config", "none"}, out: "define queue_number = 2121\n"},
		{args: []string{"config", "show", other}, out: "queue: 9\n"},
		{args: []string{"config", "check"}, out: "it sets ports and queue"},
		{args: []string{"rules"}, out: "Usage:"},
		{args: []string{"version"}, out: version},
		{args: []string{"explain", capture}, code: exitFailure, errs: "--ports", noted: true},
		{args: []string{"explain", capture, "--config", "none"}, out: "2 endpoints announced"},
	} {
		code, stdout, stderr := call(t, c.args...)
		wanted := 0
		if c.noted {
			wanted = 1
		}
		if code != c.code || !strings.Contains(stdout, c.out) || !strings.Contains(stderr, c.errs) || strings.Count(stderr, note) != wanted || strings.Contains(stdout, note) {
			t.Errorf("%q: got exit code %d, output\n%s%s", c.args, code, stdout, stderr)
		}
	}
	// run says it in its log; it can't start here.
	code, _, stderr := call(t, "run", "--helper", "carrier", "--helper-name", "none-such", "--control", "")
	if code != exitFailure || strings.Contains(stderr, note) || strings.Count(stderr, `msg="settings read" file=`+defaultFile) != 1 {
		t.Errorf("run: got exit code %d, output\n%s", code, stderr)
	}
	// A fault in it is one for every command, but for those that are to do without.
	defaultFile = configFile(t, "prot: 21\n")
	if code, _, stderr := call(t, "rules", "print"); code != exitUsage || !strings.Contains(stderr, defaultFile+":1:1: ") {
		t.Errorf("with a fault in it: got exit code %d, output\n%s", code, stderr)
	}
	if code, _, stderr := call(t, "rules", "print", "--config", "none"); code != 0 {
		t.Errorf("without it: got exit code %d, output\n%s", code, stderr)
	}
}

// The error of settings that exclude each other names both.
func TestConfigTogether(t *testing.T) {
	name := configFile(t, "ruleset: lean\nhelper: cthelper\n")
	code, _, stderr := call(t, "config", "check", name)
	if want := "nfq-ftphelper: " + name + ": the ruleset lean does not go with a cthelper"; code != exitUsage || !strings.HasPrefix(stderr, want) {
		t.Errorf("got exit code %d, output\n%s", code, stderr)
	}
	code, _, stderr = call(t, "rules", "print", "--config", name)
	if want := "with the configuration file " + name + ": the ruleset lean does not go with a cthelper"; code != exitUsage || !strings.Contains(stderr, want) {
		t.Errorf("got exit code %d, output\n%s", code, stderr)
	}
	code, stdout, stderr := call(t, "rules", "print", "--config", name, "--helper", "carrier")
	if code != 0 || !strings.Contains(stdout, "goto commands") {
		t.Errorf("got exit code %d, output\n%s", code, stderr)
	}
	if code, _, stderr = call(t, "run", "--config", filepath.Join(name, "missing")); code != exitUsage || !strings.Contains(stderr, "the configuration file cannot be read") {
		t.Errorf("without the file: got exit code %d, output\n%s", code, stderr)
	}
}

func TestConfigCheck(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "FILE is right; it sets nothing\n",
		"rules: true\n":                 "FILE is right; it sets rules\n",
		"rate: 5\nallow: ::1\nqueue: 7": "FILE is right; it sets allow, queue and rate\n",
	} {
		name := configFile(t, text)
		code, stdout, stderr := call(t, "config", "check", name)
		if code != 0 || stdout != strings.ReplaceAll(want, "FILE", name) || stderr != "" {
			t.Errorf("%q: got exit code %d, output\n%s%s", text, code, stdout, stderr)
		}
	}
}

// A flag wins over the file, the file over the default, and what is shown is a file that says it all.
func TestConfigShow(t *testing.T) {
	name := configFile(t, "ports: [2121-2130, 21]\nqueue: 7\nadvertise: 2001:db8::55\nallow: 10.0.0.0/8\nhold-time: 2s\n")
	code, shown, stderr := call(t, "config", "show", "--config", name, "--queue", "9", "--rules", "--allow", "")
	if code != 0 {
		t.Fatalf("got exit code %d, output\n%s", code, stderr)
	}
	const want = `ports: [21, 2121-2130]
queue: 9
queues: 1
rules: true
ruleset: ""
helper: auto
helper-name: ""
keep-helper: false
monitor: false
min-port: 1024
loose: false
allow: []
rate: 10000
advertise: ["2001:db8::55"]
advertise-except: []
max-connections: 65536
hold-time: 2s
control: /run/nfq-ftphelper/control.sock
outcomes: true
metrics: ""
log-format: text
log-level: info
log-opened: false
`
	if shown != want {
		t.Errorf("it shows\n%s\nwant\n%s", shown, want)
	}
	again := configFile(t, shown)
	if code, stdout, stderr := call(t, "config", "check", again); code != 0 {
		t.Errorf("got %s%s, want a right file", stdout, stderr)
	}
	if _, stdout, _ := call(t, "config", "show", "--config", again); stdout != shown {
		t.Errorf("got after reading back\n%s", stdout)
	}
}

var commentedOut = regexp.MustCompile(`(?m)^#([a-z])`)

// What init writes is right as it is, and with every setting in it, and means the defaults.
func TestConfigInit(t *testing.T) {
	name := filepath.Join(t.TempDir(), "new.yaml")
	if code, stdout, stderr := call(t, "config", "init", name); code != 0 || stdout+stderr != "" {
		t.Fatalf("got exit code %d, output\n%s%s", code, stdout, stderr)
	}
	text, err := os.ReadFile(name)
	must.Do(t, err)
	if _, stdout, _ := call(t, "config", "init"); stdout != string(text) {
		t.Errorf("got standard output\n%s, want none", stdout)
	}
	for line := range strings.Lines(string(text)) {
		if len(line) > 80 {
			t.Errorf("got a line of more than 80 columns: %s", line)
		}
	}
	code, _, stderr := call(t, "config", "init", name)
	if code != exitFailure || !strings.Contains(stderr, name+" exists already") {
		t.Errorf("a second time: got exit code %d, output\n%s", code, stderr)
	}
	if again, err := os.ReadFile(name); err != nil || string(again) != string(text) {
		t.Errorf("got a changed file after the second run: %v", err)
	}

	_, defaults, _ := call(t, "config", "show")
	whole := commentedOut.ReplaceAllString(string(text), "$1")
	for what, text := range map[string]string{"nothing": string(text), "all": whole} {
		name := configFile(t, text)
		code, stdout, stderr := call(t, "config", "check", name)
		if sets := what == "all"; code != 0 || strings.Contains(stdout, "it sets nothing") == sets {
			t.Errorf("with %s set: got exit code %d, output\n%s%s", what, code, stdout, stderr)
		}
		if _, stdout, _ := call(t, "config", "show", "--config", name); stdout != defaults {
			t.Errorf("with %s set: got\n%s", what, stdout)
		}
	}
	newSettings().flags.VisitAll(func(flag *pflag.Flag) {
		if !strings.Contains(whole, "\n"+flag.Name+": ") {
			t.Errorf("got no %s", flag.Name)
		}
	})
}

// The settings that can change while the daemon runs, and those that can't.
func TestChanges(t *testing.T) {
	before := newSettings()
	other := map[string]string{
		"ports": "22", "queue": "9", "queues": "2", "rules": "true", "ruleset": "lean", "helper": "cthelper", "helper-name": "x",
		"keep-helper": "true", "min-port": "9", "loose": "true", "allow": "::1", "rate": "9", "advertise": "::1",
		"advertise-except": "::1", "max-connections": "9", "hold-time": "9s", "control": "", "outcomes": "false", "metrics": "127.0.0.1:9921",
		"log-format": "json", "log-level": "warn", "log-opened": "true", "monitor": "true",
	}
	var changed, fixed []string
	newSettings().flags.VisitAll(func(flag *pflag.Flag) {
		s := newSettings()
		if err := s.flags.Set(flag.Name, other[flag.Name]); err != nil {
			t.Fatalf("%s: %v", flag.Name, err)
		}
		value := s.flags.Lookup(flag.Name).Value.String()
		live, kept := s.keepFixed(before)
		now := s.flags.Lookup(flag.Name).Value.String()
		switch {
		case len(live) == 0 && len(kept) == 1 && kept[0] == flag.Name && now == flag.DefValue:
			fixed = append(fixed, flag.Name)
		case len(live) == 1 && len(kept) == 0 && live[0].Key == flag.Name && live[0].Value.String() == value && now == value:
			changed = append(changed, flag.Name)
		default:
			t.Errorf("%s: %v, %v, and is %q", flag.Name, live, kept, now)
		}
	})
	if got, want := fmt.Sprint(changed), "[ports min-port loose allow rate advertise advertise-except max-connections hold-time log-level log-opened]"; got != want {
		t.Errorf("%s can change, want %s", got, want)
	}
	if got, want := fmt.Sprint(fixed), "[queue queues rules ruleset helper helper-name keep-helper monitor control outcomes metrics log-format]"; got != want {
		t.Errorf("%s can't change, want %s", got, want)
	}

	s := newSettings()
	s.Request.Rules.Queue, s.ApplyRules, s.logFormat, s.Engine.Policy.Loose = 1, true, "json", true
	live, kept := s.keepFixed(before)
	if got, want := fmt.Sprint(live, kept), "[loose=true] [queue rules log-format]"; got != want {
		t.Errorf("three that can't and one that can: %s, want %s", got, want)
	}
	if s.Request.Rules.Queue != before.Request.Rules.Queue || s.ApplyRules || s.logFormat != "text" || !s.Engine.Policy.Loose {
		t.Errorf("got %+v", s)
	}
	if live, kept := newSettings().keepFixed(before); len(live)+len(kept) > 0 {
		t.Errorf("without a change: got %v, %v", live, kept)
	}
}

// FuzzConfig says that no file panics, and that what is shown of one that loads loads as the same.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(config.Template(newSettings().flags, introduction)))
	f.Add([]byte(config.Show(newSettings().flags)))
	for _, s := range []string{
		"rules: true\nports: [21, 2121-2130]\nhold-time: 500ms\n", "ports:\n- 21\n- 22\n", `{"allow": ["::1", 10.0.0.0/8]}`,
		"helper-name: \"\\x00\\u00e9\\U0001f600\\\n  x\"", "helper-name: |2-\n    x\n", "helper-name: >+\n  x\n\n", "advertise: ::1, 10.0.0.1",
		"---\nrate: 0x1F\n...\n# c", "a: &x [*x]\n? !t x\n: <<", "\ufeffqueue: 1_0\r\nlog-level: ERROR+3", "helper: 'it''s'", "x: [[", "- - -", "%\n---\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := newSettings()
		if _, err := config.Parse("file", text, s.flags); err != nil {
			return
		}
		shown := config.Show(s.flags)
		again := newSettings()
		if _, err := config.Parse("shown", []byte(shown), again.flags); err != nil {
			t.Fatalf("%q: show printed an unreadable file: %v\n%s", text, err, shown)
		}
		if live, fixed := again.keepFixed(s); len(live)+len(fixed) > 0 || config.Show(again.flags) != shown {
			t.Fatalf("%q: show printed other settings: %v %v\n%s", text, live, fixed, shown)
		}
	})
}
