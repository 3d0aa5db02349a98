package expect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of Client, for what a caller decides on.
var (
	// ErrNoEntry is returned where conntrack does not know the control connection.
	ErrNoEntry = errors.New("conntrack has no such connection")
	// ErrNoHelper is returned where the control connection has no helper attached, so that
	// the kernel takes no expectation for it. A helper can only be attached to a
	// connection's first packet.
	ErrNoHelper = errors.New("no conntrack helper is attached to the control connection")
	// ErrPortTaken is returned where another control connection expects a data connection
	// at the same place.
	ErrPortTaken = errors.New("another control connection expects a data connection there")
	// ErrFull is returned where the kernel's table of expectations is full.
	ErrFull = errors.New("the table of expectations is full: raise the sysctl net.netfilter.nf_conntrack_expect_max")
	// ErrNoSeqAdj is returned where the kernel does not adjust the sequence numbers of the
	// control connection: its conntrack entry got no room for that when it was made,
	// because it is not translated, or the helper was attached after NAT.
	ErrNoSeqAdj = errors.New("the kernel does not adjust the sequence numbers of the control connection")
)

// Client talks to conntrack over ctnetlink, in the network namespace in which it was opened.
// It needs CAP_NET_ADMIN there. It is not safe for concurrent use.
type Client struct {
	*socket
	helper string // the name that was seen last: most connections have the same
}

// Dial opens a Client.
func Dial() (*Client, error) {
	s, err := dialSocket()
	if err != nil {
		return nil, fmt.Errorf("open ctnetlink socket: %w", err)
	}
	return &Client{socket: s}, nil
}

// Close closes the Client. What it has installed stays in the kernel.
func (c *Client) Close() error { return c.close() }

// Lookup finds the connection to which packets with the tuple t belong, and says in which
// direction they go. It returns ErrNoEntry if there is none.
func (c *Client) Lookup(t Tuple) (*Master, Direction, error) {
	m := &Master{Helper: c.helper}
	if err := c.get(m, t); err != nil {
		return nil, Original, err
	}
	if m.Helper != "" {
		c.helper = m.Helper
	}
	if t == m.Tuples[Original] {
		return m, Original, nil
	}
	return m, Reply, nil
}

// get reads the connection of t into m.
func (c *Client) get(m *Master, t Tuple) error {
	c.begin()
	c.addGet(t)
	r, err := c.exchange()
	switch {
	case err != nil:
	case r.errno[0] == unix.ENOENT:
		return ErrNoEntry
	case r.errno[0] != 0:
		err = r.errno[0]
	default:
		if err = m.decode(r.body); err == errOtherZone {
			return ErrNoEntry
		}
	}
	if err != nil {
		return fmt.Errorf("look up control connection %s to %s: %w", t.Src, t.Dst, err)
	}
	return nil
}

func (c *Client) addGet(t Tuple) {
	c.request(msgCtGet, 0, t.Src.Addr())
	c.out.tuple(ctaTupleOrig, t)
	c.out.Uint16(ctaZone, zone)
	c.end()
}

// Update is what is to change in a connection's entry. Its zero value changes nothing.
type Update struct {
	// Adjust is how the kernel is to adjust the sequence numbers of direction Dir, and the
	// acknowledgements of the other one, from the next packet that it lets go; nil leaves
	// that alone.
	Dir    Direction
	Adjust *SeqAdj
	// SetLabel and ClearLabel are bits of the label (ct label in nftables) to set and to clear,
	// 1 to 127; 0 is none.
	SetLabel, ClearLabel int
}

// labels returns which bits of the label u is about, and what they are to be.
func (u Update) labels() (mask, bits label) {
	if u.ClearLabel != 0 {
		mask.set(u.ClearLabel)
	}
	if u.SetLabel != 0 {
		mask.set(u.SetLabel)
		bits.set(u.SetLabel)
	}
	return mask, bits
}

// label is struct nf_conn_labels: words in the kernel's order.
type label [16]byte

func (l *label) set(bit int) {
	word := l[bit/32*4:]
	binary.NativeEndian.PutUint32(word, binary.NativeEndian.Uint32(word)|1<<(bit%32))
}

// replaced returns l with the bits of mask as they are in bits (nf_connlabels_replace of
// net/netfilter/nf_conntrack_labels.c).
func (l label) replaced(mask, bits label) label {
	for i := range l {
		l[i] = l[i]&^mask[i] | bits[i]&mask[i]
	}
	return l
}

