package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/doctor"
	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

func TestDoctorUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"is not a port":           {"doctor", "--ports", "0"},
		"the last number is":      {"doctor", "--queue", "65535", "--queues", "2"},
		`unknown command "queue"`: {"doctor", "queue"},
	} {
		if code, stdout, stderr := call(t, args...); code != exitUsage || !strings.Contains(stderr, want) || stdout != "" {
			t.Errorf("%q: got exit code %d, output\n%s%s", args, code, stdout, stderr)
		}
	}
}

// TestVerdict has the exit code that goes with each kind of finding.
func TestVerdict(t *testing.T) {
	fine, warning, problem := doctor.Finding{}, doctor.Finding{Level: doctor.Warning}, doctor.Finding{Level: doctor.Problem}
	for _, c := range []struct {
		findings []doctor.Finding
		strict   bool
		want     string
	}{
		{[]doctor.Finding{fine}, true, ""},
		{[]doctor.Finding{fine, warning}, false, ""},
		{[]doctor.Finding{fine, warning}, true, "there is 1 warning, and --strict does not allow any"},
		{[]doctor.Finding{warning, warning}, true, "there are 2 warnings, and --strict does not allow any"},
		{[]doctor.Finding{warning, problem}, false, "there is 1 problem"},
		{[]doctor.Finding{problem, problem}, true, "there are 2 problems"},
	} {
		got := ""
		if err := verdict(c.findings, c.strict); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v, strict %t: %q, want %q", c.findings, c.strict, got, c.want)
		}
	}
}

// TestDoctor examines a host without rules, and with them. The daemon does not run in either case.
func TestDoctor(t *testing.T) {
	host := netns.NewTestHost(t, "host")
	flags := []string{"doctor", "--ports", "21,990", "--queue", "9"}
	err := host.Do(func() error {
		code, stdout, stderr := call(t, flags...)
		if code != exitFailure || stderr != "nfq-ftphelper: there are 2 problems\n" || strings.Contains(stdout, "\x1b") ||
			!strings.Contains(stdout, "=> nfq-ftphelper rules apply --ports 21,990 --queue 9, or nfq-ftphelper run --ports 21,990 --queue 9 --rules\n") {
			t.Errorf("without rules: got exit code %d, output\n%s%s", code, stdout, stderr)
		}
		for _, ruleset := range []rules.Ruleset{rules.Full, rules.Lean} {
			c := rules.Config{Ports: []rules.PortRange{{First: 21, Last: 21}, {First: 990, Last: 990}}, Queue: 9, Ruleset: ruleset}
			if _, err := rules.Apply(c); err != nil {
				return err
			}
			code, stdout, stderr = call(t, append(flags, "--json", "--ruleset", string(ruleset))...)
			var report struct{ Problems, Warnings int }
			if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != exitFailure || report.Problems != 1 || report.Warnings != 0 ||
				stderr != "nfq-ftphelper: there is 1 problem\n" || !strings.Contains(stdout, "no program serves queue 9") {
				t.Errorf("with rules: got exit code %d, %v, output\n%s%s", code, err, stdout, stderr)
			}
		}
		code, stdout, _ = call(t, flags...)
		if code != exitFailure || !strings.Contains(stdout, "table inet nfq_ftphelper is installed") {
			t.Errorf("with the installed rules: got exit code %d, output\n%s", code, stdout)
		}
		code, stdout, _ = call(t, append(flags, "--ruleset", "full")...)
		if code != exitFailure || !strings.Contains(stdout, "chain control: rule 3 is not") {
			t.Errorf("with other rules: got exit code %d, output\n%s", code, stdout)
		}
		return nil
	})
	must.Do(t, err)
}
