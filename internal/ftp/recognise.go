package ftp

import "github.com/nfq-ftphelper/nfq-ftphelper/pkg/parse"

// A client can be made to send a server of the attacker's choice a request of another protocol, whose body is the
// attacker's and holds "PORT …" (NAT slipstreaming). So PORT and EPRT open something only on a connection
// that is recognised as FTP: the client was read from its first byte, and all its lines up to a
// login are lines of an FTP client. What the server sends proves nothing: the server is the attacker.

// maxJunk is how many lines from a client that cannot be FTP, or announce nothing that can be read, make the connection
// Nonsense, if no other line comes between them.
const maxJunk = 64

// isFTP reports whether a line from the client is to be read, with the result of parsing it. It changes the state of a
// connection that is not FTP.
func (c *Control) isFTP(text []byte, cut bool, verb parse.Verb, err error) bool {
	ok := !c.head && verb != parse.Unknown || parse.IsClientLine(text)
	if c.junk++; ok && err == nil {
		c.junk = 0
	}
	if c.head && (cut || !ok) || c.junk == maxJunk {
		c.GiveUp()
	}
	return c.state == Reading
}

// login takes a verb from the client, and reports whether it makes the connection recognised.
func (c *Control) login(v parse.Verb) bool {
	if !c.head || v != parse.USER && v != parse.AUTH {
		return false
	}
	c.head, c.recognised = false, true
	return true
}

// CommandLost takes note of bytes from the client that were not read: they may have been those of another protocol.
func (c *Control) CommandLost() { c.head = false }