// Update changes the entry of m: all of u or, if it returns an error, nothing. Then m has the
// new values, or still the old ones; these are what is put back where the kernel had done a
// part, so m must be what the entry has, where u is about it.
//
// It returns ErrNoEntry; ErrNoSeqAdj, where the kernel answers success and adjusts nothing,
// which the entry is read for until it has been seen to adjust; or what the kernel said:
// ENOSPC where no rule sets labels, as it has room for them only then.
func (c *Client) Update(m *Master, u Update) error {
	c.begin()
	if !c.addUpdate(m, u) {
		return nil
	}
	r, err := c.exchange()
	if err == nil {
		err = updated(m, u, r.errno[0], r.body)
	}
	if err != nil {
		return errors.Join(updateError(m, err), c.restore(m, u))
	}
	m.Apply(u)
	return nil
}

// addUpdate adds the requests for u, and reports whether there are any: the change and, until m
// has been seen to be adjustable, a look at what the kernel made of it.
func (c *Client) addUpdate(m *Master, u Update) bool {
	mask, bits := u.labels()
	if u.Adjust == nil && mask == (label{}) {
		return false
	}
	c.addChange(m, u.Dir, u.Adjust, mask, bits)
	if u.Adjust != nil && !m.Adjustable {
		c.addGet(m.Tuples[Original])
	}
	return true
}

func (c *Client) addChange(m *Master, dir Direction, a *SeqAdj, mask, bits label) {
	c.request(msgCtNew, 0, m.Client().Addr())
	c.out.tuple(ctaTupleOrig, m.Tuples[Original])
	c.out.Uint16(ctaZone, zone)
	if a != nil {
		c.out.seqAdj(dir, *a)
	}
	if mask != (label{}) {
		c.out.Bytes(ctaLabels, bits[:]...)
		c.out.Bytes(ctaLabelsMask, mask[:]...)
	}
	c.end()
}

// updated returns why u is not done after all, if it isn't: errno is what the kernel said to the
// change, and body what it has now, if it was asked.
func updated(m *Master, u Update, errno unix.Errno, body []byte) error {
	switch {
	case errno != 0:
		return errno
	case u.Adjust == nil || m.Adjustable || body == nil:
		// It did answer success. That it can't be read back, of all times, changes nothing.
		return nil
	}
	now := Master{Helper: m.Helper}
	if err := now.decode(body); err != nil {
		return err
	}
	if !now.Adjustable || now.SeqAdj[u.Dir] != *u.Adjust {
		return ErrNoSeqAdj
	}
	m.Adjustable = true
	return nil
}

// Apply makes m what its entry is after u.
func (m *Master) Apply(u Update) {
	if u.Adjust != nil {
		m.SeqAdj[u.Dir] = *u.Adjust
	}
	m.Labels = label(m.Labels).replaced(u.labels())
}

// restore makes the entry of m again, in what u is about, what m says that it is. The kernel
// sets the sequence adjustment first and the label then, so that where it refuses the label
// the adjustment is done already.
//
// No adjustment is one of 0 at 0 from then on, which changes no packet. If the kernel refuses
// this, it has refused u as well: there is no entry, or no room.
func (c *Client) restore(m *Master, u Update) error {
	old := u.Adjust
	if old != nil {
		old = &m.SeqAdj[u.Dir]
	}
	mask, _ := u.labels()
	if old == nil && mask == (label{}) {
		return nil
	}
	c.begin()
	c.addChange(m, u.Dir, old, mask, label{}.replaced(mask, m.Labels))
	if _, err := c.exchange(); err != nil {
		return fmt.Errorf("take back the change of %s to %s: %w", m.Client(), m.Server(), err)
	}
	return nil
}

func updateError(m *Master, err error) error {
	switch err {
	case unix.ENOENT:
		return ErrNoEntry
	case ErrNoSeqAdj:
		return err
	}
	return fmt.Errorf("change the conntrack entry of %s to %s: %w", m.Client(), m.Server(), err)
}

