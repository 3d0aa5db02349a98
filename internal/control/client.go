package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// maxEvent is longer than any event's line.
const maxEvent = 1 << 20

// Client queries a daemon. Its errors say what to do if no daemon serves the socket, and repeat the daemon's
// error if it cannot answer.
type Client struct {
	// Timeout is the longest time for an answer, except that of Events.
	Timeout time.Duration

	path string
	http http.Client
}

// NewClient makes a Client of the daemon whose control socket is at path.
func NewClient(path string) *Client {
	c := &Client{path: path, Timeout: 30 * time.Second}
	var d net.Dialer
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
		// A proxy of the environment does not serve the socket.
		Proxy:              nil,
		DisableCompression: true,
		MaxIdleConns:       1,
	}
	return c
}

// Flows returns the control connections, in no order.
func (c *Client) Flows(ctx context.Context) (Flows, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var answer struct {
		Flows
		errorBody
	}
	err := c.get(ctx, PathFlows, c.decode(&answer))
	if err == nil && answer.Error != "" {
		err = fmt.Errorf("the daemon could not list all: %s", answer.Error)
	}
	return answer.Flows, err
}

// Version returns the daemon's version.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	err = c.get(ctx, PathVersion, c.decode(&v))
	return v, err
}

// Status returns the daemon's status.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	err = c.get(ctx, PathStatus, c.decode(&s))
	return s, err
}

// Metrics calls read with the daemon's metrics in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return c.get(ctx, PathMetrics, read)
}

// Ready returns nil if the daemon helps FTP.
func (c *Client) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return c.get(ctx, PathReady, func(io.Reader) error { return nil })
}

// Events calls following when the daemon answers, and then each for every line of its events, until
// ctx is done or each returns an error, which it returns. It returns nil when the daemon stops, or has sent
// all events that q selects.
func (c *Client) Events(ctx context.Context, q EventsQuery, following func(), each func(line []byte) error) error {
	return c.get(ctx, PathEvents+"?"+q.Values().Encode(), func(body io.Reader) error {
		following()
		lines := bufio.NewScanner(body)
		lines.Buffer(nil, maxEvent)
		for lines.Scan() {
			if err := each(lines.Bytes()); err != nil {
				return err
			}
		}
		if err := lines.Err(); !errors.Is(err, io.ErrUnexpectedEOF) { // the daemon was killed
			return err
		}
		return nil
	})
}

func (c *Client) get(ctx context.Context, path string, read func(io.Reader) error) error {
	if c.path == "" {
		return errors.New("the path of the control socket is empty: set it with --control")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon"+path, nil)
	if err != nil {
		return err
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return c.dialError(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		var body errorBody
		if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<16)).Decode(&body); err != nil {
			return fmt.Errorf("%s answers %s: is it served by another program?", c.path, answer.Status)
		}
		return fmt.Errorf("the daemon says: %s", body.Error)
	}
	return read(answer.Body)
}

// decode returns a function that decodes an answer into v.
func (c *Client) decode(v any) func(io.Reader) error {
	return func(body io.Reader) error {
		if err := json.NewDecoder(body).Decode(v); err != nil {
			return c.dialError(err)
		}
		return nil
	}
}

// dialError adds what to do to an error of a query.
func (c *Client) dialError(err error) error {
	const start = "start the daemon (nfq-ftphelper run --rules), or name its control socket with --control"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no daemon answers: %s does not exist: %s", c.path, start)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("no daemon answers: the one that served %s has died: %s", c.path, start)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not permitted to query the daemon at %s: run as root", c.path)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the daemon at %s has not answered within %s", c.path, c.Timeout)
	}
	return fmt.Errorf("query the daemon at %s: %w", c.path, err)
}
