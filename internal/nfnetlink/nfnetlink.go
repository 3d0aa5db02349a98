// Package nfnetlink encodes and decodes the messages of the kernel's netfilter subsystems: struct nlmsghdr,
// struct nfgenmsg and attributes, which may be nested (include/uapi/linux/netlink.h and
// netfilter/nfnetlink.h). It has no sockets, and allocates only the memory of a growing Buffer.
package nfnetlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrMalformed is returned for a message or an attribute with a wrong length.
var ErrMalformed = errors.New("malformed message from the kernel")

// Lengths of structures in bytes.
const (
	// HeaderLen is that of a struct nlmsghdr and a struct nfgenmsg: the offset of a message's attributes.
	HeaderLen = unix.SizeofNlMsghdr + genmsgLen

	genmsgLen = 4 // struct nfgenmsg: family, version, resource
	maxErrno  = 4095
)

// typeMask is NLA_TYPE_MASK: an attribute's type without the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const typeMask = 0x3fff

// Buffer is a sequence of messages or of attributes. Each method appends.
type Buffer []byte

// Message begins a request with the number seq; EndMessage ends it, after its attributes. typ has the
// subsystem in its high byte, and resource is that of struct nfgenmsg, such as the number of a queue.
func (b *Buffer) Message(typ, flags uint16, seq uint32, family byte, resource uint16) (start int) {
	start = len(*b)
	m := append(*b, 0, 0, 0, 0) // nlmsg_len
	m = binary.NativeEndian.AppendUint16(m, typ)
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|flags)
	m = binary.NativeEndian.AppendUint32(m, seq)
	m = append(m, 0, 0, 0, 0) // nlmsg_pid, which the kernel fills in
	*b = append(m, family, unix.NFNETLINK_V0, byte(resource>>8), byte(resource))
	return start
}

// EndMessage ends the message that begins at start.
func (b Buffer) EndMessage(start int) {
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
}

// Nest begins an attribute that consists of attributes; End ends it.
func (b *Buffer) Nest(typ uint16) (start int) { return b.begin(unix.NLA_F_NESTED | typ) }

func (b *Buffer) begin(typ uint16) (start int) {
	start = len(*b)
	a := append(*b, 0, 0) // nla_len
	*b = binary.NativeEndian.AppendUint16(a, typ)
	return start
}

// End ends the attribute that begins at start. Its value may have up to 65531 bytes.
func (b *Buffer) End(start int) {
	a := *b
	binary.NativeEndian.PutUint16(a[start:], uint16(len(a)-start))
	for len(a)%unix.NLA_ALIGNTO != 0 {
		a = append(a, 0)
	}
	*b = a
}

// Bytes appends an attribute of up to 65531 bytes.
func (b *Buffer) Bytes(typ uint16, value ...byte) {
	start := b.begin(typ)
	*b = append(*b, value...)
	b.End(start)
}

// Text appends a string, which for the kernel ends in NUL.
func (b *Buffer) Text(typ uint16, s string) {
	start := b.begin(typ)
	*b = append(append(*b, s...), 0)
	b.End(start)
}

// Uint32 appends a number in network byte order.
func (b *Buffer) Uint32(typ uint16, n uint32) {
	b.Bytes(typ, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// Uint16 appends a number in network byte order.
func (b *Buffer) Uint16(typ uint16, n uint16) { b.Bytes(typ, byte(n>>8), byte(n)) }

// Native appends a number in the byte order of this machine, as rtnetlink has it.
func (b *Buffer) Native(typ uint16, n uint32) {
	var value [4]byte
	binary.NativeEndian.PutUint32(value[:], n)
	b.Bytes(typ, value[:]...)
}

// Message is one message from the kernel.
type Message struct {
	Type uint16
	Seq  uint32 // sequence number of the request that it answers
	Port uint32 // netlink port of the process that it is about or for
	// Errno is that of an NLMSG_ERROR, 0 for an acknowledgement.
	Errno unix.Errno
	// Body follows the struct nlmsghdr; nil for an NLMSG_ERROR.
	Body []byte
}

// Next decodes the first message of b and returns the rest, or an ErrMalformed.
func Next(b []byte) (m Message, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return m, nil, fmt.Errorf("%w: %d bytes are no message", ErrMalformed, len(b))
	}
	size := binary.NativeEndian.Uint32(b)
	if size < unix.SizeofNlMsghdr || uint64(size) > uint64(len(b)) {
		return m, nil, fmt.Errorf("%w: a message of %d bytes in %d", ErrMalformed, size, len(b))
	}
	m = Message{
		Type: binary.NativeEndian.Uint16(b[4:]),
		Seq:  binary.NativeEndian.Uint32(b[8:]),
		Port: binary.NativeEndian.Uint32(b[12:]),
		Body: b[unix.SizeofNlMsghdr:size],
	}
	rest = b[min(len(b), aligned(int(size))):]
	if m.Type != unix.NLMSG_ERROR {
		return m, rest, nil
	}
	if len(m.Body) < 4 {
		return m, nil, fmt.Errorf("%w: an error without a number", ErrMalformed)
	}
	number := int32(binary.NativeEndian.Uint32(m.Body))
	if number > 0 || number < -maxErrno {
		return m, nil, fmt.Errorf("%w: error %d", ErrMalformed, number)
	}
	m.Errno, m.Body = unix.Errno(-number), nil
	return m, rest, nil
}

// Attributes are the attributes of a message, or nested ones.
type Attributes []byte

// Data returns a struct nfgenmsg and attributes, without the struct nlmsghdr, which package netlink adds.
func Data(family byte, attrs Buffer) []byte {
	return append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...)
}

