package rules

import "testing"

func TestValidate(t *testing.T) {
	ftp := []PortRange{{21, 21}}
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{Ports: ftp}, ""},
		{Config{Ports: ftp, Ruleset: Full, Helper: "pptp", Queues: 4}, ""},
		{Config{Ports: ftp, Ruleset: Lean, Helper: "pptp", Queues: 4}, ""},
		{Config{Ports: ftp, Queues: 256}, ""},
		{Config{Ports: ftp, Ruleset: CTHelper}, ""},
		{Config{Ports: ftp, Ruleset: CTHelper, Helper: "Q.931-to-$14-b"}, ""},

		{Config{}, "no control port is given"},
		{Config{Ports: ftp, Queue: 65535, Queues: 2}, "the last number is 65535"},
		{Config{Ports: ftp, Queues: 257}, "257 queues are too many"},
		{Config{Ports: ftp, Ruleset: CTHelper, Queues: 2}, "2 queues are too many; with the ruleset cthelper the kernel fills one"},
		{Config{Ports: ftp, Ruleset: "user"}, `there is no ruleset "user"`},
		{Config{Ports: ftp, Ruleset: "fat"}, `there is no ruleset "fat"`},
		{Config{Ports: ftp, Helper: "ftp"}, `the helper "ftp" reads FTP itself; with the ruleset full`},
		{Config{Ports: ftp, Ruleset: Lean, Helper: "ftp"}, `the helper "ftp" reads FTP itself; with the ruleset lean`},
		{Config{Ports: ftp, Ruleset: CTHelper, Helper: "sane"}, `the helper "sane" is the kernel's`},
		{Config{Ports: ftp, Ruleset: Lean, Helper: "sixteen-letters-"}, "up to 14 bytes are possible"},
		{Config{Ports: ftp, Ruleset: Lean, Helper: `f"p`}, "a quotation mark"},
		{Config{Ports: ftp, Ruleset: Lean, Helper: "f\x00p"}, "ASCII"},
		{Config{Ports: ftp, Ruleset: Lean, Helper: " "}, "ASCII"},
		{Config{Ports: ftp, Ruleset: Lean, Helper: "fté"}, "ASCII"},
	} {
		wantError(t, tt.c.Validate(), tt.want)
	}
}
