// Package netns is a test network for FTP helpers: clients, NAT routers with
// stateful firewalls and servers, each in a network namespace of its own on the
// running kernel, with real FTP programs in them.
//
// A [Lab] is one situation (no NAT, NAT before the server, before the client,
// before both) in one address family with one helper on its routers: none, the
// kernel's nf_conntrack_ftp, or this project's daemon. Namespaces have no name
// and no mount point. They are held open by the process that made them and by
// the programs in them, which die with that process, so that the kernel removes
// everything even when a test run is killed. Any number of labs can exist at the
// same time.
//
// The addresses come from the documentation ranges of RFC 5737 and RFC 3849 and
// the private ranges of RFC 1918 and RFC 4193. No packet leaves the namespaces.
package netns
