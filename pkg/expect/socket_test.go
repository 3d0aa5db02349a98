package expect

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// ask looks up what is not there, and says what came of it.
func ask(c *Client) error {
	_, _, err := c.Lookup(tupleOf("192.0.2.1:1", "192.0.2.2:21"))
	return err
}

// put sends a request whose answer is not read.
func put(t testing.TB, c *Client) {
	t.Helper()
	c.begin()
	c.addGet(tupleOf("192.0.2.1:1", "192.0.2.2:21"))
	if _, err := unix.Write(c.fd, c.out.Buffer); err != nil {
		t.Fatal(err)
	}
}

// LoseAnswers fills the socket, so that the answers of the next exchange find no room.
func LoseAnswers(t testing.TB, c *Client) {
	t.Helper()
	must.Do(t, unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1))
	for range 100 {
		put(t, c)
	}
}

// TestExchangeFails makes exchanges fail, and looks that the next one does not.
func TestExchangeFails(t *testing.T) {
	c, err := Dial()
	must.Do(t, err)
	defer c.Close()
	whole := c.in
	for _, tt := range []struct {
		name string
		do   func() error
		want error
	}{
		{"answers to another request", func() error {
			put(t, c)
			put(t, c)
			return ask(c)
		}, errStray},
		{"an answer that is cut off", func() error {
			c.in = whole[:unix.SizeofNlMsghdr+2]
			err := ask(c)
			c.in = whole
			return err
		}, nfnetlink.ErrMalformed},
		{"answers that find no room", func() error {
			LoseAnswers(t, c)
			return ask(c)
		}, unix.ENOBUFS},
		{"no answer", func() error {
			c.begin()
			c.addGet(tupleOf("192.0.2.1:1", "192.0.2.2:21"))
			c.out.Buffer[0]++ // longer than what is sent: the kernel passes over it
			_, err := c.exchange()
			return err
		}, errNoAnswer},
	} {
		if err := ask(c); !errors.Is(err, ErrNoEntry) {
			t.Fatalf("before %s: %v", tt.name, err)
		}
		if err := tt.do(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		for range 3 {
			if err := ask(c); !errors.Is(err, ErrNoEntry) {
				t.Errorf("after %s: %v", tt.name, err)
			}
		}
	}
}

func TestClosed(t *testing.T) {
	c, err := Dial()
	must.Do(t, err)
	must.Do(t, c.Close())
	if err := ask(c); !errors.Is(err, unix.EBADF) {
		t.Errorf("look-up: %v", err)
	}
	if err := c.Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("closed again: %v", err)
	}
}
