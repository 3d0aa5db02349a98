package mangle

// Seq is a TCP sequence number, in host order. Its arithmetic is modulo 2^32
// (RFC 9293 section 3.4): a number is before another if the way forward to it is
// shorter than 2^31.
type Seq uint32

// Add returns the sequence number n bytes further on; n may be negative.
func (s Seq) Add(n int) Seq { return s + Seq(uint32(int32(n))) }

// Sub returns the distance in bytes from t to s, negative if s is before t.
func (s Seq) Sub(t Seq) int { return int(int32(s - t)) }

// Before reports whether s is before t.
func (s Seq) Before(t Seq) bool { return int32(s-t) < 0 }
