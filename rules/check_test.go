package rules

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

func TestCheckMissing(t *testing.T) {
	newNamespace(t)
	nft(t, "table ip nfq_ftphelper { }; table inet other { }")
	if err := Check(example); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want %v", err, ErrMissing)
	}
	apply(t, example)
	if err := Check(example); err != nil {
		t.Errorf("after Apply: got %v, want no error", err)
	}
	nft(t, "delete table inet nfq_ftphelper")
	if err := Check(example); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want %v", err, ErrMissing)
	}
}

func TestCheckOtherConfig(t *testing.T) {
	newNamespace(t)
	apply(t, example)
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{Ports: example.Ports, Queue: 8}, `chain control: rule 4 is not "ct state established @ih,0,8 >= 0x0 queue flags bypass to 8"`},
		{Config{Ports: []PortRange{{22, 22}}, Queue: 7}, "set ports lacks 22"},
		{Config{Ports: []PortRange{{2200, 2211}}, Queue: 7}, "set ports lacks 2200-2211"},
		{Config{Ports: []PortRange{{2201, 2203}}, Queue: 7}, ""},
	} {
		wantError(t, Check(tt.c), tt.want)
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("got error %v, want %q", err, want)
	}
}

// TestCheckAfterCommands changes an installed ruleset as users do.
func TestCheckAfterCommands(t *testing.T) {
	for _, tt := range []struct {
		command string
		want    string
	}{
		{"add element inet nfq_ftphelper ports { 990, 3000-4000, 22 }", ""},
		{"add chain inet nfq_ftphelper mine", ""},
		{"add set inet nfq_ftphelper mine { type ipv4_addr; }", ""},
		{"delete element inet nfq_ftphelper ports { 2121 }", "set ports lacks 2121"},
		{"flush set inet nfq_ftphelper ports", "set ports lacks 21"},
		{"table inet nfq_ftphelper { flags dormant; }", "dormant"},
		{"chain inet nfq_ftphelper output { policy drop; }", "chain output is not"},
		{"flush chain inet nfq_ftphelper control", "chain control: rule 1 is not"},
		{"flush chain inet nfq_ftphelper output", "chain output: rule 1 is not"},
		{"flush chain inet nfq_ftphelper output; delete chain inet nfq_ftphelper output", "chain output is missing"},
		{`flush table inet nfq_ftphelper; delete chain inet nfq_ftphelper control
			add chain inet nfq_ftphelper control { type filter hook input priority 0; }`, "chain control is hooked"},
		{"insert rule inet nfq_ftphelper control accept", "chain control: rule 1 is not"},
		{"insert rule inet nfq_ftphelper prerouting counter", "chain prerouting: rule 1 is not"},
		{"add rule inet nfq_ftphelper output drop", "chain output has 4 rules, and should have 3"},
		{"flush table inet nfq_ftphelper; delete set inet nfq_ftphelper ports", "set ports is missing"},
		{"flush table inet nfq_ftphelper; delete ct helper inet nfq_ftphelper carrier", "ct helper carrier"},
	} {
		t.Run(tt.command, func(t *testing.T) {
			newNamespace(t)
			apply(t, example)
			nft(t, tt.command)
			wantError(t, Check(example), tt.want)
			apply(t, example)
			if err := Check(example); err != nil {
				t.Errorf("after Apply: got %v, want no error", err)
			}
		})
	}
}

// TestCheckLean has the parts that only the ruleset Lean has.
func TestCheckLean(t *testing.T) {
	lean := Config{Ports: example.Ports, Queue: 7, Queues: 2, Ruleset: Lean}
	for _, tt := range []struct {
		old, new string
		want     string
	}{
		{"goto commands", "jump commands", "chain control: rule 4 is not"},
		{"ct direction reply @ih", "ct direction original @ih", "chain control: rule 6 is not"},
		{"0x50415356 ct label set 120", "0x50415356 ct label set 119", "chain commands: rule 3 is not"},
		{"& 0xdfdfdfdf == 0x45505356", "& 0xffffffff == 0x45505356", "chain commands: rule 5 is not"},
		{"@ih,0,32 & 0xdfdfdfdf == 0x45505356", "@ih,8,32 & 0xdfdfdfdf == 0x45505356", "chain commands: rule 5 is not"},
		{"0x41555448 goto read", "0x43434300 goto read", "chain commands: rule 8 is not"},
		{"0x504f5354", "0x504f5355", "chain commands: rule 11 is not"},
		{"0x50555400 ct label set 122", "0x50555400 ct label set 122 return", "chain commands: rule 12 is not"},
		{"@ih,0,16 0x1603", "@ih,0,16 0x1604", "chain commands: rule 17 is not"},
		{"@ih,0,16 0x1603 ct label set 122", "", `chain commands: rule 17 is not "@ih,0,16 0x1603 ct label set 122"`},
		{"@ih,0,24 0x323334", "@ih,0,24 0x323335", "chain replies: rule 3 is not"},
		{"ct label 120 goto read", "goto read", "chain replies: rule 2 is not"},
		{"meta priority set 2127:119", "meta priority set 2127:118", "chain replies: rule 4 is not"},
		{"", "", "chain read: rule 1 is not"}, // last
	} {
		t.Run(tt.old+"→"+tt.new, func(t *testing.T) {
			newNamespace(t)
			text := Text(lean)
			if !strings.Contains(text, tt.old) {
				t.Fatalf("want %q in the file", tt.old)
			}
			text = strings.ReplaceAll(text, tt.old, tt.new)
			nft(t, textStatement.ReplaceAllString(text, "accept"))
			wantError(t, Check(lean), tt.want)
		})
	}
}

