package rules

import (
	"errors"
	"net"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// parse parses a list of ports; "" is none.
func parse(t *testing.T, s string) []PortRange {
	t.Helper()
	if s == "" {
		return nil
	}
	r, err := ParsePorts(s)
	must.Do(t, err)
	return r
}

var elementsInListing = regexp.MustCompile(`elements = \{([^}]*)\}`)

// inSet returns the set as nft(8) lists it, such as "21,2121-2130".
func inSet(t *testing.T) string {
	t.Helper()
	match := elementsInListing.FindStringSubmatch(nft(t, "list set inet nfq_ftphelper ports"))
	if match == nil {
		return ""
	}
	return strings.Join(strings.Fields(match[1]), "")
}

func TestSetPortsKeepsPortsByHand(t *testing.T) {
	newNamespace(t)
	c := example
	c.Ports = parse(t, "21,2121-2130")
	apply(t, c)
	own := c.Ports
	for _, step := range []struct {
		hand, want string // command of nft, ports for SetPorts
		set, own   string
	}{
		{"", "21,2121-2130", "21,2121-2130", "21,2121-2130"},
		{"", "21,2125-2130", "21,2125-2130", "21,2125-2130"},
		{"", "21,2120-2140", "21,2120-2124,2125-2130,2131-2140", "21,2120-2140"},
		{"", "22-2130", "22-2119,2120-2124,2125-2130", "22-2130"},
		{"add element inet nfq_ftphelper ports { 2150, 2160-2165 }", "21", "21,2150,2160-2165", "21"},
		// A port that both add belongs to the first.
		{"", "21,2140-2162", "21,2140-2149,2150,2151-2159,2160-2165", "21,2140-2149,2151-2159"},
		{"", "21,2155", "21,2150,2155,2160-2165", "21,2155"},
		{"delete element inet nfq_ftphelper ports { 21 }", "990", "990,2150,2160-2165", "990"},
		{"delete element inet nfq_ftphelper ports { 990 }", "21,990", "21,990,2150,2160-2165", "21,990"},
		{"", "60000-65535", "2150,2160-2165,60000-65535", "60000-65535"},
		{"", "65535", "2150,2160-2165,65535", "65535"},
		{"", "1-65535", "1-2149,2150,2151-2159,2160-2165,2166-65534,65535", "1-2149,2151-2159,2166-65535"},
		{"flush set inet nfq_ftphelper ports", "21", "21", "21"},
	} {
		if step.hand != "" {
			nft(t, step.hand)
		}
		c.Ports = parse(t, step.want)
		got, err := SetPorts(own, c.Ports)
		if err != nil {
			t.Fatalf("from %v to %s: got %v, want no error", own, step.want, err)
		}
		if own = got; !reflect.DeepEqual(own, parse(t, step.own)) {
			t.Errorf("%s: got own ports %v, want %s", step.want, own, step.own)
		}
		if set := inSet(t); set != step.set {
			t.Errorf("%s: got set %s, want %s", step.want, set, step.set)
		}
		if got, err := Ports(); err != nil || !reflect.DeepEqual(got, merge(parse(t, step.set))) {
			t.Errorf("%s: got ports %v, %v, want %s", step.want, got, err, step.set)
		}
		if err := Check(c); err != nil {
			t.Errorf("%s: got %v, want no error", step.want, err)
		}
	}
	must.Do(t, Remove())
	if got, err := Ports(); !errors.Is(err, ErrMissing) {
		t.Errorf("without rules: got %v, %v, want ErrMissing", got, err)
	}
}

func TestSetPortsOfEachRuleset(t *testing.T) {
	newNamespace(t)
	for _, c := range rulesets {
		apply(t, c)
		own := c.Ports
		c.Ports = parse(t, "21,2205-2207")
		if _, err := SetPorts(own, c.Ports); err != nil {
			t.Errorf("%s: got %v, want no error", c.ruleset(), err)
		}
		if set := inSet(t); set != "21,2205-2207" {
			t.Errorf("%s: got set %s, want 21,2205-2207", c.ruleset(), set)
		}
		must.Do(t, Check(c))
	}
}

// TestCatchAllStays adds an element for every port by hand.
func TestCatchAllStays(t *testing.T) {
	ns := newNamespace(t)
	nft(t, "table inet nfq_ftphelper { set ports { type inet_service; flags interval; elements = { 21, * }; }; }")
	own := parse(t, "21")
	if _, err := SetPorts(own, parse(t, "990")); err != nil {
		t.Error(err)
	}
	if set := inSet(t); set != "990,*" {
		t.Errorf("got set %s, want 990,*", set)
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	must.Do(t, err)
	must.Do(t, checkPorts(conn, Config{Ports: own}))
	if got, err := Ports(); err != nil || !reflect.DeepEqual(got, parse(t, "1-65535")) {
		t.Errorf("got %v, %v, want all ports", got, err)
	}
}

func TestSetPortsFails(t *testing.T) {
	newNamespace(t)
	if _, err := SetPorts(example.Ports, example.Ports); !errors.Is(err, ErrMissing) {
		t.Errorf("without rules: got %v, want ErrMissing", err)
	}
	apply(t, example)
	if _, err := SetPorts(example.Ports, nil); err == nil || !strings.Contains(err.Error(), "no control port is given") {
		t.Errorf("without a port: got %v, want that none is given", err)
	}
	nft(t, "table inet nfq_ftphelper\ndelete table inet nfq_ftphelper\ntable inet nfq_ftphelper { set ports { type ipv4_addr; }; }")
	if _, err := SetPorts(example.Ports, example.Ports); err == nil || !strings.Contains(err.Error(), "set ports is not") {
		t.Errorf("with another set: got %v, want that it differs", err)
	}
}

func TestSetPortsNeverRemovesAPortThatStays(t *testing.T) {
	ns := newNamespace(t)
	apply(t, example)
	own, err := SetPorts(example.Ports, parse(t, "21,2100-2200"))
	must.Do(t, err)
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	must.Do(t, err)
	stop, looked := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				looked <- n
				return
			default:
			}
			// EINTR: a transaction has interrupted the dump.
			err := checkPorts(conn, Config{Ports: []PortRange{{21, 21}, {2150, 2150}}})
			if err != nil && !errors.Is(err, unix.EINTR) {
				t.Error(err)
			}
			n++
		}
	}()
	for begin := time.Now(); time.Since(begin) < time.Second; {
		for _, want := range []string{"21,2150-2160", "20-25,2140-2150", "21,2100-2200"} {
			if own, err = SetPorts(own, parse(t, want)); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	if n := <-looked; n < 10 {
		t.Errorf("got %d dumps of the set, want 10 or more", n)
	}
}

// TestSetPortsUnderTraffic counts packets to a port that stays, and those that match the set.
func TestSetPortsUnderTraffic(t *testing.T) {
	newNamespace(t)
	nft(t, `table inet nfq_ftphelper {
		set ports { type inet_service; flags interval; elements = { 21 }; }
		counter sent { }
		counter found { }
		chain input {
			type filter hook input priority 0;
			udp dport 21 counter name sent
			udp dport @ports counter name found
		}
	}`)
	stop := make(chan struct{})
	var senders sync.WaitGroup
	for range 2 {
		conn, err := net.Dial("udp", "127.0.0.1:21")
		must.Do(t, err)
		defer conn.Close()
		senders.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = conn.Write([]byte("NOOP")) // no program listens
				}
			}
		})
	}
	own, changes := parse(t, "21"), 0
	for begin := time.Now(); time.Since(begin) < 2*time.Second; {
		for _, want := range []string{"20-30,2121", "21-25", "1-21,990", "21"} {
			var err error
			if own, err = SetPorts(own, parse(t, want)); err != nil {
				t.Fatal(err)
			}
			changes++
		}
	}
	close(stop)
	senders.Wait()
	packets := regexp.MustCompile(`packets (\d+)`).FindAllStringSubmatch(nft(t, "list counters table inet nfq_ftphelper"), -1)
	if len(packets) != 2 || packets[0][1] != packets[1][1] || len(packets[0][1]) < 4 {
		t.Errorf("after %d changes of the set: got %v packets, sent and found, want equal numbers", changes, packets)
	}
}

func TestSetPortsRefusesTooManyPieces(t *testing.T) {
	newNamespace(t)
	var others []string
	for port := 2; port < 2*maxElements+8; port += 2 {
		others = append(others, strconv.Itoa(port))
	}
	list := strings.Join(others, ",")
	nft(t, "table inet nfq_ftphelper { set ports { type inet_service; flags interval; elements = { "+list+" }; }; }")
	_, err := SetPorts(nil, parse(t, "1-65535"))
	if err == nil || !strings.Contains(err.Error(), "in too many pieces") {
		t.Errorf("with %d pieces: got %v, want that they are too many", len(others), err)
	}
	if set := inSet(t); set != list {
		t.Errorf("got set %s, want %s", set, list)
	}
}
