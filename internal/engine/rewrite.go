package engine

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/stream"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/expect"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/mangle"
	"github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"
)

// Where a line is rewritten: PORT, EPRT, 227 and 229 alike.

// Why a line cannot be rewritten.
var (
	errFixed = errors.New("the line has to keep its length, since the kernel does not adjust the sequence numbers of this connection")
	errGrown = errors.New("the packet would become too long for the path")
	// The lean rules would not queue a retransmission, which would pass with its old length.
	errNotFirst = errors.New("the line does not begin its segment, and the lean rules queue segments by their first bytes: use the full ones")
)

// advertisedAs returns what the other side is to read where x is expected: only a server's own address can
// be advertised as another one.
func (e *Engine) advertisedAs(c *connection, a announcement, x expect.Expectation) netip.AddrPort {
	if a.dir == expect.Original || !e.isOwnAddress(c, a.dir, a.at.Addr()) {
		return x.Dst
	}
	return netip.AddrPortFrom(e.config.Advertise.to(&c.master, x.Dst.Addr()), x.Dst.Port())
}

// rewrites reports whether lines of the connection may have to be rewritten.
func (e *Engine) rewrites(c *connection) bool {
	return c.master.NAT() || e.config.Advertise.addr(&c.master).IsValid()
}

// rewrite records the edit that makes the line announce to, and reports whether that changes its
// length. A line that announces it already is not edited, such as a 229 that keeps its
// port. Where the line may not be resized, the human-readable text of a reply is shortened or padded.
func (e *Engine) rewrite(s *stream.Stream, a announcement, to netip.AddrPort, mayResize bool) (resized bool, err error) {
	if to == a.at {
		return false, nil
	}
	span := a.endpoint.Span
	text := a.endpoint.AppendText(make([]byte, 0, span.Len()+8), to)
	reason := errGrown
	switch {
	case bytes.Equal(text, a.line.Text[span.Start:span.End]):
		return false, nil
	case len(text) == span.Len():
		return false, s.Edit(a.line, span, text)
	case e.mode().lean && !beginsAnnouncement(e.pkt.Payload()):
		return false, errNotFirst
	case !mayResize:
		reason = errFixed
	case e.fits(s, len(text)-span.Len()):
		return true, s.Edit(a.line, span, text)
	}
	if a.dir == expect.Original {
		return false, reason
	}
	start, text, ok := a.endpoint.AppendSameLength(text[:0], a.line.Text, to)
	if !ok {
		return false, fmt.Errorf("%w, and has too little text in front of the numbers to make room: "+
			"have the server announce the right address itself, or word its reply with more text", reason)
	}
	return false, s.Edit(a.line, parse.Span{Start: start, End: span.End}, text)
}

// beginsAnnouncement reports whether the lean rules queue a segment with this payload, its retransmissions too.
func beginsAnnouncement(payload []byte) bool {
	if len(payload) < 4 {
		return false
	}
	switch first := [4]byte(payload); {
	case string(first[:3]) == "227", string(first[:3]) == "229":
		return true
	default:
		for i := range first {
			first[i] &^= 0x20
		}
		return string(first[:]) == "PORT" || string(first[:]) == "EPRT"
	}
}

// fits reports whether the packets that leave next may become n bytes longer. IPv4 can fragment
// them on their way; IPv6 cannot, but every link takes 1280 bytes (RFC 8200 section 5).
func (e *Engine) fits(s *stream.Stream, n int) bool {
	const any4, any6 = MaxPacket, 1280
	longest := len(e.pkt.Bytes())
	for _, h := range s.Held() {
		longest = max(longest, len(h.Packet.Bytes()))
	}
	return n <= 0 || longest+n <= any6 || e.pkt.Is4() && longest+n <= any4
}

// render returns the packet as the other side is to see it, or nil if it is to stay unchanged.
func (e *Engine) render(p *mangle.Packet, c *connection, dir expect.Direction) []byte {
	s, kernel := &c.streams[dir], c.master.SeqAdj[dir]
	if e.mode().monitor || s.Edits() == 0 && kernel.Before == kernel.After || !s.Renders(p) {
		return nil
	}
	first, payload, changed := s.Render(e.payload[:0], p)
	// The receiver has to see this number, and the kernel is about to adjust it. It knows the
	// last change only; for a retransmission from before that, this makes up for it.
	seq := mangle.Seq(kernel.ToSender(uint32(first)))
	if !changed && seq == p.Seq() {
		return nil
	}
	if changed {
		e.payload = payload
	} else {
		payload = p.Payload()
	}
	start := len(e.out)
	out, err := p.AppendSegment(e.out, seq, payload)
	if err != nil {
		return nil
	}
	e.out = out
	e.stats.Changed++
	return out[start:]
}