// Body returns the attributes of a message's body, which follow its struct nfgenmsg.
func Body(b []byte) (Attributes, error) {
	if len(b) < genmsgLen {
		return nil, fmt.Errorf("%w: %d bytes are no message of nfnetlink", ErrMalformed, len(b))
	}
	return b[genmsgLen:], nil
}

// Next removes the first attribute, of which there must be one, and returns its type without flags and its
// value, or an ErrMalformed.
func (a *Attributes) Next() (typ uint16, value []byte, err error) {
	b := *a
	if len(b) < unix.SizeofNlAttr {
		return 0, nil, fmt.Errorf("%w: %d bytes are no attribute", ErrMalformed, len(b))
	}
	size := int(binary.NativeEndian.Uint16(b))
	if size < unix.SizeofNlAttr || size > len(b) {
		return 0, nil, fmt.Errorf("%w: an attribute of %d bytes in %d", ErrMalformed, size, len(b))
	}
	*a = b[min(len(b), aligned(size)):]
	return binary.NativeEndian.Uint16(b[2:]) & typeMask, b[unix.SizeofNlAttr:size:size], nil
}

// All yields the type without flags and the value of each attribute, up to the first malformed one.
func (a Attributes) All() iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for rest := a; len(rest) > 0; {
			typ, value, err := rest.Next()
			if err != nil || !yield(typ, value) {
				return
			}
		}
	}
}

// Find returns the value of the first attribute of a type, nil if there is none.
func (a Attributes) Find(typ uint16) []byte {
	for len(a) > 0 {
		t, value, err := a.Next()
		if err != nil || t == typ {
			return value
		}
	}
	return nil
}

// Nested returns the attributes within the first attribute of a type, none if there is none.
func (a Attributes) Nested(typ uint16) Attributes { return a.Find(typ) }

// IsNested reports whether the first attribute of a type has the flag NLA_F_NESTED, which the kernel does not
// always set.
func (a Attributes) IsNested(typ uint16) bool {
	for len(a) > 0 {
		first := a
		t, _, err := a.Next()
		if err != nil || t == typ {
			return err == nil && binary.NativeEndian.Uint16(first[2:])&unix.NLA_F_NESTED != 0
		}
	}
	return false
}

// Uint32 returns a number in network byte order, 0 if there is none.
func (a Attributes) Uint32(typ uint16) uint32 {
	if v := a.Find(typ); len(v) == 4 {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// Uint16 returns a number in network byte order, 0 if there is none.
func (a Attributes) Uint16(typ uint16) uint16 {
	if v := a.Find(typ); len(v) == 2 {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

// Text returns a string without the NUL at its end, "" if there is none.
func (a Attributes) Text(typ uint16) string { return string(bytes.TrimRight(a.Find(typ), "\x00")) }

// Native returns a number in the byte order of this machine, as rtnetlink has it, 0 if there is none.
func (a Attributes) Native(typ uint16) uint32 {
	if v := a.Find(typ); len(v) == 4 {
		return binary.NativeEndian.Uint32(v)
	}
	return 0
}

// Without returns a copy that lacks the attributes of some types.
func (a Attributes) Without(types ...uint16) (rest Buffer) {
	for len(a) > 0 {
		whole := a
		typ, _, err := a.Next()
		if err != nil {
			return rest
		}
		if !slices.Contains(types, typ) {
			rest = append(rest, whole[:len(whole)-len(a)]...)
		}
	}
	return rest
}

// aligned is NLMSG_ALIGN and NLA_ALIGN.
func aligned(n int) int { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }
