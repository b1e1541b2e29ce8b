package media

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"code.dny.dev/ssrf"
)

// errNotPublic names no address, and is the error of a name that doesn't
// resolve too: a customer reads it, and must not learn from it which names
// exist inside our network.
var errNotPublic = errors.New("it has no address on the public internet")

// errPort is a public address at a port that sources may not use.
type errPort struct {
	port    uint16
	allowed []uint16
}

func (e errPort) Error() string {
	return fmt.Sprintf("port %d isn't one of %s (OWNBUCKET_SOURCE_PORTS)", e.port, strings.Trim(strings.ReplaceAll(fmt.Sprint(e.allowed), " ", ", "), "[]"))
}

// azureHost is Azure's host agent: a public address that answers inside a
// virtual machine only, metadata included.
var azureHost = netip.MustParsePrefix("168.63.129.16/32")

// guard refuses addresses that aren't on the public internet. It sees each
// address after name resolution, just before it is dialled, so a name that
// changes its address between a check and its use gains nothing.
type guard struct {
	rules *ssrf.Guardian
	ports []uint16
	// allow are the exceptions, from the rule for ports too.
	allow []netip.Prefix
}

// The library's list is IANA's special-purpose registries for IPv4 plus
// multicast, and for IPv6 all outside of 2000::/3 (loopback, ULA with AWS's
// fd00:ec2::254, link-local, multicast, NAT64) with 6to4, Teredo and
// documentation.
func newGuard(o Options) guard {
	var v4, v6 []netip.Prefix
	for _, prefix := range o.AllowCIDRs {
		if prefix.Addr().Is4() {
			v4 = append(v4, prefix)
		} else {
			v6 = append(v6, prefix)
		}
	}
	return guard{ports: o.SourcePorts, allow: o.AllowCIDRs, rules: ssrf.New(
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
	addr := reached(target.Addr())
	if g.rules.SafeAddr(addr) != nil {
		return errNotPublic
	}
	excepted := slices.ContainsFunc(g.allow, func(prefix netip.Prefix) bool { return prefix.Contains(addr) })
	if !excepted && !slices.Contains(g.ports, target.Port()) {
		return errPort{target.Port(), g.ports}
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
