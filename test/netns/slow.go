package netns

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"
)

// SlowEnv names the environment variable that overrides how many times slower than an idle, ordinary
// machine this one is taken to be.
const SlowEnv = "FTPHELPER_SLOW"

// Slowness is the factor that [Scale] stretches time-outs by: how many times slower this machine does some work like
// the tests' than an idle, ordinary one, measured once in each process; at least 1. A busy
// machine is slow, and so is an emulated one.
var Slowness = sync.OnceValue(func() float64 {
	text := os.Getenv(SlowEnv)
	if text == "" {
		return measureSlowness()
	}
	factor, err := strconv.ParseFloat(text, 64)
	if err != nil || factor < 1 {
		fmt.Fprintf(os.Stderr, "%s=%q is not a number from 1 up; it is measured instead\n", SlowEnv, text)
		return measureSlowness()
	}
	return factor
})

// Scale stretches a time-out by the [Slowness] of this machine.
func Scale(d time.Duration) time.Duration {
	return time.Duration(float64(d) * Slowness())
}

const (
	// ordinaryWork is what work may take on an ordinary machine that has other work, too: without any it takes a quarter.
	ordinaryWork = 30 * time.Millisecond
	// slownessSamples is how often work is timed: another program may pause between two bursts.
	slownessSamples = 10
)

// measureSlowness is the slowest of several samples: what has to be waited for is the worst that happens.
func measureSlowness() float64 {
	var slowest time.Duration
	for range slownessSamples {
		begin := time.Now()
		work()
		slowest = max(slowest, time.Since(begin))
	}
	return max(1, float64(slowest)/float64(ordinaryWork))
}

// work is a little of what the tests do: it starts programs, passes messages between threads, and computes.
func work() {
	for range 4 {
		_ = exec.Command("/bin/true").Run() // without that program there is less work: no matter
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return
	}
	defer reader.Close()
	content := make([]byte, 1<<20)
	go func() {
		defer writer.Close()
		for chunk := range slices.Chunk(content, 1<<10) {
			if _, err := writer.Write(chunk); err != nil {
				return
			}
		}
	}()
	_, _ = io.CopyBuffer(io.Discard, struct{ io.Reader }{reader}, make([]byte, 1<<10))
	sha256.Sum256(content)
}
