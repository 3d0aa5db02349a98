package expect

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
)

// socket speaks with nfnetlink. The kernel works on a request within the system call that
// sends it (netlink_unicast_kernel of net/netlink/af_netlink.c), so the answers are there when
// that returns: nothing ever waits for them, and the runtime's poller has no part in it.
type socket struct {
	fd    int
	seq   uint32   // of the last request
	out   requests // what exchange sends
	count int      // of the requests in out
	last  int      // where in out the last one begins
	in    []byte
}

// maxRequests is how many requests are sent at once: an expectation, an update, and a look
// whether that was done.
const maxRequests = 3

// maxAnswer is more than the kernel puts into one answer, NLMSG_DEFAULT_SIZE: a page at most,
// and at most 8 KiB.
const maxAnswer = 8192

func dialSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	// Errors don't repeat the request.
	if err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err == nil {
		// Now nobody but the kernel can send to it.
		err = unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &socket{fd: fd, out: requests{make(nfnetlink.Buffer, 0, 1024)}, in: make([]byte, maxAnswer)}, nil
}

func (s *socket) close() error {
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}

// begin forgets the requests of the last exchange.
func (s *socket) begin() { s.out.Buffer, s.count = s.out.Buffer[:0], 0 }

// request begins a request about something of the family of an address. The caller puts its
// attributes into s.out, and calls end.
func (s *socket) request(typ, flags uint16, of netip.Addr) {
	s.seq++
	s.count++
	s.last = s.out.message(typ, flags, of, s.seq)
}

func (s *socket) end() { s.out.EndMessage(s.last) }

// result is what the kernel said.
type result struct {
	errno [maxRequests]unix.Errno // by request, 0 for success
	body  []byte                  // what the last request asked for; good until the next exchange
}

// exchange sends all requests in one message and returns what became of each: the kernel does
// them in order, and goes on after one that fails. Only what asks for something is answered when
// it is done; an error comes without asking, and that none has come is success. An error of
// exchange itself leaves open what was done.
func (s *socket) exchange() (result, error) {
	r, err := s.send()
	if err != nil {
		s.drain()
		return r, err
	}
	return r, nil
}

func (s *socket) send() (r result, err error) {
	typ := binary.NativeEndian.Uint16(s.out.Buffer[s.last+4:])
	asks := typ == msgCtGet || typ == msgExpGet
	if _, err := retried(send, s.fd, s.out.Buffer); err != nil {
		return r, err
	}
	first := s.seq - uint32(s.count) + 1
	for answered := false; !answered; {
		n, err := retried(unix.Read, s.fd, s.in)
		switch {
		case err == unix.EAGAIN && r.errno[0] == unix.EPERM:
			// Without CAP_NET_ADMIN nfnetlink_rcv answers the first one alone.
			return result{errno: [maxRequests]unix.Errno{unix.EPERM, unix.EPERM, unix.EPERM}}, nil
		case err == unix.EAGAIN && !asks:
			return r, nil
		case err == unix.EAGAIN:
			return r, errNoAnswer
		case err != nil:
			return r, err // ENOBUFS: an answer got lost
		}
		if answered, err = r.take(s.in[:n], first, s.count); err != nil {
			return r, err
		}
	}
	return r, nil
}

var (
	errNoAnswer = errors.New("the kernel did not answer")
	errStray    = errors.New("the kernel answered what was not asked")
)

// take reads the answers b to count requests, whose numbers begin with first. It says whether
// the last one is answered.
func (r *result) take(b []byte, first uint32, count int) (answered bool, err error) {
	for len(b) > 0 {
		var a nfnetlink.Message
		if a, b, err = nfnetlink.Next(b); err != nil {
			return false, err
		}
		i := a.Seq - first
		last := i == uint32(count-1)
		switch {
		case i >= uint32(count) || answered:
			return false, errStray
		case a.Type == unix.NLMSG_ERROR:
			r.errno[i] = a.Errno
		case last && (a.Type == msgCtNew || a.Type == msgExpNew):
			r.body = a.Body
		default:
			return false, errStray
		}
		answered = last
	}
	return answered, nil
}

// drain throws away what is left of the answers, so that the next exchange reads its own.
func (s *socket) drain() {
	for {
		if _, err := retried(unix.Read, s.fd, s.in); err != nil && err != unix.ENOBUFS {
			return
		}
	}
}

// send is send(2), which costs less than write(2) on a socket.
func send(fd int, b []byte) (int, error) { return len(b), unix.Send(fd, b, 0) }

// retried calls read(2) or send again while a signal interrupts it.
func retried(call func(int, []byte) (int, error), fd int, b []byte) (n int, err error) {
	for {
		if n, err = call(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}
