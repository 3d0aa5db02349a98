package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

func TestDoctorUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"is not a port":           {"doctor", "--ports", "0"},
		"the last number is":      {"doctor", "--queue", "65535", "--queues", "2"},
		`unknown command "queue"`: {"doctor", "queue"},
	} {
		if code, stdout, stderr := call(t, args...); code != exitUsage || !strings.Contains(stderr, want) || stdout != "" {
			t.Errorf("%q: exit code %d, it says\n%s%s", args, code, stdout, stderr)
		}
	}
}

// TestDoctor examines a host without rules, and with them.
func TestDoctor(t *testing.T) {
	host := newHost(t)
	flags := []string{"doctor", "--ports", "21,990", "--queue", "9"}
	err := host.Do(func() error {
		code, stdout, stderr := call(t, flags...)
		if code != exitFailure || stderr != "nfq-ftphelper: there is 1 problem\n" || strings.Contains(stdout, "\x1b") ||
			!strings.Contains(stdout, "=> nfq-ftphelper rules apply --ports 21,990 --queue 9, or nfq-ftphelper run --ports 21,990 --queue 9 --rules\n") {
			t.Errorf("without rules: exit code %d, it says\n%s%s", code, stdout, stderr)
		}
		for _, ruleset := range []rules.Ruleset{rules.Full, rules.Lean} {
			c := rules.Config{Ports: []rules.PortRange{{First: 21, Last: 21}, {First: 990, Last: 990}}, Queue: 9, Ruleset: ruleset}
			if _, err := rules.Apply(c); err != nil {
				return err
			}
			code, stdout, stderr = call(t, append(flags, "--json", "--ruleset", string(ruleset))...)
			var report struct{ Problems, Warnings int }
			if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 0 || stderr != "" || report.Problems != 0 || report.Warnings != 1 {
				t.Errorf("with rules: exit code %d, %v, it says\n%s%s", code, err, stdout, stderr)
			}
		}
		code, stdout, _ = call(t, flags...)
		if code != 0 || !strings.Contains(stdout, "table inet nfq_ftphelper is in place") {
			t.Errorf("with the rules that are in place: exit code %d, it says\n%s", code, stdout)
		}
		code, stdout, _ = call(t, append(flags, "--ruleset", "full")...)
		if code != exitFailure || !strings.Contains(stdout, "chain control: rule 2 is not") {
			t.Errorf("with other rules: exit code %d, it says\n%s", code, stdout)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
