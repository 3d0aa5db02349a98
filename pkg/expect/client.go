package expect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of Client.
var (
	// ErrNoEntry is returned where conntrack has no entry of the control connection.
	ErrNoEntry = errors.New("conntrack has no such connection")
	// ErrNoHelper is returned where the control connection has no helper, so that the kernel refuses
	// expectations. Rules can attach a helper only with a connection's first packet.
	ErrNoHelper = errors.New("no conntrack helper is attached to the control connection")
	// ErrPortTaken is returned where another control connection expects a data connection to the same
	// address and port.
	ErrPortTaken = errors.New("another control connection expects a data connection to this address and port")
	// ErrFull is returned where the kernel's table of expectations is full.
	ErrFull = errors.New("the table of expectations is full: raise the sysctl net.netfilter.nf_conntrack_expect_max")
	// ErrNoSeqAdj is returned where the kernel does not adjust the sequence numbers of the control connection:
	// its conntrack entry was made without that extension, because it is not translated, or the helper was
	// attached after NAT.
	ErrNoSeqAdj = errors.New("the kernel does not adjust the sequence numbers of the control connection")
)

// Client is a client of ctnetlink in the network namespace in which it was opened, where it needs CAP_NET_ADMIN.
// It is not safe for concurrent use.
type Client struct {
	*socket
	helper string // last name seen; most connections have the same
}

// Dial opens a Client.
func Dial() (*Client, error) {
	s, err := dialSocket()
	if err != nil {
		return nil, fmt.Errorf("open ctnetlink socket: %w", err)
	}
	return &Client{socket: s}, nil
}

// Close closes the Client. Its expectations stay in the kernel.
func (c *Client) Close() error { return c.close() }

// Lookup returns the connection of packets with the tuple t, and their direction. It returns ErrNoEntry if there
// is none.
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

// Update is a change of a connection's entry. Its zero value changes nothing.
type Update struct {
	// Adjust is the adjustment of the sequence numbers of direction Dir, and of the acknowledgements of the
	// other one, from the next packet that the kernel releases; nil for no change.
	Dir    Direction
	Adjust *SeqAdj
	// SetLabel and ClearLabel are bits of the label (ct label in nftables) to set and to clear, 1 to 127; 0 for
	// none.
	SetLabel, ClearLabel int
}

// labels returns the bits of the label that u changes, and their new values.
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

// label is struct nf_conn_labels: 32-bit words in host byte order.
type label [16]byte

func (l *label) set(bit int) {
	word := l[bit/32*4:]
	binary.NativeEndian.PutUint32(word, binary.NativeEndian.Uint32(word)|1<<(bit%32))
}

// replaced returns l with the bits of mask taken from bits (nf_connlabels_replace of
// net/netfilter/nf_conntrack_labels.c).
func (l label) replaced(mask, bits label) label {
	for i := range l {
		l[i] = l[i]&^mask[i] | bits[i]&mask[i]
	}
	return l
}

// Update changes the entry of m and m itself: all of u or, if it returns an error, nothing. If the kernel has done
// only a part, Update restores the values in m, so m must agree with the entry where u changes it.
//
// It returns ErrNoEntry; ErrNoSeqAdj, where the kernel answers success and adjusts nothing, which Update detects by
// reading the entry until an adjustment has been accepted; or the kernel's error, such as ENOSPC where no rule sets
// labels, so that entries have no room for them.
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

