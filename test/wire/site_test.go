// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"os/exec"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// sameAddress lets cmp compare addresses.
var sameAddress = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

// Names of the places on a node: the node itself and its containers.
const (
	// host is the node, with the uplink's address.
	host = "host"
	// hidden is masqueraded, except towards the other node's open one.
	hidden = "hidden"
	// open is in a range of its own and not masqueraded.
	open = "open"
	// narrow is masqueraded, and its MTU is narrowMTU.
	narrow = "narrow"
	// published has mapped ports and nothing else.
	published = "published"
	// bridged is a port of a bridge, masqueraded.
	bridged = "bridged"
	// station is a macvlan child of the card: it has an address of the wire.
	station = "station"
)

// mapped are the ports of the node that lead to a place, and where to.
type mapped struct {
	place            string
	nodeTCP, nodeUDP uint16
}

// Ports that the node's lead to.
const publishedTCP, publishedUDP = 80, 53

// mappings are one for each way in which a container is part of a network.
func mappings() []mapped {
	return []mapped{{published, 8080, 5300}, {bridged, 8081, 5301}, {station, 8082, 5302}}
}

// in returns the network with the mapped ports.
func (m mapped) in(network nodetest.Network) nodetest.Network {
	return network.With("runtimeConfig", map[string]any{"portMappings": []map[string]any{
		{"hostPort": m.nodeTCP, "containerPort": publishedTCP, "protocol": "tcp"},
		{"hostPort": m.nodeUDP, "containerPort": publishedUDP, "protocol": "udp"},
	}})
}

// narrowMTU is less than the wire's 1500 bytes.
const narrowMTU = 1300

// place is somewhere on a node, with its addresses by family.
type place struct {
	IPv4, IPv6 netip.Addr
	ns         *nstest.NS
}

// family says which addresses are meant.
type family struct {
	name string
	of   func(place) netip.Addr
}

func families() []family {
	return []family{
		{"IPv4", func(p place) netip.Addr { return p.IPv4 }},
		{"IPv6", func(p place) netip.Addr { return p.IPv6 }},
	}
}

// site is the node of this machine, with its places, and the other machine.
type site struct {
	*nodetest.Node
	peer *peer
	here map[string]place
}

// ranges are the subnets of node number n.
type ranges struct{ hidden4, hidden6, open4, open6, bridged4, bridged6 string }

func rangesOf(n int) ranges {
	i := strconv.Itoa(n)
	return ranges{
		"10." + i + ".0.0/24", "fd00:" + i + "::/64", "10." + i + ".1.0/24", "fd00:" + i + ":1::/64", "10." + i + ".2.0/24", "fd00:" + i + ":2::/64",
	}
}

// stations is the network of the wire itself, for node number n, with the other node as its router.
func (s *site) stations(n int, other place) nodetest.Network {
	of := func(subnet, first string, router netip.Addr) []any {
		return []any{map[string]any{"subnet": subnet, "rangeStart": first, "gateway": router.String()}}
	}
	i := strconv.Itoa(n)
	return s.Network("stations").With("driver", api.DriverMacvlan).With("master", "eth0").With("ipMasq", false).With("ipam", map[string]any{
		"type":   "tendril",
		"ranges": []any{of("192.0.2.0/24", "192.0.2."+i+"0", other.IPv4), of("2001:db8::/64", "2001:db8::"+i+"0", other.IPv6)},
		"routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}},
	})
}

func hostOf(n int) place {
	i := strconv.Itoa(n)
	return place{IPv4: netip.MustParseAddr("192.0.2." + i), IPv6: netip.MustParseAddr("2001:db8::" + i)}
}

// newSite makes the node of this machine and its containers, when it has met the
// other machine, and returns when that one is as far.
func newSite(t *testing.T, programs nodetest.Programs, role string) *site {
	t.Helper()
	mine, other := 1, 2
	if role == "b" {
		mine, other = other, mine
	}
	own, theirs := rangesOf(mine), rangesOf(other)
	s := &site{Node: nodetest.New(t, nodetest.Options{
		Programs: programs,
		Flags:    []string{"--uplinks", "eth0", "--masquerade-exclude", theirs.open4 + "," + theirs.open6},
	})}
	me := hostOf(mine)
	me.ns = s.NS
	s.here = map[string]place{host: me}
	s.connect(t, role, hostOf(other), theirs)

	s.Start(t)
	pods := s.Network("pods", own.hidden4, own.hidden6)
	networks := map[string]nodetest.Network{
		hidden:    pods,
		open:      s.Network("open", own.open4, own.open6).With("ipMasq", false),
		narrow:    pods.With("mtu", narrowMTU),
		published: pods,
		bridged:   s.Network("bridged", own.bridged4, own.bridged6).With("driver", api.DriverBridge).With("isDefaultGateway", true),
		station:   s.stations(mine, hostOf(other)),
	}
	for _, m := range mappings() {
		networks[m.place] = m.in(networks[m.place])
	}
	for name, network := range networks {
		c := s.Attach(t, name, network)
		s.here[name] = place{c.IPv4, c.IPv6, c.NS}
	}
	s.peer.enter()
	s.peer.swap(t, "ready", nil, nil)
	return s
}

// connect makes the card on the wire the node's, routes the other node's ranges to it
// and meets it.
func (s *site) connect(t *testing.T, role string, them place, theirs ranges) {
	t.Helper()
	// While duplicate address detection takes its second, neighbours are not asked for.
	s.Run(t, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
	if text, err := exec.Command("ip", "link", "set", "eth0", "netns", s.Name).CombinedOutput(); err != nil {
		t.Fatalf("take the card on the wire: %v\n%s", err, text)
	}
	s.peer = listen(t, s.NS, role)
	s.Run(t, "ip", "link", "set", "eth0", "up")
	me := s.here[host]
	nodetest.Address(t, s.NS, "eth0", me.IPv4.String()+"/24", me.IPv6.String()+"/64")
	for _, subnet := range []string{theirs.hidden4, theirs.open4, theirs.bridged4} {
		nodetest.Route(t, s.NS, []string{subnet, "via", them.IPv4.String()})
	}
	for _, subnet := range []string{theirs.hidden6, theirs.open6, theirs.bridged6} {
		nodetest.Route(t, s.NS, []string{subnet, "via", them.IPv6.String()})
	}
	s.peer.meet(t, them.IPv4)
}
