package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/control"
	"github.com/nfq-ftphelper/nfq-ftphelper/internal/jsonout"
)

func newStatus() *cobra.Command {
	var from *source
	var s *settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the daemon's status: ready or why not, rules, queues, last refusals",
		Long: `status shows on one screen whether FTP is helped, or why not, the daemon's uptime, the rules and
ports, the queues, and the last refusals.

The exit code is 0 if FTP is helped, and 1 if it is not or if no daemon answers.`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) (err error) {
			s, err = from.read()
			return err
		},
		RunE: querying(func(ctx context.Context, cmd *cobra.Command) error {
			out := cmd.OutOrStdout()
			status, err := control.NewClient(s.Control).Status(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				e := jsonout.NewEncoder(out)
				e.SetIndent("", "  ")
				err = e.Encode(status)
			} else {
				_, err = io.WriteString(out, statusScreen(&status, time.Now(), widthOf(out), isTerminal(out)))
			}
			if err == nil && !status.Ready {
				err = fmt.Errorf("FTP is not helped: %s", status.Why)
			}
			return err
		}),
	}
	from = addSettings(cmd.Flags(), "control")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// maxQueueLines is the number of queues up to which each has a line.
const maxQueueLines = 6

// statusScreen formats a status in at most 24 lines of at most width columns, without a limit if width is 0.
func statusScreen(s *control.Status, now time.Time, width int, colour bool) string {
	paint := func(sgr, text string) string {
		if !colour {
			return text
		}
		return sgr + text + sgrReset
	}
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(truncate(fmt.Sprintf(format+"\n", args...), width))
	}
	started := s.Started.In(now.Location())
	line("nfq-ftphelper %s, up for %s (since %s)", s.Version, age(now.Sub(started)), started.Format(time.DateTime))
	switch {
	case s.Ready && s.Monitor:
		line("ready      %s", paint(sgrYellow, "monitoring only: nothing is opened or changed (--monitor)"))
	case s.Ready:
		line("ready      %s", paint(sgrGreen, "yes"))
	default:
		line("ready      %s: %s", paint(sgrRed, "no"), s.Why)
	}
	rules := map[string]string{
		control.RulesApplied: "applied by the daemon", control.RulesInPlace: "in place", control.RulesDifferent: paint(sgrYellow, "missing or different from the settings"),
	}[s.Rules.Source]
	line("rules      %s, ruleset %s", rules, s.Rules.Ruleset)
	line("ports      %s", s.Rules.Ports)
	line("helper     %s", cmp.Or(s.Rules.Helper, "none"))
	switch {
	case !s.Outcomes:
		line("outcomes   %s: %s", paint(sgrYellow, "used, expired and closed are not reported"), s.OutcomesWhy)
	case s.OutcomesLost > 0:
		line("outcomes   %s", paint(sgrYellow, fmt.Sprintf("reported, but conntrack's events were lost %d times", s.OutcomesLost)))
	default:
		line("outcomes   used, expired and closed are reported")
	}
	b.WriteString("\n" + truncate(queueTable(s.Queues), width) + "\n")
	if len(s.Refusals) == 0 {
		line("last refusals: none")
		return b.String()
	}
	line("last refusals")
	lines := eventLines{colour: colour, today: now}
	room := 24 - 1 - strings.Count(b.String(), "\n") // the prompt takes one
	for i := max(0, len(s.Refusals)-room); i < len(s.Refusals); i++ {
		b.WriteString(lines.line(&s.Refusals[i], now.Location(), width))
	}
	return b.String()
}

// queueTable returns a line for each queue, or one for all if there are more than maxQueueLines.
func queueTable(queues []control.Queue) string {
	rows := [][]string{{"QUEUE", "PACKETS", "TRACKED", "OPENED", "REFUSED", "FAILED", "WAITING", "DROPPED", "OVERFLOWS"}}
	row := func(name string, q *control.Queue) {
		of := func(n *uint64) string {
			if n == nil {
				return "–"
			}
			if *n >= 10_000_000 { // keeps the line within 80 columns
				return strconv.FormatUint(*n/1_000_000, 10) + "M"
			}
			return strconv.FormatUint(*n, 10)
		}
		connections := uint64(q.Connections)
		rows = append(rows, []string{
			name, of(&q.Packets), of(&connections), of(&q.Transfers), of(&q.Refused), of(&q.Failed), of(q.Waiting), of(q.Dropped), of(&q.Overflows),
		})
	}
	if len(queues) <= maxQueueLines {
		for i := range queues {
			row(strconv.Itoa(int(queues[i].Number)), &queues[i])
		}
	} else {
		all := total(queues)
		row(fmt.Sprintf("%d-%d", queues[0].Number, queues[len(queues)-1].Number), &all)
	}
	return align(rows, 1, len(rows[0]))
}

// total adds up the queues.
func total(queues []control.Queue) (all control.Queue) {
	add := func(to **uint64, n *uint64) {
		switch {
		case n == nil:
		case *to == nil:
			sum := *n
			*to = &sum
		default:
			**to += *n
		}
	}
	for i := range queues {
		q := &queues[i]
		all.Packets += q.Packets
		all.Connections += q.Connections
		all.Transfers += q.Transfers
		all.Refused += q.Refused
		all.Failed += q.Failed
		all.Overflows += q.Overflows
		add(&all.Waiting, q.Waiting)
		add(&all.Dropped, q.Dropped)
	}
	return all
}

// age formats a duration in its two largest units.
func age(d time.Duration) string {
	s := int(d.Seconds())
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", max(0, s))
	case s < 3600:
		return fmt.Sprintf("%dm %ds", s/60, s%60)
	case s < 24*3600:
		return fmt.Sprintf("%dh %dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd %dh", s/(24*3600), s/3600%24)
}
