package netns

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nfq-ftphelper/nfq-ftphelper/test/must"
)

// Time-outs of the clients: one that no working transfer reaches, and one that a
// transfer which cannot work is given.
const (
	workingTimeout = 20 * time.Second
	failingTimeout = 2 * time.Second
)

// cell is one transfer of the matrix.
type cell struct {
	situation Situation
	family    Family
	verb      Verb
	operation Operation
	program   Program
}

func (c cell) String() string {
	return fmt.Sprintf("%s/%s/%s/%s/%s", c.situation, c.family, c.verb, c.operation, c.program)
}

func (c cell) transfer(lab *Lab, site *Site, timeout time.Duration) Transfer {
	return Transfer{
		Program: c.program, Verb: c.verb, Operation: c.operation,
		Server: lab.ServerAddress, Site: site, Timeout: timeout,
	}
}

// matrixOf lists the cells of a situation in a family.
func matrixOf(s Situation, f Family) []cell {
	var cells []cell
	for _, verb := range f.Verbs() {
		for _, operation := range Operations {
			for _, program := range Programs {
				if program.Can(verb, f) {
					cells = append(cells, cell{s, f, verb, operation, program})
				}
			}
		}
	}
	return cells
}

// TestMatrix makes every kind of transfer in every situation with our daemon,
// and with the kernel's helper beside it, and shows that the same transfers fail
// once the daemon has stopped, or without any helper.
func TestMatrix(t *testing.T) {
	var results results
	t.Run("cells", func(t *testing.T) {
		for _, situation := range Situations {
			for _, family := range Families {
				name := fmt.Sprintf("%s/%s", situation, family)
				t.Run(name+"/None", func(t *testing.T) {
					t.Parallel()
					lab := newLab(t, Config{Situation: situation, Family: family, Helper: None})
					wantFailures(t, lab, situation, family, results.column("none"))
				})
				t.Run(name+"/Kernel", func(t *testing.T) {
					t.Parallel()
					if err := CheckKernelHelper(); err != nil {
						t.Skipf("this kernel has no helper to compare with: %v", err)
					}
					lab := newLab(t, Config{Situation: situation, Family: family, Helper: Kernel})
					wantSuccesses(t, lab, family, matrixOf(situation, family), results.column("kernel"))
				})
				t.Run(name+"/Ours", func(t *testing.T) {
					t.Parallel()
					lab := newLab(t, Config{Situation: situation, Family: family, Helper: Ours})
					wantSuccesses(t, lab, family, matrixOf(situation, family), results.column("ours"))
					ctx := testContext(t, 30*time.Second)
					for _, r := range lab.Routers {
						must.Do(t, r.StopDaemon(ctx))
					}
					wantFailures(t, lab, situation, family, results.column("stopped"))
				})
			}
		}
	})
	rules := "applied by the daemon"
	if CheckQueueStatement() == nil {
		rules = "loaded by nft from " + string(rulesetFile)
	}
	t.Logf("our rules are %s\n%s", rules, results.table())
}

// wantSuccesses makes transfers, one after the other.
func wantSuccesses(t *testing.T, lab *Lab, f Family, cells []cell, record func(cell, bool)) {
	site := startSite(t, lab.Server, f, SiteOptions{})
	ctx := testContext(t, 5*time.Minute)
	failed := 0
	for _, c := range cells {
		outcome := c.transfer(lab, site, workingTimeout).Run(ctx, lab.Client)
		record(c, outcome.Err == nil)
		if outcome.Err != nil {
			t.Errorf("%s: %v\n%s", c, outcome.Err, outcome.Transcript)
			if failed++; failed == 4 {
				t.Error("the other transfers of this situation are not tried")
				break
			}
		}
	}
	if t.Failed() {
		t.Logf("vsftpd's log:\n%s", site.Log())
	}
	wantNothingInvalid(t, lab.Routers...)
}

// wantFailures tries a download with each verb.
func wantFailures(t *testing.T, lab *Lab, s Situation, f Family, record func(cell, bool)) {
	site := startSite(t, lab.Server, f, SiteOptions{})
	ctx := testContext(t, time.Minute)
	wantNoData(t, f, func(verb Verb) Outcome {
		c := cell{s, f, verb, Download, Curl}
		outcome := c.transfer(lab, site, failingTimeout).Run(ctx, lab.Client)
		record(c, outcome.Err == nil)
		return outcome
	})
}

// wantNoData tries each verb, all at the same time because each takes as long as
// its time-out. The control connection must work: it is the data connection that
// has to fail.
func wantNoData(t *testing.T, f Family, try func(Verb) Outcome) {
	t.Helper()
	var tries sync.WaitGroup
	for _, verb := range f.Verbs() {
		tries.Go(func() {
			outcome := try(verb)
			reached := func() bool { return outcome.LoggedIn && slices.Contains(outcome.Verbs, verb) }
			for range 2 { // on a busy machine one may be given up too early
				if outcome.Err != nil && !reached() {
					outcome = try(verb)
				}
			}
			if outcome.Err == nil {
				t.Errorf("%s works without a helper", verb)
			}
			if !reached() {
				t.Errorf("%s did not get as far as its data connection: %v\n%s", verb, outcome.Err, outcome.Transcript)
			}
		})
	}
	tries.Wait()
}

// results are the cells that passed and failed, by column of the table.
type results struct {
	mu    sync.Mutex
	cells map[string]map[cell]bool
}

func (r *results) column(name string) func(cell, bool) {
	return func(c cell, passed bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.cells == nil {
			r.cells = make(map[string]map[cell]bool)
		}
		if r.cells[name] == nil {
			r.cells[name] = make(map[cell]bool)
		}
		r.cells[name][c] = passed
	}
}

// tried says whether any cell of a situation has a result: a test run can be for
// some of them only.
func (r *results) tried(s Situation, f Family) bool {
	for _, cells := range r.cells {
		for c := range cells {
			if c.situation == s && c.family == f {
				return true
			}
		}
	}
	return false
}

// table has a row for each situation, family, operation and client; a cell says
// how each verb went with no helper, the kernel's, ours, and ours stopped.
func (r *results) table() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	columns := []string{"none", "kernel", "ours", "stopped"}
	var b strings.Builder
	fmt.Fprintf(&b, "each cell: %s (+ passes, x fails, . not tried)\n", strings.Join(columns, " "))
	fmt.Fprintf(&b, "%-16s %-5s %-9s %-5s", "situation", "", "", "")
	for _, verb := range Verbs {
		fmt.Fprintf(&b, "  %-8s", verb)
	}
	b.WriteByte('\n')
	for _, situation := range Situations {
		for _, family := range Families {
			for _, operation := range Operations {
				for _, program := range Programs {
					if !r.tried(situation, family) {
						continue
					}
					fmt.Fprintf(&b, "%-16s %-5s %-9s %-5s", situation, family, operation, program)
					for _, verb := range Verbs {
						b.WriteString("  ")
						for _, column := range columns {
							mark := "."
							if passed, tried := r.cells[column][cell{situation, family, verb, operation, program}]; tried {
								mark = map[bool]string{true: "+", false: "x"}[passed]
							}
							b.WriteString(mark + " ")
						}
					}
					b.WriteByte('\n')
				}
			}
		}
	}
	for _, column := range columns {
		passed := 0
		for ok := range maps.Values(r.cells[column]) {
			if ok {
				passed++
			}
		}
		fmt.Fprintf(&b, "%s: %d of %d pass\n", column, passed, len(r.cells[column]))
	}
	return b.String()
}
