package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
)

func newEvents() *cobra.Command {
	var from *source
	var s *settings
	var asJSON bool
	var selected eventFilter
	var query control.EventsQuery
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Follow the events of FTP control connections",
		Long: `events prints a line for every event from now on: control connections tracked and closed, data
connections expected, used and expired, refusals with their reason, and failures.

The daemon keeps the last 4096 events: --since starts with past ones. On a terminal, lines are cut
at its width.`,
		Example: `  nfq-ftphelper events --kind expired,refused      failures only
  nfq-ftphelper events --client 203.0.113.0/24 --since 10m
  nfq-ftphelper events --since 1h --no-follow --json`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			if query.Once && query.Since.IsZero() {
				return errors.New("--no-follow needs --since: it ends after the past events")
			}
			s, err = from.read()
			return err
		},
		RunE: querying(func(ctx context.Context, cmd *cobra.Command) error {
			out := cmd.OutOrStdout()
			lines := eventLines{colour: isTerminal(out)}
			err := control.NewClient(s.Control).Events(ctx, query, func() {}, func(line []byte) error {
				var ev control.Event
				if err := json.Unmarshal(line, &ev); err != nil {
					return fmt.Errorf("the daemon sent a malformed event: is it another version? (%w)", err)
				}
				if !selected.matches(&ev) {
					return nil
				}
				if asJSON {
					_, err := fmt.Fprintf(out, "%s\n", line)
					return err
				}
				lines.today = time.Now()
				_, err := io.WriteString(out, lines.line(&ev, time.Local, widthOf(out)))
				return err
			})
			if err == nil && !query.Once {
				err = errors.New("the daemon has stopped")
			}
			return err
		}),
	}
	from = addSettings(cmd.Flags(), "control")
	cmd.Flags().Var(prefixesFlag{&selected.clients}, "client", "show only events of clients with these `addresses`, such as 203.0.113.7,2001:db8::/64 (default all)")
	cmd.Flags().Var(kindsFlag{&selected.kinds}, "kind", "show only events of these `kinds`, such as refused,expired; nfq-ftphelper(8) lists them (default all)")
	cmd.Flags().Var(sinceFlag{&query.Since, time.Now}, "since", "start with the events since this `time`: a duration such as 10m, 15:04, or 2006-01-02T15:04:05Z (default now)")
	cmd.Flags().BoolVar(&query.Once, "no-follow", false, "end after the past events")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one object per line")
	return cmd
}

// eventFilter selects events. The zero eventFilter selects all.
type eventFilter struct {
	clients []netip.Prefix
	kinds   []string
}

// matches reports whether an event is selected; one of KindMissed always is.
func (f *eventFilter) matches(ev *control.Event) bool {
	if ev.Kind == control.KindMissed {
		return true
	}
	of := func(n netip.Prefix) bool { return n.Contains(ev.Client.Addr()) }
	return (len(f.kinds) == 0 || slices.Contains(f.kinds, ev.Kind)) && (len(f.clients) == 0 || slices.ContainsFunc(f.clients, of))
}

// eventLines formats events in aligned columns.
type eventLines struct {
	colour         bool
	today          time.Time // events of other days have a date; zero for none
	client, server int       // widest so far
}

const (
	kindWidth    = len("stays-queued")
	addressWidth = len("255.255.255.255:65535")
	// wide is the number of columns from which lines are not shortened.
	wide = 120
)

// Escape sequences of a terminal (ECMA-48, SGR).
const (
	sgrReset  = "\x1b[0m"
	sgrFaint  = "\x1b[2m"
	sgrRed    = "\x1b[31m"
	sgrGreen  = "\x1b[32m"
	sgrYellow = "\x1b[33m"
)

// kindColours maps kinds to colours.
var kindColours = map[string]string{
	"used": sgrGreen, "expired": sgrYellow, "refused": sgrYellow, "encrypted": sgrYellow, "not-ftp": sgrYellow, "nonsense": sgrYellow, "unlabelled": sgrYellow, "unreadable": sgrYellow, "odd": sgrYellow,
	"failed": sgrRed, "lost": sgrRed, "unknown": sgrRed, control.KindMissed: sgrRed,
	"tracked": sgrFaint, "closed": sgrFaint,
}

// line formats an event in one line of at most width columns, without a limit if width is 0.
func (l *eventLines) line(ev *control.Event, zone *time.Location, width int) string {
	paint := func(sgr, text string) string {
		if !l.colour || sgr == "" {
			return text
		}
		return sgr + text + sgrReset
	}
	kind := paint(kindColours[ev.Kind], fmt.Sprintf("%-*s", kindWidth, ev.Kind))
	client, server := ev.Endpoints()
	at, date, line := ev.Time.In(zone), "", ""
	if today := l.today.In(zone); !l.today.IsZero() && (at.YearDay() != today.YearDay() || at.Year() != today.Year()) {
		date = "2006-01-02 "
	}
	if width > 0 && width < wide {
		l.client = max(l.client, len(client), len("255.255.255.255"))
		line = fmt.Sprintf("%s %s %-*s %s", paint(sgrFaint, at.Format(date+"15:04:05")), kind, l.client, client, ev.Short())
	} else {
		l.client, l.server = max(l.client, len(client), addressWidth), max(l.server, len(server), addressWidth)
		line = fmt.Sprintf("%s  %s  %-*s  %-*s  %s", paint(sgrFaint, at.Format(date+"15:04:05.000")), kind, l.client, client, l.server, server, ev.Describe())
	}
	if line = strings.TrimRight(line, " "); width > 0 {
		line = ansi.Truncate(line, width, "…")
	}
	return line + "\n"
}

// widthOf returns the number of columns of a terminal, 0 if out is none.
func widthOf(out io.Writer) int {
	f, ok := out.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}