// Announce installs the expectation e of m and makes the update u of m's entry: both or, if it
// returns an error, neither, in one exchange with the kernel. An expectation of the same master
// for the same place is replaced. Where the helper allows no more, the kernel drops the oldest
// one of m for e; that one does not come back if the update is refused.
//
// It returns ErrPortTaken, for which another port may help, ErrNoEntry, ErrNoHelper, ErrFull,
// the errors of Update, or what the kernel said.
func (c *Client) Announce(m *Master, e Expectation, u Update) error {
	c.begin()
	c.addExpectation(e)
	c.addUpdate(m, u)
	r, err := c.exchange()
	if err != nil {
		return errors.Join(fmt.Errorf("announce %s to %s: %w", e.Src, e.Dst, err), c.withdraw(m, e, u))
	}
	// The kernel goes on after what fails, so what it has done beside that is taken back.
	errno, updateErr := r.errno[0], updated(m, u, r.errno[1], r.body)
	if errno == unix.EEXIST && updateErr == nil && c.owns(e) {
		if errno, err = c.replace(e); err != nil {
			return errors.Join(fmt.Errorf("announce %s to %s: %w", e.Src, e.Dst, err), c.withdraw(m, e, u))
		}
	}
	switch {
	case errno == 0 && updateErr == nil:
		m.Apply(u)
		return nil
	case errno == 0:
		err = errors.Join(updateError(m, updateErr), c.Unexpect(e))
	case taken(errno) && updateErr != nil: // another port would not help
		err = updateError(m, updateErr)
	default:
		err = expectError(e, errno)
	}
	return errors.Join(err, c.restore(m, u))
}

func taken(errno unix.Errno) bool { return errno == unix.EBUSY || errno == unix.EEXIST }

func (c *Client) addExpectation(e Expectation) {
	c.request(msgExpNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, e.Src)
	c.out.expectation(e)
	c.out.Uint16(ctaExpectZone, zone)
	c.end()
}

// replace puts e in the place of the expectation that is there.
func (c *Client) replace(e Expectation) (unix.Errno, error) {
	if err := c.Unexpect(e); err != nil {
		return 0, err
	}
	c.begin()
	c.addExpectation(e)
	r, err := c.exchange()
	return r.errno[0], err
}

// withdraw takes back whatever was done of announcing e with u.
func (c *Client) withdraw(m *Master, e Expectation, u Update) (err error) {
	if c.owns(e) {
		err = c.Unexpect(e)
	}
	return errors.Join(err, c.restore(m, u))
}

func expectError(e Expectation, errno unix.Errno) error {
	switch {
	case taken(errno):
		return ErrPortTaken
	case errno == unix.ENOENT:
		return ErrNoEntry
	case errno == unix.EOPNOTSUPP:
		return ErrNoHelper
	case errno == unix.EMFILE:
		return ErrFull
	}
	return fmt.Errorf("install expectation %s to %s: %w", e.Src, e.Dst, errno)
}

// owns reports whether the expectation that is in the place of e belongs to e's master.
func (c *Client) owns(e Expectation) bool {
	there, ok, err := c.installed(e)
	return ok && err == nil && there.Master == e.Master
}

// Expected returns for how long e is still good: 0 if conntrack does not have it (any more), or
// has another master's in its place. It is exact to a second.
func (c *Client) Expected(e Expectation) (time.Duration, error) {
	there, ok, err := c.installed(e)
	if err != nil {
		return 0, fmt.Errorf("look up expectation %s to %s: %w", e.Src, e.Dst, err)
	}
	if !ok || there.Master != e.Master {
		return 0, nil
	}
	return time.Duration(there.Left) * time.Second, nil
}

// installed returns the expectation that is in the place of e, if there is one.
func (c *Client) installed(e Expectation) (there Event, ok bool, err error) {
	r, err := c.exchangeAbout(e, msgExpGet)
	switch {
	case err != nil:
		return there, false, err
	case r.errno[0] == unix.ENOENT:
		return there, false, nil
	case r.errno[0] != 0:
		return there, false, r.errno[0]
	}
	there, err = decodeExpectation(r.body)
	return there, err == nil, err
}

// exchangeAbout sends a request that names only the place of e.
func (c *Client) exchangeAbout(e Expectation, typ uint16) (result, error) {
	c.begin()
	c.request(typ, 0, e.Src)
	c.out.tuple(ctaExpectTuple, e.tuple())
	c.out.Uint16(ctaExpectZone, zone)
	c.end()
	return c.exchange()
}

// Unexpect removes an expectation. That there is none is not an error.
func (c *Client) Unexpect(e Expectation) error {
	r, err := c.exchangeAbout(e, msgExpDelete)
	if errno := r.errno[0]; err == nil && errno != 0 && errno != unix.ENOENT {
		err = errno
	}
	if err != nil {
		return fmt.Errorf("remove expectation %s to %s: %w", e.Src, e.Dst, err)
	}
	return nil
}
