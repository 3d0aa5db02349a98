package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/netns"
)

// row is one situation of the table.
type row struct {
	client, server string
	situation      netns.Situation
	// without and with say whether transfers with a verb worked.
	without, with map[netns.Verb]bool
	// transfers is how many have worked with the helper.
	transfers int
	// failures are the reports on transfers that failed with the helper.
	failures []string
}

// Time-outs of the clients. What cannot work is given up early.
const (
	workingTimeout = 10 * time.Second
	failingTimeout = 2 * time.Second
)

// measureAll measures the four situations, without and with the helper, all at
// the same time: each has its own network.
func measureAll(ctx context.Context, binary string, p *progress) ([]row, error) {
	rows := []row{
		{client: "public", server: "public", situation: netns.Routed},
		{client: "behind NAT", server: "public", situation: netns.SNAT},
		{client: "public", server: "behind NAT", situation: netns.DNAT},
		{client: "behind NAT", server: "behind NAT", situation: netns.TwoRouters},
	}
	p.start(len(rows) * len(netns.Verbs) * (1 + len(netns.Operations)))
	group, ctx := errgroup.WithContext(ctx)
	for i := range rows {
		r := &rows[i]
		group.Go(func() (err error) {
			r.without, err = measureWithout(ctx, r.situation, p)
			return err
		})
		group.Go(func() (err error) {
			r.with, err = r.measureWith(ctx, binary, p)
			return err
		})
	}
	return rows, group.Wait()
}

// inLab runs f in a network of its own.
func inLab(ctx context.Context, c netns.Config, f func(*netns.Lab, *netns.Site)) error {
	c.Family = netns.IPv4
	lab, err := netns.New(ctx, c)
	if err != nil {
		return err
	}
	site, err := netns.StartSite(ctx, lab.Server, c.Family, netns.SiteOptions{})
	if err != nil {
		return errors.Join(err, lab.Close())
	}
	f(lab, site)
	return errors.Join(site.Close(), lab.Close())
}

// measureWithout tries a download with each verb. Most of the time it waits for
// the time-outs, so it tries them all at once.
func measureWithout(ctx context.Context, s netns.Situation, p *progress) (map[netns.Verb]bool, error) {
	worked := make(map[netns.Verb]bool)
	var unrelated []error
	err := inLab(ctx, netns.Config{Situation: s, Helper: netns.None}, func(lab *netns.Lab, site *netns.Site) {
		var mu sync.Mutex
		var tries sync.WaitGroup
		for _, verb := range netns.Verbs {
			tries.Go(func() {
				transfer := netns.Transfer{
					Program: netns.Curl, Verb: verb, Operation: netns.Download,
					Server: lab.ServerAddress, Site: site, Timeout: failingTimeout,
				}
				outcome := transfer.Run(ctx, lab.Client)
				if outcome.Err != nil && !outcome.LoggedIn { // given up too early: the machine is busy
					transfer.Timeout = workingTimeout
					outcome = transfer.Run(ctx, lab.Client)
				}
				p.done()
				mu.Lock()
				defer mu.Unlock()
				worked[verb] = outcome.Err == nil
				if !outcome.LoggedIn {
					unrelated = append(unrelated, fmt.Errorf("%s did not get as far as to log in: %w\n%s",
						netns.Curl, outcome.Err, outcome.Transcript))
				}
			})
		}
		tries.Wait()
	})
	return worked, errors.Join(append(unrelated, err)...)
}

// measureWith downloads, uploads and lists with each verb.
func (r *row) measureWith(ctx context.Context, binary string, p *progress) (map[netns.Verb]bool, error) {
	worked := make(map[netns.Verb]bool)
	config := netns.Config{
		Situation: r.situation,
		Helper:    netns.Ours,
		Daemon:    netns.Daemon{Binary: binary, Queue: 100},
	}
	err := inLab(ctx, config, func(lab *netns.Lab, site *netns.Site) {
		for _, verb := range netns.Verbs {
			worked[verb] = true
			for _, operation := range netns.Operations {
				outcome := netns.Transfer{
					Program: netns.Curl, Verb: verb, Operation: operation,
					Server: lab.ServerAddress, Site: site, Timeout: workingTimeout,
				}.Run(ctx, lab.Client)
				p.done()
				if outcome.Err == nil {
					r.transfers++
					continue
				}
				worked[verb] = false
				r.failures = append(r.failures, fmt.Sprintf("%s with %s, client %s, server %s: %v\n%s",
					operation, verb, r.client, r.server, outcome.Err, outcome.Transcript))
				break
			}
		}
		if len(r.failures) > 0 {
			r.failures = append(r.failures, lab.Logs())
		}
	})
	return worked, err
}

// totals are over all rows.
type totals struct {
	cells, without, with, transfers int
}

func count(rows []row) totals {
	var t totals
	for _, r := range rows {
		t.transfers += r.transfers
		for _, verb := range netns.Verbs {
			t.cells++
			if r.without[verb] {
				t.without++
			}
			if r.with[verb] {
				t.with++
			}
		}
	}
	return t
}
