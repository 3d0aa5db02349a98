package main

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// progress shows how many of the transfers are done: one line that is overwritten on a terminal, and
// elsewhere a line for each quarter.
type progress struct {
	w        io.Writer
	terminal bool

	mu          sync.Mutex
	total, made int
}

func newProgress(f *os.File) *progress { return &progress{w: f, terminal: isTerminal(f)} }

// start says how many transfers there will be.
func (p *progress) start(total int) {
	p.total = total
	p.print()
}

// done counts a transfer, whatever became of it.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made++
	p.print()
}

func (p *progress) print() {
	switch {
	case p.terminal:
		fmt.Fprintf(p.w, "\r%d of %d transfers tried", p.made, p.total)
	case p.made > 0 && p.made*4/p.total > (p.made-1)*4/p.total:
		fmt.Fprintf(p.w, "%d of %d transfers tried\n", p.made, p.total)
	}
}

// end ends the line.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprintln(p.w)
	}
	fmt.Fprintln(p.w)
}
