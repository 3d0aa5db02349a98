package main

import (
	"fmt"
	"time"
)

// Workload is what is measured: an operation on a number of connections.
type Workload struct {
	Operation   Operation
	Connections int
	// Length of a transfer's file, in bytes.
	Length int64 `json:",omitempty"`
	// Count is the number of operations of one measurement, if it is not time that ends it.
	Count int `json:",omitempty"`
}

// String is the workload's name in tables.
func (w Workload) String() string {
	connections := "1 connection"
	if w.Connections > 1 {
		connections = fmt.Sprintf("%d connections", w.Connections)
	}
	switch w.Operation {
	case Noop:
		return "NOOP, " + connections
	case Pasv:
		return "PASV, " + connections
	}
	return fmt.Sprintf("%s transfer, %s", size(w.Length), connections)
}

// size writes a length in bytes.
func size(n int64) string {
	for _, unit := range []struct {
		name  string
		bytes int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= unit.bytes && n%unit.bytes == 0 {
			return fmt.Sprintf("%d %s", n/unit.bytes, unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// bulk says whether the workload is about bytes, not about operations.
func (w Workload) bulk() bool { return w.Length > 1<<10 }

// plan is how much is measured.
type plan struct {
	rounds   int
	duration time.Duration // of one measurement
	many     int           // connections at once
	bulk     int64         // bytes of the long transfer
	// processor that everything is bound to, or allProcessors.
	processor int
}

func (p plan) workloads() []Workload {
	return []Workload{
		{Operation: Noop, Connections: 1},
		{Operation: Noop, Connections: p.many},
		{Operation: Pasv, Connections: 1},
		{Operation: Pasv, Connections: p.many},
		{Operation: Transfer, Connections: 1, Length: 1 << 10},
		{Operation: Transfer, Connections: p.many, Length: 1 << 10},
		{Operation: Transfer, Connections: 1, Length: p.bulk, Count: 1},
	}
}
