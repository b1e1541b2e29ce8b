package media

import (
	"errors"
	"net/netip"
	"testing"
)

func TestOnlyNamedPortsOfThePublicInternetAreDialled(t *testing.T) {
	tests := []struct {
		ports   []uint16
		address string
		refused bool
	}{
		{ports: nil, address: "8.8.8.8:443"},
		{ports: nil, address: "8.8.8.8:80"},
		{ports: nil, address: "[2606:4700::1111]:443"},
		{ports: nil, address: "8.8.8.8:0", refused: true},
		{ports: nil, address: "8.8.8.8:22", refused: true},
		{ports: nil, address: "8.8.8.8:8443", refused: true},
		{ports: nil, address: "8.8.8.8:65535", refused: true},
		{ports: nil, address: "[2606:4700::1111]:6379", refused: true},
		{ports: nil, address: "[64:ff9b::808:808]:25", refused: true},
		{ports: []uint16{8443}, address: "8.8.8.8:8443"},
		{ports: []uint16{8443}, address: "8.8.8.8:443", refused: true},
		{ports: nil, address: "127.0.0.1:40000"}, // an exception from the guard is one from this rule too
		{ports: nil, address: "127.0.0.2:40000", refused: true},
	}
	for _, test := range tests {
		sources, err := New(Options{SourcePorts: test.ports, AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
		if err != nil {
			t.Fatal(err)
		}
		network := "tcp4"
		if test.address[0] == '[' {
			network = "tcp6"
		}
		if err := newGuard(sources.options).control(network, test.address, nil); (err != nil) != test.refused {
			t.Errorf("%s with the ports %v: %v", test.address, test.ports, err)
		}
	}
	// A private address comes first: its error is the same at each port.
	if err := newGuard(Options{}).control("tcp4", "10.0.0.1:22", nil); !errors.Is(err, errNotPublic) {
		t.Errorf("private address: %v", err)
	}
}
