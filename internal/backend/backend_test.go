package backend

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// kernel is a kernel with these features.
type kernel struct {
	carriers  string
	cthelper  bool
	installed rules.Config
}

func (k kernel) Carrier(name string) error {
	if strings.Contains(k.carriers, name) {
		return nil
	}
	return fmt.Errorf("no %s", name)
}

func (k kernel) CTHelper() error {
	if k.cthelper {
		return nil
	}
	return errors.New("no cthelper")
}

func (k kernel) Installed(c rules.Config) error {
	if k.installed.Ruleset == c.Ruleset && k.installed.Helper == c.Helper {
		return nil
	}
	return rules.ErrMissing
}

var ftp = rules.Config{Ports: []rules.PortRange{{First: 21, Last: 21}}, Queue: 1, Queues: 1}

func TestChoose(t *testing.T) {
	full := kernel{carriers: "sane pptp", cthelper: true}
	four := ftp
	four.Queues = 4
	for _, c := range []struct {
		name    string
		request Request
		kernel
		want string // helper, name and ruleset, or errors
	}{
		{"everything", Request{}, full, "carrier sane full"},
		{"the second carrier", Request{}, kernel{carriers: "pptp"}, "carrier pptp full"},
		{"no carrier", Request{}, kernel{cthelper: true}, "no sane\nno pptp\nthe kernel can have a helper in user space instead: --helper cthelper"},
		{"nothing", Request{}, kernel{}, "no sane\nno pptp"},
		{"one carrier", Request{Helper: Carrier, Name: "pptp"}, full, "carrier pptp full"},
		{"one carrier, missing", Request{Helper: Carrier, Name: "pptp"}, kernel{carriers: "sane", cthelper: true}, "no pptp"},
		{"only carriers, missing", Request{Helper: Carrier}, kernel{cthelper: true}, "no sane\nno pptp"},
		{"cthelper", Request{Helper: CTHelper}, full, "cthelper ftp cthelper"},
		{"cthelper by name", Request{Helper: CTHelper, Name: "ours"}, full, "cthelper ours cthelper"},
		{"cthelper, missing", Request{Helper: CTHelper}, kernel{carriers: "sane"}, "no cthelper"},
		{"lean", Request{Ruleset: rules.Lean}, full, "carrier sane lean"},
		{"lean, the second carrier", Request{Ruleset: rules.Lean, Rules: four}, kernel{carriers: "pptp", cthelper: true}, "carrier pptp lean"},
		{"lean, one carrier", Request{Ruleset: rules.Lean, Helper: Carrier, Name: "pptp"}, full, "carrier pptp lean"},
		{"lean, no carrier", Request{Ruleset: rules.Lean}, kernel{cthelper: true}, "no sane\nno pptp"},
		{"full by name", Request{Ruleset: rules.Full, Helper: CTHelper}, full, "cthelper ftp cthelper"},
		{"monitor", Request{Monitor: true}, kernel{}, "none  monitor"},
		{"monitor, whatever is set", Request{Monitor: true, Ruleset: rules.Lean, Helper: Carrier, Name: "pptp", Installed: true}, full, "none  monitor"},
		{"nothing in place yet", Request{Installed: true}, full, "carrier sane full"},
		{"nothing in place yet, nor possible", Request{Installed: true}, kernel{}, "no sane\nno pptp"},
		{"in place", Request{Installed: true}, kernel{installed: rules.Config{Ruleset: rules.Full, Helper: "pptp"}}, "carrier pptp full"},
		{"in place, of a cthelper", Request{Installed: true, Helper: CTHelper}, kernel{installed: rules.Config{Ruleset: rules.CTHelper, Helper: "ftp"}}, "cthelper ftp cthelper"},
		{"in place, of a cthelper that was not requested", Request{Installed: true}, kernel{carriers: "sane", installed: rules.Config{Ruleset: rules.CTHelper, Helper: "ftp"}}, "carrier sane full"},
		{"in place, lean", Request{Installed: true, Ruleset: rules.Lean}, kernel{installed: rules.Config{Ruleset: rules.Lean, Helper: "pptp"}}, "carrier pptp lean"},
		{"in place, full requested", Request{Installed: true, Ruleset: rules.Full}, kernel{carriers: "sane", installed: rules.Config{Ruleset: rules.Lean, Helper: "pptp"}}, "carrier sane full"},
		{"in place, lean by default", Request{Installed: true}, kernel{installed: rules.Config{Ruleset: rules.Lean, Helper: "pptp"}}, "carrier pptp lean"},
		{"not in place, cthelper", Request{Installed: true, Helper: CTHelper}, full, "cthelper ftp cthelper"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.request.Rules.Ports == nil {
				c.request.Rules = ftp
			}
			must.Do(t, c.request.Validate())
			plan, err := Choose(c.request, c.kernel)
			got := fmt.Sprintln(plan.Helper, plan.Rules.Helper, plan.Rules.Ruleset)
			if err != nil {
				got = err.Error()
			} else if plan.Why == "" || plan.Rules.Queues != c.request.Rules.Queues {
				t.Errorf("got %+v, want a reason and %d queues", plan, c.request.Rules.Queues)
			}
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestValidateRefusesTheImpossible(t *testing.T) {
	four := ftp
	four.Queues = 4
	for _, c := range []struct {
		request Request
		want    string
	}{
		{Request{Rules: ftp, Helper: "kernel"}, "use auto, carrier or cthelper"},
		{Request{Rules: ftp, Name: "pptp"}, "whether it is a carrier or a cthelper"},
		{Request{Rules: ftp, Helper: Carrier, Name: "ftp"}, "reads FTP itself"},
		{Request{Rules: ftp, Helper: CTHelper, Name: strings.Repeat("x", 16)}, "helper"},
		{Request{Rules: ftp, Ruleset: rules.Lean, Helper: CTHelper}, "lean does not go with a cthelper"},
		{Request{Rules: ftp, Ruleset: rules.Lean, Helper: Carrier, Name: "ftp"}, "reads FTP itself; with the ruleset lean"},
		{Request{Rules: four, Helper: CTHelper}, "queue"},
		{Request{Helper: CTHelper}, "port"},
		{Request{}, "port"},
	} {
		if err := c.request.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q", c.request, err, c.want)
		}
	}
}
