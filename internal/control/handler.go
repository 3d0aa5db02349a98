package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/jsonout"
)

// healthTimeout is the daemon's time for Live and Ready, statusTimeout for Status.
const (
	healthTimeout = 2 * time.Second
	statusTimeout = 5 * time.Second
)

// NewHandler serves all paths of the control socket; metrics serves PathMetrics.
func NewHandler(d Daemon, metrics http.Handler) http.Handler {
	p := healthPaths(d, metrics)
	p[PathFlows] = func(w http.ResponseWriter, r *http.Request) { serveFlows(w, r, d) }
	p[PathEvents] = func(w http.ResponseWriter, r *http.Request) { serveEvents(w, r, d) }
	p[PathStatus] = func(w http.ResponseWriter, r *http.Request) { serveStatus(w, r, d) }
	p[PathVersion] = func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, d.Version()) }
	return p
}

// NewHealthHandler serves PathMetrics, PathLive and PathReady, which name no client or server.
func NewHealthHandler(d Daemon, metrics http.Handler) http.Handler { return healthPaths(d, metrics) }

func healthPaths(d Daemon, metrics http.Handler) paths {
	return paths{
		PathMetrics: metrics.ServeHTTP,
		PathLive:    health(d, d.Live),
		PathReady:   health(d, d.Ready),
	}
}

// paths maps each path to its handler.
type paths map[string]http.HandlerFunc

// ServeHTTP implements http.Handler.
func (p paths) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if serve, ok := p[r.URL.Path]; ok {
		serve(w, r)
		return
	}
	known := strings.Join(slices.Sorted(maps.Keys(p)), ", ")
	WriteError(w, http.StatusNotFound, fmt.Errorf("unknown path %.100q: the paths are %s", r.URL.Path, known))
}

// health answers "ok" or the error of check.
func health(d Daemon, check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
		defer cancel()
		if err := check(ctx); err != nil {
			WriteError(w, http.StatusServiceUnavailable, err)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		answer := "ok"
		if d.Version().Monitor {
			answer = "ok, monitoring only: nothing is opened or changed"
		}
		fmt.Fprintln(w, answer)
	}
}

// serveFlows writes each Flow as it gets it: there may be many.
func serveFlows(w http.ResponseWriter, r *http.Request, d Daemon) {
	out := bufio.NewWriterSize(w, 32<<10)
	begun := false
	begin := func() {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/json")
			out.WriteString(`{"flows":[`)
		}
	}
	separator, closing := "\n", 0
	unchecked, err := d.Flows(r.Context(), func(f Flow) error {
		begin()
		if !f.Live() {
			closing++
		}
		text, err := json.Marshal(f)
		if err != nil {
			return err
		}
		out.WriteString(separator)
		separator = ",\n"
		_, err = out.Write(text)
		return err
	})
	if err != nil && !begun {
		WriteError(w, http.StatusServiceUnavailable, err)
		return
	}
	begin()
	fmt.Fprintf(out, "\n],\"closing\":%d,\"unchecked\":%d", closing, unchecked)
	if err != nil { // the status has been sent
		text, _ := json.Marshal(err.Error())
		fmt.Fprintf(out, ",\"error\":%s", text)
	}
	out.WriteString("}\n")
	out.Flush()
}

func serveStatus(w http.ResponseWriter, r *http.Request, d Daemon) {
	ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
	defer cancel()
	s, err := d.Status(ctx)
	if err != nil {
		WriteError(w, http.StatusServiceUnavailable, err)
		return
	}
	writeJSON(w, http.StatusOK, s)
}

// EventsQuery is the query of PathEvents.
type EventsQuery struct {
	// Since selects the past events from this time on; none if it is zero.
	Since time.Time
	// Once ends the answer after the past events.
	Once bool
}

// Values returns the query of a URL: "since" is a time as in RFC 3339, "follow" can be "no".
func (q EventsQuery) Values() url.Values {
	v := make(url.Values)
	if !q.Since.IsZero() {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	if q.Once {
		v.Set("follow", "no")
	}
	return v
}

// parseEventsQuery is the inverse of Values.
func parseEventsQuery(v url.Values) (q EventsQuery, err error) {
	if since := v.Get("since"); since != "" {
		if q.Since, err = time.Parse(time.RFC3339Nano, since); err != nil {
			return q, fmt.Errorf("since=%.50q is not a time such as 2006-01-02T15:04:05Z", since)
		}
	}
	switch follow := v.Get("follow"); follow {
	case "", "yes":
	case "no":
		q.Once = true
	default:
		return q, fmt.Errorf("follow=%.50q is neither yes nor no", follow)
	}
	return q, nil
}

// serveEvents writes events until the client or the daemon closes the connection. A client that does not
// read keeps its connection, and misses events.
func serveEvents(w http.ResponseWriter, r *http.Request, d Daemon) {
	q, err := parseEventsQuery(r.URL.Query())
	if err != nil {
		WriteError(w, http.StatusBadRequest, err)
		return
	}
	if q.Since.IsZero() {
		q.Since = time.Now()
	}
	f, err := d.Follow(q.Since)
	if err != nil {
		WriteError(w, http.StatusServiceUnavailable, err)
		return
	}
	defer f.Close()
	c := http.NewResponseController(w)
	if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})); err != nil {
		WriteError(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := jsonout.NewEncoder(w)
	missed := func(n uint64) error {
		if n == 0 {
			return nil
		}
		return lines.Encode(Event{Time: time.Now(), Kind: KindMissed, Missed: n})
	}
	for _, ev := range f.Backlog() {
		if lines.Encode(ev) != nil {
			return
		}
	}
	if q.Once {
		return
	}
	for {
		if len(f.Events()) == 0 && errors.Join(missed(f.Missed()), c.Flush()) != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case ev := <-f.Events():
			n := ev.Missed
			ev.Missed = 0
			if errors.Join(missed(n), lines.Encode(ev)) != nil {
				return
			}
		}
	}
}

// errorBody is the body of an error.
type errorBody struct {
	Error string `json:"error"`
}

// WriteError answers a request with an error.
func WriteError(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, errorBody{err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = jsonout.NewEncoder(w).Encode(v) // an error means that the client has closed the connection
}
