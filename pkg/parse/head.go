package parse

import (
	"bytes"
	"encoding/binary"
)

// IsClientLine reports whether a line from a client, without its line end, can be one of FTP (RFC 959 section
// 5.3): a verb, known or not, that begins with a letter, and after it a blank or the end; no control characters but those of
// Telnet; and not the request of another protocol, whose verb may be an FTP command ("STAT / HTTP/1.1"). The
// headers of such a request are none either: a colon follows their name. A blank line is one. Telnet's subnegotiations, which
// no FTP client sends, are none: they could hold anything.
func IsClientLine(line []byte) bool {
	for trimmed := -1; trimmed != len(line); {
		trimmed = len(line)
		line = bytes.TrimSuffix(bytes.TrimRight(line, " \t\r"), []byte("\r\x00"))
	}
	if bytes.Contains(line, []byte{iac, sb}) {
		return false
	}
	verb, end, arg := splitCommand(line)
	if verb == Unknown || arg == end && arg < len(line) {
		return arg == len(line)
	}
	for i := end; i < len(line); i++ {
		switch c := line[i]; {
		case c == iac:
			i += max(0, skipPrefix(line[i:])-1)
		case c == '\r' && i+1 < len(line) && line[i+1] == 0: // RFC 854: a carriage return alone
			i++
		case c < ' ' && c != '\t' || c == 0x7f:
			return false
		}
	}
	for _, version := range otherProtocols {
		if bytes.Contains(line[end:], version) {
			return false
		}
	}
	return true
}

// otherProtocols begin the last word of a request of HTTP, RTSP, SIP and ICAP.
var otherProtocols = [...][]byte{[]byte(" HTTP/"), []byte(" RTSP/"), []byte(" SIP/"), []byte(" ICAP/")}

// ProxyHeader returns the length of the binary header of the PROXY protocol with which the stream of a client begins where
// a load balancer opened it (version 2 of haproxy's proxy-protocol.txt); 0 if there is none. The header of version 1 is a
// line that IsClientLine accepts.
func ProxyHeader(stream []byte) int {
	const (
		signature = "\r\n\r\n\x00\r\nQUIT\n"
		fixed     = len(signature) + 4 // version and command, family, length
	)
	if len(stream) < fixed || !bytes.HasPrefix(stream, []byte(signature)) || stream[len(signature)]>>4 != 2 {
		return 0
	}
	return fixed + int(binary.BigEndian.Uint16(stream[fixed-2:]))
}
