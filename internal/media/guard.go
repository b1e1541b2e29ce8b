package media

import (
	"errors"
	"net/netip"
	"syscall"

	"code.dny.dev/ssrf"
)

// errNotPublic doesn't name the address: a customer reads this error, and
// must not learn from it how names resolve inside our network.
var errNotPublic = errors.New("it resolves to an address that isn't public")

// azureHost is Azure's host agent: a public address that answers inside a
// virtual machine only, metadata included.
var azureHost = netip.MustParsePrefix("168.63.129.16/32")

// guard refuses addresses that aren't on the public internet. It sees each
// address after name resolution, just before it is dialled, so a name that
// changes its address between a check and its use gains nothing.
type guard struct{ rules *ssrf.Guardian }

// The library's list is IANA's special-purpose registries for IPv4 plus
// multicast, and for IPv6 all outside of 2000::/3 (loopback, ULA with AWS's
// fd00:ec2::254, link-local, multicast, NAT64) with 6to4, Teredo and
// documentation.
func newGuard(allow []netip.Prefix) guard {
	var v4, v6 []netip.Prefix
	for _, prefix := range allow {
		if prefix.Addr().Is4() {
			v4 = append(v4, prefix)
		} else {
			v6 = append(v6, prefix)
		}
	}
	return guard{ssrf.New(
		ssrf.WithAnyPort(),
		ssrf.WithAllowedV4Prefixes(v4...),
		ssrf.WithAllowedV6Prefixes(v6...),
		ssrf.WithDeniedV4Prefixes(azureHost),
	)}
}

// control is a net.Dialer's Control.
func (g guard) control(network, address string, _ syscall.RawConn) error {
	target, err := netip.ParseAddrPort(address)
	if err != nil || (network != "tcp4" && network != "tcp6") {
		return errNotPublic
	}
	if g.rules.SafeAddr(reached(target.Addr())) != nil {
		return errNotPublic
	}
	return nil
}

// reached is the IPv4 address that an IPv4-mapped address, or one behind a
// NAT64 gateway (the only way out of an IPv6-only network), stands for.
func reached(addr netip.Addr) netip.Addr {
	addr = addr.Unmap()
	if ssrf.IPv6NAT64Prefix.Contains(addr) {
		bytes := addr.As16()
		return netip.AddrFrom4([4]byte(bytes[12:]))
	}
	return addr
}
