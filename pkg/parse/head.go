package parse

import (
	"bytes"
	"encoding/binary"
)

// IsClientLine reports whether a line from a client, without its line end, can be one of FTP (RFC 959 section
// 5.3): a verb, known or not, that begins with a letter, and after it a blank or the end; no control characters but those of
// Telnet; and not the request of another protocol, whose verb may be an FTP command ("STAT / HTTP/1.1"). The
// headers of such a request are none either: a colon follows their name. A blank line is one.
func IsClientLine(line []byte) bool {
	for trimmed := -1; trimmed != len(line); {
		trimmed = len(line)
		line = bytes.TrimSuffix(bytes.TrimRight(line, " \t\r"), []byte("\r\x00"))
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

// ProxyHeader returns the length of the header of the PROXY protocol, version 1 or 2, with which the stream of a
// client begins where a load balancer opened it (haproxy's proxy-protocol.txt); 0 if there is none.
func ProxyHeader(stream []byte) int {
	const (
		text, longest = "PROXY ", 107
		binary2       = "\r\n\r\n\x00\r\nQUIT\n"
		fixed         = len(binary2) + 4 // version and command, family, length
	)
	switch {
	case bytes.HasPrefix(stream, []byte(text)):
		return bytes.IndexByte(stream[:min(len(stream), longest)], '\n') + 1
	case len(stream) >= fixed && bytes.HasPrefix(stream, []byte(binary2)) && stream[len(binary2)]>>4 == 2:
		return fixed + int(binary.BigEndian.Uint16(stream[fixed-2:]))
	}
	return 0
}
