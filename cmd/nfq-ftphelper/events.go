package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
)

func newEvents() *cobra.Command {
	var from *source
	var s *settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Follow what happens to FTP control connections",
		Long: `events writes a line for everything that happens from now on, until it is stopped: connections
that are tracked, data connections that are expected, what is refused and why, what fails.`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			s, err = from.read()
			return err
		},
		RunE: asking(func(ctx context.Context, cmd *cobra.Command) error {
			out := cmd.OutOrStdout()
			var lines eventLines
			err := control.NewClient(s.Control).Events(ctx, func() {}, func(line []byte) error {
				if asJSON {
					_, err := fmt.Fprintf(out, "%s\n", line)
					return err
				}
				var ev control.Event
				if err := json.Unmarshal(line, &ev); err != nil {
					return fmt.Errorf("the daemon says what is no event: is it another version? (%w)", err)
				}
				_, err := fmt.Fprint(out, lines.line(&ev, time.Local))
				return err
			})
			if err == nil {
				err = errors.New("the daemon has stopped")
			}
			return err
		}),
	}
	from = addSettings(cmd.Flags(), "control")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one object for each line")
	return cmd
}

// eventLines writes events below each other: as wide as the widest so far.
type eventLines struct{ client, server int }

const (
	kindWidth    = len("stays-queued")
	addressWidth = len("255.255.255.255:65535")
)

func (l *eventLines) line(ev *control.Event, zone *time.Location) string {
	client, server := ev.Ends()
	l.client, l.server = max(l.client, len(client), addressWidth), max(l.server, len(server), addressWidth)
	line := fmt.Sprintf("%s  %-*s  %-*s  %-*s  %s",
		ev.Time.In(zone).Format("15:04:05.000"), kindWidth, ev.Kind, l.client, client, l.server, server, ev.Words())
	return strings.TrimRight(line, " ") + "\n"
}
