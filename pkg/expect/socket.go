package expect

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/nfnetlink"
)

// socket is a connection to nfnetlink. The kernel handles a request within the system call that sends it
// (netlink_unicast_kernel of net/netlink/af_netlink.c), so the answers can be read when that returns, without
// waiting and without the runtime's poller.
type socket struct {
	fd    int
	seq   uint32   // sequence number of the last request
	out   requests // to be sent by exchange
	count int      // number of requests in out
	last  int      // offset of the last request in out
	in    []byte
}

// maxRequests is the number of requests in one exchange: an expectation, an update, and a read of its result.
const maxRequests = 3

// maxAnswer is the length in bytes of the kernel's longest answer, NLMSG_DEFAULT_SIZE: a page, but no more than
// 8 KiB.
const maxAnswer = 8192

func dialSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	// An error does not repeat the request.
	if err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err == nil {
		// A connected socket receives from the kernel only.
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

// begin starts an exchange without requests.
func (s *socket) begin() { s.out.Buffer, s.count = s.out.Buffer[:0], 0 }

// request starts a request for the family of an address. The caller appends its attributes to s.out, and calls
// end.
func (s *socket) request(typ, flags uint16, of netip.Addr) {
	s.seq++
	s.count++
	s.last = s.out.message(typ, flags, of, s.seq)
}

func (s *socket) end() { s.out.EndMessage(s.last) }

// result is the kernel's answer.
type result struct {
	errno [maxRequests]unix.Errno // by request, 0 for success
	body  []byte                  // answer to the last request; valid until the next exchange
}

// exchange sends all requests in one message and returns the result of each. The kernel handles them in order,
// and continues after one that fails. It answers a read or a failed request; no answer to another request is
// success. After an error of exchange itself it is unknown which requests were done.
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
	reads := typ == msgCtGet || typ == msgExpGet
	if _, err := retried(send, s.fd, s.out.Buffer); err != nil {
		return r, err
	}
	first := s.seq - uint32(s.count) + 1
	for answered := false; !answered; {
		n, err := retried(unix.Read, s.fd, s.in)
		switch {
		case err == unix.EAGAIN && r.errno[0] == unix.EPERM:
			// Without CAP_NET_ADMIN nfnetlink_rcv answers the first request only.
			return result{errno: [maxRequests]unix.Errno{unix.EPERM, unix.EPERM, unix.EPERM}}, nil
		case err == unix.EAGAIN && !reads:
			return r, nil
		case err == unix.EAGAIN:
			return r, errNoAnswer
		case err != nil:
			return r, err // ENOBUFS: an answer was lost
		}
		if answered, err = r.take(s.in[:n], first, s.count); err != nil {
			return r, err
		}
	}
	return r, nil
}

var (
	errNoAnswer = errors.New("the kernel did not answer")
	errStray    = errors.New("the kernel answered another request")
)

// take decodes the answers b to count requests with sequence numbers from first on. It returns true if the last
// request is answered.
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

// drain discards the remaining answers, so that the next exchange reads its own.
func (s *socket) drain() {
	for {
		if _, err := retried(unix.Read, s.fd, s.in); err != nil && err != unix.ENOBUFS {
			return
		}
	}
}

// send is send(2), which costs less than write(2) on a socket.
func send(fd int, b []byte) (int, error) { return len(b), unix.Send(fd, b, 0) }

// retried repeats read(2) or send while a signal interrupts it.
func retried(call func(int, []byte) (int, error), fd int, b []byte) (n int, err error) {
	for {
		if n, err = call(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}
