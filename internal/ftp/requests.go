package ftp

import "math/bits"

// requests are the commands that the server has not answered, oldest first: for each a bit that says
// whether it is PASV or EPSV. A server answers in order (RFC 959 section 5.4), but clients send more
// commands than are answered (a keep-alive during a transfer), servers send more final replies than there were
// commands (426, then 226), and both may cross a PASV. So a PASV or EPSV is answered by a 227 or 229,
// whatever else is outstanding. An error may be its answer, or belong to an earlier command; the client knows
// which, and with its next command the PASV is no longer outstanding.
type requests struct {
	passive uint64 // the lowest bit is the oldest
	n       uint8  // of the bits, those in use
	failed  bool   // the oldest is a PASV or EPSV, and an error has arrived
}

// maxRequests is how many commands are remembered.
const maxRequests = 64

func (r *requests) add(passive bool) {
	if r.failed {
		r.drop(1)
	}
	if r.n == maxRequests {
		if r.passive&1 != 0 && !passive {
			return
		}
		r.drop(1)
	}
	if passive {
		r.passive |= 1 << r.n
	}
	r.n++
}

func (r *requests) drop(n int) {
	r.passive >>= n
	r.n -= min(uint8(n), r.n)
	r.failed = false
}

// answer takes note of a reply other than 227 and 229. Preliminary replies answer nothing, nor does the
// greeting, though commands may have been sent before it.
func (r *requests) answer(code int) {
	switch {
	case code < 200, code == 220:
	case r.passive&1 == 0:
		r.drop(1)
	case code >= 400:
		r.failed = true
	}
}

// answerPassive takes note of a 227 or 229, and reports whether a PASV or EPSV was outstanding. One without an endpoint that
// can be read counts as an error.
func (r *requests) answerPassive(readable bool) bool {
	if r.passive == 0 {
		return false
	}
	if r.failed && r.passive != 1 {
		r.drop(1) // the error answered the oldest, this answers a later one
	}
	r.drop(bits.TrailingZeros64(r.passive))
	if readable {
		r.drop(1)
	} else {
		r.failed = true
	}
	return true
}
