package netns

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFirstLine has clients that ask for a transfer as soon as they have logged in, on one connection after another
// between the same ports: each is known to be seen from its beginning.
func TestFirstLine(t *testing.T) {
	t.Parallel()
	for _, queues := range []int{1, 4} {
		for _, situation := range []Situation{Routed, DNATMasquerade} {
			for _, family := range Families {
				t.Run(fmt.Sprintf("%s/%s/%d queues", situation, family, queues), func(t *testing.T) {
					t.Parallel()
					lab := newLab(t, Config{Situation: situation, Family: family, Helper: Ours, Daemon: Daemon{BackEnd: BackEnd{Queues: queues}}})
					startScripted(t, lab.Server, netip.AddrPortFrom(lab.Addresses.Server.Addr(), 21), script{})
					for i := range 5 {
						client := dialAgain(t, lab)
						verb := EPRT
						if family == IPv4 && i%2 == 0 {
							verb = PORT
						}
						client.do("331", "USER anonymous")
						name := fmt.Sprintf("%s-%d", verb, i)
						wantContent(t, name, client.fetchBy(verb, name, lab.ServerAddress), fileContent(name))
						client.quit()
						client.conn.Close()
					}
					wantAllHelped(t, lab.Routers...)
				})
			}
		}
	}
}

// dialAgain opens a control connection from the classic port, as soon as the connection before is closed.
func dialAgain(t testing.TB, lab *Lab) *scriptedClient {
	t.Helper()
	ctx := testContext(t, 10*time.Second)
	for {
		conn, err := lab.Client.Dial(ctx, netip.AddrPortFrom(lab.Addresses.Client.Addr(), classicControlPort), netip.AddrPortFrom(lab.ServerAddress, 21))
		if errors.Is(err, unix.EADDRNOTAVAIL) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		client := &scriptedClient{t: t, host: lab.Client, write: writeOnce, conn: conn, in: bufio.NewReader(conn)}
		client.want("220")
		return client
	}
}

// TestFastOpen has a client whose SYN carries the head of an upload (TCP Fast Open, RFC 7413), so that what
// follows the handshake begins in the middle of it.
func TestFastOpen(t *testing.T) {
	t.Parallel()
	for _, ruleset := range []string{"full", "lean"} {
		t.Run(ruleset, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Config{Situation: DNAT, Family: IPv4, Helper: Ours, Daemon: Daemon{BackEnd: BackEnd{Helper: "carrier", Ruleset: ruleset}}})
			for _, h := range []*Host{lab.Client, lab.Server} {
				// Both ways, without cookies.
				if err := h.Sysctl("ipv4.tcp_fastopen", fmt.Sprint(0x1|0x2|0x4|0x200|0x400)); err != nil {
					t.Fatal(err)
				}
			}
			listener, err := lab.Server.Listen(testContext(t, 10*time.Second), netip.AddrPortFrom(lab.Addresses.Server.Addr(), 21))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { listener.Close() })
			err = lab.Client.Do(func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				t.Cleanup(func() { unix.Close(fd) })
				return unix.Sendto(fd, []byte("POST / HTTP/1.1\r\n"), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: 21, Addr: lab.ServerAddress.As4()})
			})
			if err != nil {
				t.Fatal(err)
			}
			router, ctx := lab.ServerRouter(), testContext(t, 20*time.Second)
			for {
				entries, err := router.Run(ctx, "", "conntrack", "-L", "-p", "tcp", "--orig-port-dst", "21")
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(entries, "ESTABLISHED") {
					continue
				}
				if strings.Contains(entries, "helper=") {
					t.Errorf("a helper is attached to a connection whose SYN carries data:\n%s", entries)
				}
				break
			}
			if counts := stopAndCount(t, router); counts["packets"] != 0 {
				t.Errorf("packets of it were read: %v", counts)
			}
		})
	}
}
