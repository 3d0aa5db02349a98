package explain

import (
	"encoding/binary"
	"fmt"
)

// way says which way a packet went through the interface on which it was captured.
type way uint8

const (
	anyWay way = iota // the capture does not say
	in                // into the host
	out               // out of it
)

// place is where a packet was captured. One that is forwarded is seen at two: where it comes in,
// as it was sent, and where it goes out, behind NAT.
type place struct {
	iface int    // of the capture
	index uint32 // of the interface, in a capture of them all (Linux cooked, version 2)
	way   way
}

// Link types, of https://www.tcpdump.org/linktypes.html.
const (
	linkNull     = 0
	linkEthernet = 1
	linkRaw12    = 12
	linkRaw14    = 14
	linkRaw      = 101
	linkLoop     = 108
	linkSLL      = 113
	linkIPv4     = 228
	linkIPv6     = 229
	linkSLL2     = 276
)

// errLink is returned for a link type that is not read.
type errLink uint32

func (e errLink) Error() string {
	return fmt.Sprintf("its packets are of link type %d, which is not read: Ethernet, raw IP, Linux cooked (tcpdump -i any) and loopback are", uint32(e))
}

// network returns the IP packet in a record, nil if there is none, and where it was captured.
func (r record) network() ([]byte, place, error) {
	at := place{iface: r.iface, way: r.way}
	b := r.data
	head := func(n int) []byte {
		if len(b) < n {
			b = nil
			return nil
		}
		h := b[:n]
		b = b[n:]
		return h
	}
	etherType := -1
	switch r.link {
	case linkRaw, linkRaw12, linkRaw14, linkIPv4, linkIPv6:
	case linkNull, linkLoop: // the address family, for which each system has numbers of its own
		head(4)
	case linkEthernet:
		if h := head(14); h != nil {
			etherType = int(binary.BigEndian.Uint16(h[12:]))
		}
	case linkSLL:
		if h := head(16); h != nil {
			at.way = cookedWay(binary.BigEndian.Uint16(h))
			etherType = int(binary.BigEndian.Uint16(h[14:]))
		}
	case linkSLL2:
		if h := head(20); h != nil {
			etherType = int(binary.BigEndian.Uint16(h))
			at.index = binary.BigEndian.Uint32(h[4:])
			at.way = cookedWay(uint16(h[10]))
		}
	default:
		return nil, at, errLink(r.link)
	}
	for {
		const vlan, serviceVLAN, pppoe = 0x8100, 0x88a8, 0x8864
		switch etherType {
		case vlan, serviceVLAN:
			h := head(4)
			if h == nil {
				return nil, at, nil
			}
			etherType = int(binary.BigEndian.Uint16(h[2:]))
			continue
		case pppoe: // RFC 2516: six bytes, and the protocol of PPP
			head(8)
		case -1, 0x0800, 0x86dd:
		default:
			return nil, at, nil
		}
		break
	}
	if len(b) == 0 || b[0]>>4 != 4 && b[0]>>4 != 6 {
		return nil, at, nil
	}
	return b, at, nil
}

// cookedWay reads the packet type of Linux cooked captures (PACKET_OUTGOING is 4, those to
// this host, to all, and to many are 0, 1 and 2).
func cookedWay(kind uint16) way {
	switch kind {
	case 0, 1, 2:
		return in
	case 4:
		return out
	}
	return anyWay
}
