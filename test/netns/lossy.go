package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Faults are what goes wrong on a link, in each direction by itself.
type Faults struct {
	// Loss and Duplicate are the shares of packets that get lost, and that arrive
	// twice.
	Loss, Duplicate float64
	// Delay is how long a packet takes; Reorder is the share of those that take no
	// time, and so overtake others.
	Delay   time.Duration
	Reorder float64
}

// CheckNetem returns an error if the running kernel has no netem, so that faults
// have to be those of a [Wire].
var CheckNetem = sync.OnceValue(func() error {
	h, err := NewHost("probe")
	if err != nil {
		return err
	}
	return errors.Join(h.AddNetem(context.Background(), "lo", Faults{Delay: time.Millisecond}), h.Close())
})

// AddNetem has the kernel's netem spoil what leaves the host through an interface.
func (h *Host) AddNetem(ctx context.Context, name string, f Faults) error {
	percent := func(share float64) string { return fmt.Sprintf("%g%%", 100*share) }
	args := []string{"qdisc", "add", "dev", name, "root", "netem", "limit", "10000",
		"delay", fmt.Sprintf("%dus", f.Delay.Microseconds()), "loss", percent(f.Loss)}
	if f.Duplicate > 0 {
		args = append(args, "duplicate", percent(f.Duplicate))
	}
	if f.Reorder > 0 {
		args = append(args, "reorder", percent(f.Reorder))
	}
	_, err := h.Run(ctx, "", "tc", args...)
	return err
}

var dropped = regexp.MustCompile(`\(dropped (\d+),`)

// LostToNetem is how many packets netem has lost at an interface.
func (h *Host) LostToNetem(ctx context.Context, name string) (int, error) {
	text, err := h.Run(ctx, "", "tc", "-s", "qdisc", "show", "dev", name)
	if err != nil {
		return 0, err
	}
	match := dropped.FindStringSubmatch(text)
	if match == nil {
		return 0, fmt.Errorf("no number of packets in tc's answer: %s", text)
	}
	return strconv.Atoi(match[1])
}

// Wire connects hosts by pairs of TUN interfaces, between which this process
// carries the packets, as copies, and with faults for kernels without netem.
type Wire struct {
	Faults Faults
	// Seed is that of all choices. When the packets come is not up to it.
	Seed uint64

	Passed, Lost, Duplicated, Overtook atomic.Int64

	lines atomic.Uint64
	run   sync.WaitGroup
	mu    sync.Mutex
	tuns  []*os.File
	errs  []error
}

// Connect is a [Config]'s Connect.
func (w *Wire) Connect(a *Host, aInterface string, b *Host, bInterface string) error {
	aTUN, err := w.open(a, aInterface)
	if err != nil {
		return err
	}
	bTUN, err := w.open(b, bInterface)
	if err != nil {
		return err
	}
	w.carry(aTUN, bTUN)
	w.carry(bTUN, aTUN)
	return nil
}

// open adds a TUN interface to a host: packets without a link layer.
func (w *Wire) open(h *Host, name string) (*os.File, error) {
	// Opening the device would load it, but for want of the module there is none.
	if err := loadModule(context.Background(), h, "tun"); err != nil {
		return nil, err
	}
	var fd int
	err := h.Do(func() (err error) {
		// With O_NONBLOCK, closing the file ends a read that waits.
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: TUN interface %s: %w", h.Name, name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	w.mu.Lock()
	w.tuns = append(w.tuns, f)
	w.mu.Unlock()
	return f, h.up(name)
}

// late is a packet under way.
type late struct {
	packet []byte
	due    time.Time
}

// carry carries packets in one direction until the wire is closed.
func (w *Wire) carry(from, to *os.File) {
	choice := rand.New(rand.NewPCG(w.Seed, w.lines.Add(1)))
	underWay := make(chan late, 10000)
	w.run.Go(func() {
		for l := range underWay {
			time.Sleep(time.Until(l.due))
			w.deliver(to, l.packet)
		}
	})
	w.run.Go(func() {
		defer close(underWay)
		buffer := make([]byte, 1<<16)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				w.fail(err)
				return
			}
			copies := 1
			if choice.Float64() < w.Faults.Duplicate {
				copies = 2
				w.Duplicated.Add(1)
			}
			if choice.Float64() < w.Faults.Loss {
				copies--
				w.Lost.Add(1)
			}
			for range copies {
				if choice.Float64() < w.Faults.Reorder {
					if len(underWay) > 0 {
						w.Overtook.Add(1)
					}
					w.deliver(to, buffer[:n])
					continue
				}
				underWay <- late{bytes.Clone(buffer[:n]), time.Now().Add(w.Faults.Delay)}
			}
		}
	})
}

func (w *Wire) deliver(to *os.File, packet []byte) {
	if _, err := to.Write(packet); err != nil {
		w.fail(err)
		return
	}
	w.Passed.Add(1)
}

func (w *Wire) fail(err error) {
	if errors.Is(err, os.ErrClosed) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

// Close takes the wire away. It returns what went wrong that was not to.
func (w *Wire) Close() error {
	w.mu.Lock()
	for _, f := range w.tuns {
		f.Close()
	}
	w.mu.Unlock()
	w.run.Wait()
	return errors.Join(w.errs...)
}
