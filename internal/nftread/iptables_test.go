package nftread

import (
	"reflect"
	"testing"

	"github.com/google/nftables/expr"

	"github.com/nfq-ftphelper/nfq-ftphelper/rules"
)

// TestParseSpec interprets rules as iptables-save prints them.
func TestParseSpec(t *testing.T) {
	const established, related, invalid = expr.CtStateBitESTABLISHED, expr.CtStateBitRELATED, expr.CtStateBitINVALID
	port := func(first, last uint16) []rules.PortRange { return []rules.PortRange{{First: first, Last: last}} }
	with := func(change func(*Match)) Match {
		m := anything
		change(&m)
		return m
	}
	verdictTo := func(m Match, code int32, chain string) []Action {
		return []Action{{Match: m, Verdict: &Verdict{Code: code, Chain: chain}}}
	}
	for spec, want := range map[string][]Action{
		"-j ACCEPT": verdictTo(anything, VerdictAccept, ""),
		"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": verdictTo(with(func(m *Match) { m.States, m.Stated = established|related, true }), VerdictAccept, ""),
		"-m state --state ESTABLISHED -j ACCEPT":               verdictTo(with(func(m *Match) { m.States, m.Stated = established, true }), VerdictAccept, ""),
		"-m conntrack ! --ctstate INVALID -j DROP":             verdictTo(with(func(m *Match) { m.States, m.Stated = ^uint32(invalid), true }), VerdictDrop, ""),
		"-p tcp -m tcp --dport 21 -j RETURN":                   verdictTo(with(func(m *Match) { m.Ports = port(21, 21) }), VerdictReturn, ""),
		"-p tcp -m tcp --sport 20 --dport 1024:65535 -g other": verdictTo(with(func(m *Match) { m.Sources, m.Ports = port(20, 20), port(1024, 65535) }), VerdictGoto, "other"),
		"-p tcp -m multiport --dports 20,21,990 -j other": verdictTo(with(func(m *Match) {
			m.Ports = []rules.PortRange{{First: 20, Last: 20}, {First: 21, Last: 21}, {First: 990, Last: 990}}
		}), VerdictJump, "other"),
		"-p udp -j ACCEPT":                                 verdictTo(with(func(m *Match) { m.NotTCP = true }), VerdictAccept, ""),
		"! -p tcp -j ACCEPT":                               verdictTo(with(func(m *Match) { m.NotTCP = true }), VerdictAccept, ""),
		"! -p udp -j ACCEPT":                               verdictTo(anything, VerdictAccept, ""),
		"-i eth+ ! -o docker0 -j ACCEPT":                   verdictTo(with(func(m *Match) { m.In, m.NotOut = "eth*", "docker0" }), VerdictAccept, ""),
		"-s 192.0.2.0/24 -j DROP":                          verdictTo(with(func(m *Match) { m.Other = true }), VerdictDrop, ""),
		"! -s 192.0.2.0/24 -i lo -j DROP":                  verdictTo(with(func(m *Match) { m.Other, m.In = true, "lo" }), VerdictDrop, ""),
		"-p tcp -m tcp ! --dport 21 -j DROP":               verdictTo(with(func(m *Match) { m.Other = true }), VerdictDrop, ""),
		"-m addrtype --dst-type LOCAL -j DROP":             verdictTo(with(func(m *Match) { m.Other = true }), VerdictDrop, ""),
		"-m helper --helper ftp -j ACCEPT":                 verdictTo(with(func(m *Match) { m.Helper = "ftp" }), VerdictAccept, ""),
		`-m comment --comment "say \"-j DROP\"" -j ACCEPT`: verdictTo(anything, VerdictAccept, ""),
		"-m comment --comment plain -j ACCEPT":             verdictTo(anything, VerdictAccept, ""),
		"-j REJECT --reject-with tcp-reset":                {{Match: anything, Reject: true}},
		"-j NFQUEUE --queue-num 1 --queue-bypass":          {{Match: anything, Queue: true}},
		"-j NOTRACK": {{Match: anything, Notrack: true}},
		"-p tcp -m tcp --dport 21 -j CT --notrack": {{Match: with(func(m *Match) { m.Ports = port(21, 21) }), Notrack: true}},
		"-j CT --zone 1 --helper ftp":              {{Match: anything, Helper: &Helper{Type: "ftp", TCP: true, Template: true}}},
		"-j CT --helper":                           {},
		"-m conntrack":                             {},
		"":                                         {},
	} {
		got := ParseSpec(spec)
		if got == nil || !reflect.DeepEqual(got, want) && len(got)+len(want) > 0 {
			t.Errorf("%s: got %+v, want %+v", spec, got, want)
		}
	}
}

// FuzzAddSaved adds text that no iptables-save prints.
func FuzzAddSaved(f *testing.F) {
	f.Add("*filter\n:FORWARD DROP [0:0]\n:x - [0:0]\n-A FORWARD -p tcp -m tcp --dport 21 -j x\n-A x -g FORWARD\nCOMMIT\n")
	f.Add("*raw\n:\n-A \n-A PREROUTING ! \" -j CT --helper\n:PREROUTING ACCEPT")
	f.Fuzz(func(_ *testing.T, text string) {
		rs := &Ruleset{}
		rs.AddSaved(FamilyIPv4, text)
		for _, c := range rs.Chains {
			rs.Follow(c, Packet{State: expr.CtStateBitRELATED, Ports: []rules.PortRange{{First: 1024, Last: 65535}}, Helper: "sane", In: "eth0", Out: "eth1"})
		}
	})
}