// TestCheckHelper has another helper, or a helper for fewer families.
func TestCheckHelper(t *testing.T) {
	newNamespace(t)
	carry := func(name string) Config { return Config{Ports: example.Ports, Queue: 7, Helper: name} }
	for _, installed := range Carriers {
		apply(t, carry(installed))
		for _, c := range Carriers {
			want := ""
			if c != installed {
				want = fmt.Sprintf(`ct helper carrier is not "type \"%s\" protocol tcp; l3proto inet"`, c)
			}
			wantError(t, Check(carry(c)), want)
		}
	}
}

// TestCheckEditedFile changes one thing in the file, which Check names.
func TestCheckEditedFile(t *testing.T) {
	for _, tt := range []struct {
		old, new string
		want     string
	}{
		{"$control_ports", "{ 22 }", "set ports lacks 21"},
		{"type inet_service", "type mark", "set ports is not"},
		{`"sane"`, `"ftp"`, "ct helper carrier is not"},
		{"l3proto inet", "l3proto ip", "ct helper carrier is not"},
		{"hook prerouting priority -150", "hook prerouting priority -90", "chain prerouting is not"},
		{"hook prerouting priority -150", "hook input priority -150", "chain prerouting is not"},
		{"hook output priority -150", "hook output priority -300", "chain output is not"},
		{"type filter hook output", "type route hook output", "chain output is not"},
		{"iif lo return", "", "chain input: rule 1 is not"},
		{"iif lo return", "iif != lo return", "chain input: rule 1 is not"},
		{"iif lo return", "iif lo accept", "chain input: rule 1 is not"},
		{"proto-dst @ports jump", "proto-dst != @ports jump", "chain prerouting: rule 1 is not"},
		{"ct original proto-dst", "ct reply proto-dst", "chain prerouting: rule 1 is not"},
		{"meta l4proto tcp", "meta l4proto udp", "chain prerouting: rule 1 is not"},
		{"@ports jump attach", "@ports goto attach", "chain prerouting: rule 1 is not"},
		{"ct state new meta", "meta", "chain prerouting: rule 1 is not"},
		{`ct helper set "carrier"`, "", "chain attach: rule 3 is not"},
		{"set 121", "set 120", "chain attach: rule 3 is not"},
		{"hook postrouting priority 300", "hook postrouting priority -300", "chain postrouting is not"},
		{"hook input priority 300", "hook forward priority 300", "chain input is not"},
		{"ct label 121 jump", "ct label 120 jump", "chain postrouting: rule 1 is not"},
		{"ct state established", "ct state new", "chain control: rule 4 is not"},
		{"0x00000007", "0x00000008", "chain control: rule 2 is not"},
		{"@ih,56,8 >= 0 drop", "@ih,56,8 >= 0 accept", "chain sane_request: rule 2 is not"},
		{"@ih,64,8 >= 0 return", "", "chain sane_request: rule 1 is not"},
		{"meta oifkind vrf return", "meta oifkind != vrf return", "chain control: rule 1 is not"},
		{"ct zone != 0", "ct zone 0", "chain attach: rule 1 is not"},
		{"tcp flags syn @ih,0,8 >= 0 return", "", "chain attach: rule 2 is not"},
		{"established @ih,0,8 >= 0", "established @ih,0,8 > 0", "chain control: rule 4 is not"},
		{"established @ih,0,8 >= 0", "established @ih,8,8 >= 0", "chain control: rule 4 is not"},
		{"established @ih,0,8 >= 0", "established @th,0,8 >= 0", "chain control: rule 4 is not"},
		{"queue flags bypass to $queue_number", "accept", "chain control: rule 4 is not"},
	} {
		t.Run(tt.old+"→"+tt.new, func(t *testing.T) {
			newNamespace(t)
			text := Text(example)
			if !strings.Contains(text, tt.old) {
				t.Fatalf("want %q in the file", tt.old)
			}
			text = strings.ReplaceAll(text, tt.old, tt.new)
			if tt.old == "type inet_service" {
				// No rule can use the set with other keys.
				text = strings.ReplaceAll(text, "meta l4proto tcp ct original proto-dst @ports", "")
			}
			nft(t, textStatement.ReplaceAllString(text, "accept"))
			wantError(t, Check(example), tt.want)
		})
	}
}

// TestCheckStatement has queue statements that differ slightly.
func TestCheckStatement(t *testing.T) {
	newNamespace(t)
	s := apply(t, example)
	if s == Native {
		for _, statement := range []string{"queue to 7", "queue flags bypass to 7-8", "queue flags bypass,fanout to 7-8"} {
			nft(t, textStatement.ReplaceAllString(Text(example), statement))
			wantError(t, Check(example), "chain control: rule 4 is not")
		}
		return
	}
	must.Do(t, install(Config{Ports: example.Ports, Queue: 0x700}, Compat, nil))
	wantError(t, Check(example), "chain control: rule 4 is not")
}