// addUpdate adds the requests for u, and reports whether there are any: the change and, until an adjustment of m has
// been accepted, a read of the entry.
func (c *Client) addUpdate(m *Master, u Update) bool {
	mask, bits := u.labels()
	if u.Adjust == nil && mask == (label{}) {
		return false
	}
	c.addChange(m, u.Dir, u.Adjust, mask, bits)
	if u.Adjust != nil && !m.SeqAdjWorks {
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

// updated returns why u was not done, nil if it was. errno is the kernel's answer to the change, and body the entry,
// if it was read.
func updated(m *Master, u Update, errno unix.Errno, body []byte) error {
	switch {
	case errno != 0:
		return errno
	case u.Adjust == nil || m.SeqAdjWorks || body == nil:
		// The change was acknowledged; a failed read-back is not an error.
		return nil
	}
	now := Master{Helper: m.Helper}
	if err := now.decode(body); err != nil {
		return err
	}
	if !now.SeqAdjWorks || now.SeqAdj[u.Dir] != *u.Adjust {
		return ErrNoSeqAdj
	}
	m.SeqAdjWorks = true
	return nil
}

// Apply changes m by u.
func (m *Master) Apply(u Update) {
	if u.Adjust != nil {
		m.SeqAdj[u.Dir] = *u.Adjust
	}
	m.Labels = label(m.Labels).replaced(u.labels())
}

// restore undoes u: it sets the entry to the values in m. It is needed where the kernel refused a label, since it sets
// the sequence adjustment first.
//
// An entry that had no adjustment gets one of 0 at 0, which changes no packet. The kernel's refusal of restore is
// ignored: it has refused u for the same reason, such as a missing entry.
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
		return fmt.Errorf("undo the change of %s to %s: %w", m.Client(), m.Server(), err)
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

// Announce installs the expectation e of m and makes the update u of m's entry in one exchange: both or, if it
// returns an error, neither. Where the helper allows no more expectations, the kernel evicts the oldest one of m,
// even if the update is then refused.
//
//	kernel's answers to
//	the expectation      the update   Announce then                  and returns
//	done                 done                                        nil
//	done                 refused      removes the expectation        the error of Update
//	EEXIST, own          done         replaces the expectation       nil
//	EEXIST/EBUSY, other  done         undoes the update              ErrPortTaken: try another port
//	EEXIST/EBUSY         refused                                     the error of Update
//	ENOENT               any          undoes the update              ErrNoEntry
//	EOPNOTSUPP           any          undoes the update              ErrNoHelper
//	EMFILE               any          undoes the update              ErrFull
//	another error        any          undoes the update              that error
//	none (socket error)  none         undoes what may have been done the socket's error
func (c *Client) Announce(m *Master, e Expectation, u Update) error {
	c.begin()
	c.addExpectation(e)
	c.addUpdate(m, u)
	r, err := c.exchange()
	if err != nil {
		return errors.Join(fmt.Errorf("announce %s to %s: %w", e.Src, e.Dst, err), c.withdraw(m, e, u))
	}
	// The kernel continues after a failed request.
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
	case taken(errno) && updateErr != nil: // another port would fail as well
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

// replace removes the expectation in the place of e, and installs e.
func (c *Client) replace(e Expectation) (unix.Errno, error) {
	if err := c.Unexpect(e); err != nil {
		return 0, err
	}
	c.begin()
	c.addExpectation(e)
	r, err := c.exchange()
	return r.errno[0], err
}

// withdraw undoes an Announce of which it is unknown what was done.
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

// owns reports whether the expectation in the place of e belongs to e's master.
func (c *Client) owns(e Expectation) bool {
	there, ok, err := c.installed(e)
	return ok && err == nil && there.Master == e.Master
}

// Expected returns the remaining time of e, in whole seconds: 0 if conntrack does not have e, or has an expectation
// of another master in its place.
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

// installed returns the expectation in the place of e, if there is one.
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

// exchangeAbout sends a request for the expectation in the place of e.
func (c *Client) exchangeAbout(e Expectation, typ uint16) (result, error) {
	c.begin()
	c.request(typ, 0, e.Src)
	c.out.tuple(ctaExpectTuple, e.tuple())
	c.out.Uint16(ctaExpectZone, zone)
	c.end()
	return c.exchange()
}

// Unexpect removes an expectation. A missing one is not an error.
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
