// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/maps"
)

// checked is the container's configuration for CHECK, with what ADD answered.
func checked(c *nodetest.Container) nodetest.Call {
	call := c.Call("CHECK")
	call.Network = c.Network.With("prevResult", json.RawMessage(c.Result))
	return call
}

// CHECK finds whatever of an attachment is not as ADD left it.
func TestCheck(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	s := running(t)
	eachDriver(t, func(t *testing.T, d driver) {
		s.lend(t, d)
		testCheck(t, s, d)
	})
	t.Run("ports", func(t *testing.T) { testCheckPorts(t, s) })
}

func testCheck(t *testing.T, s *site, d driver) {
	index := func(c *nodetest.Container) int { return must(s.Handle.LinkByName(c.HostIfName))(t).Attrs().Index }
	type tampering struct {
		name string
		// tamper changes the node or the container.
		tamper func(t *testing.T, c *nodetest.Container)
		// want is a function of the container, for its names and numbers.
		want func(c *nodetest.Container) refusal
	}
	all := []tampering{
		{"nothing", func(*testing.T, *nodetest.Container) {}, func(*nodetest.Container) refusal { return refusal{} }},
		{
			"default route", func(t *testing.T, c *nodetest.Container) { c.Run(t, "ip", "route", "del", "default") },
			func(*nodetest.Container) refusal {
				return refusal{100, "route 0.0.0.0/0 via 10.10.0.1 is missing on eth0 in the container", ""}
			},
		},
		{
			"MTU", func(t *testing.T, c *nodetest.Container) { c.Run(t, "ip", "link", "set", "eth0", "mtu", "1400") },
			func(*nodetest.Container) refusal {
				return refusal{100, "mtu of eth0 in the container is 1400, not 1500", ""}
			},
		},
		{"map entry of the address", func(t *testing.T, c *nodetest.Container) {
			m := s.Map(t, "endpoints")
			closeAtEnd(t, m)
			if err := m.Delete(maps.NewAddress(c.IPv4)); err != nil {
				t.Fatal(err)
			}
		}, func(c *nodetest.Container) refusal {
			return refusal{100, fmt.Sprintf("agent: entry of %s in map endpoints is missing", c.IPv4), ""}
		}},
	}
	if d != api.DriverMacvlan {
		all = append(all, tampering{"map entry of the interface", func(t *testing.T, c *nodetest.Container) {
			m := s.Map(t, "interfaces")
			closeAtEnd(t, m)
			if err := m.Delete(uint32(index(c))); err != nil {
				t.Fatal(err)
			}
		}, func(c *nodetest.Container) refusal {
			return refusal{100, fmt.Sprintf("agent: entry of interface %d in map interfaces is missing", index(c)), ""}
		}})
	}
	all = append(all, map[driver][]tampering{api.DriverRouted: {
		{
			"route of IPv6", func(t *testing.T, c *nodetest.Container) { c.Run(t, "ip", "-6", "route", "del", pods6) },
			func(*nodetest.Container) refusal {
				return refusal{100, "route fd00:10::/64 via fd00:10::1 is missing on eth0 in the container", ""}
			},
		},
		{"address", func(t *testing.T, c *nodetest.Container) {
			c.Run(t, "ip", "address", "del", c.IPv6.String()+"/128", "dev", "eth0")
		}, func(c *nodetest.Container) refusal {
			return refusal{100, fmt.Sprintf("address %s/128 is missing on eth0 in the container", c.IPv6), ""}
		}},
		{
			"gateway's neighbour", func(t *testing.T, c *nodetest.Container) { c.Run(t, "ip", "neigh", "del", "10.10.0.1", "dev", "eth0") },
			func(*nodetest.Container) refusal {
				return refusal{100, "permanent neighbour 10.10.0.1 is missing on eth0 in the container", ""}
			},
		},
		{
			"MAC", func(t *testing.T, c *nodetest.Container) {
				c.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
			},
			func(c *nodetest.Container) refusal {
				// With another MAC the kernel forgets all neighbours.
				return refusal{100, fmt.Sprintf("MAC of eth0 in the container is 02:00:00:00:00:99, not %s; "+
					"permanent neighbour 10.10.0.1 is missing on eth0 in the container; "+
					"permanent neighbour fd00:10::1 is missing on eth0 in the container", c.MAC), ""}
			},
		},
		{
			"host's route", func(t *testing.T, c *nodetest.Container) { s.Run(t, "ip", "route", "del", c.IPv4.String()) },
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("route %s/32 is missing on %s on the host", c.IPv4, c.HostIfName), ""}
			},
		},
		{"gateway's address", func(t *testing.T, c *nodetest.Container) {
			s.Run(t, "ip", "address", "del", "10.10.0.1/32", "dev", c.HostIfName)
		}, func(c *nodetest.Container) refusal {
			// Without an IPv4 address the kernel forgets what else it had of IPv4.
			return refusal{100, fmt.Sprintf("route %s/32 is missing on %s on the host; permanent neighbour %s is missing on %s on the host; "+
				"gateway address 10.10.0.1/32 is missing on %s on the host", c.IPv4, c.HostIfName, c.IPv4, c.HostIfName, c.HostIfName), ""}
		}},
		{
			"link", func(t *testing.T, c *nodetest.Container) { s.Run(t, "ip", "link", "del", c.HostIfName) },
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("link eth0 is missing in the container; link %s is missing on the host; agent: device %s is gone",
					c.HostIfName, c.HostIfName), ""}
			},
		},
	}, api.DriverBridge: {
		{
			"route of IPv6", func(t *testing.T, c *nodetest.Container) { c.Run(t, "ip", "-6", "route", "del", pods6) },
			func(*nodetest.Container) refusal {
				return refusal{100, "route fd00:10::/64 is missing on eth0 in the container", ""}
			},
		},
		{"address", func(t *testing.T, c *nodetest.Container) {
			c.Run(t, "ip", "address", "del", c.IPv6.String()+"/64", "dev", "eth0")
		}, func(c *nodetest.Container) refusal {
			return refusal{100, fmt.Sprintf("address %s/64 is missing on eth0 in the container", c.IPv6), ""}
		}},
		{
			"MAC", func(t *testing.T, c *nodetest.Container) {
				c.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
			},
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("MAC of eth0 in the container is 02:00:00:00:00:99, not %s", c.MAC), ""}
			},
		},
		{
			"port", func(t *testing.T, c *nodetest.Container) { s.Run(t, "ip", "link", "set", c.HostIfName, "nomaster") },
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("%s is not a port of bridge tendril0 on the host; agent: device %s is no port of bridge tendril0",
					c.HostIfName, c.HostIfName), ""}
			},
		},
		{
			"gateway's address", func(t *testing.T, _ *nodetest.Container) {
				s.Run(t, "ip", "address", "del", "10.10.0.1/16", "dev", "tendril0")
			},
			func(*nodetest.Container) refusal {
				return refusal{100, "gateway address 10.10.0.1/16 is missing on tendril0 on the host", ""}
			},
		},
		{
			"bridge's MAC", func(t *testing.T, c *nodetest.Container) {
				s.Run(t, "ip", "link", "set", "tendril0", "address", "02:00:00:00:00:98")
				t.Cleanup(func() { s.Run(t, "ip", "link", "set", "tendril0", "address", c.HostMAC.String()) })
			},
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("agent: device tendril0 has MAC 02:00:00:00:00:98, not %s", c.HostMAC), ""}
			},
		},
		{
			"bridge", func(t *testing.T, _ *nodetest.Container) { s.Run(t, "ip", "link", "del", "tendril0") },
			func(*nodetest.Container) refusal {
				return refusal{100, "bridge tendril0 is missing on the host; agent: device tendril0 is gone, and endpoints are to be its ports", ""}
			},
		},
		{
			"link", func(t *testing.T, c *nodetest.Container) { s.Run(t, "ip", "link", "del", c.HostIfName) },
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("link eth0 is missing in the container; link %s is missing on the host; agent: device %s is gone",
					c.HostIfName, c.HostIfName), ""}
			},
		},
	}, api.DriverMacvlan: {
		{
			"route of IPv6", func(t *testing.T, c *nodetest.Container) { c.Run(t, "ip", "-6", "route", "del", pods6) },
			func(*nodetest.Container) refusal {
				return refusal{100, "route fd00:10::/64 is missing on eth0 in the container", ""}
			},
		},
		{"address", func(t *testing.T, c *nodetest.Container) {
			c.Run(t, "ip", "address", "del", c.IPv6.String()+"/64", "dev", "eth0")
		}, func(c *nodetest.Container) refusal {
			return refusal{100, fmt.Sprintf("address %s/64 is missing on eth0 in the container", c.IPv6), ""}
		}},
		{
			"MAC", func(t *testing.T, c *nodetest.Container) {
				c.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
			},
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("MAC of eth0 in the container is 02:00:00:00:00:99, not %s; "+
					"agent: device eth0 in %s has MAC 02:00:00:00:00:99, not %s", c.MAC, c.Path, c.MAC), ""}
			},
		},
		{
			"mode", func(t *testing.T, c *nodetest.Container) {
				c.Run(t, "ip", "link", "set", "eth0", "type", "macvlan", "mode", "bridge")
			},
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("mode of eth0 in the container is bridge, not vepa; "+
					"agent: device eth0 in %s has mode bridge, not vepa", c.Path), ""}
			},
		},
		{
			"link", func(t *testing.T, c *nodetest.Container) { c.Run(t, "ip", "link", "del", "eth0") },
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("link eth0 is missing in the container; agent: device eth0 is gone from %s", c.Path), ""}
			},
		},
		{
			"parent", func(t *testing.T, _ *nodetest.Container) { s.Run(t, "ip", "link", "del", "lan0") },
			func(c *nodetest.Container) refusal {
				return refusal{100, fmt.Sprintf("link eth0 is missing in the container; agent: device eth0 is gone from %s", c.Path), ""}
			},
		},
	}}[d]...)
	for _, one := range all {
		t.Run(one.name, func(t *testing.T) {
			c := s.Attach(t, "checked", s.pods)
			t.Cleanup(func() { s.Delete(t, c) })
			one.tamper(t, c)
			if diff := cmp.Diff(one.want(c), refusalOf(s.Call(t, checked(c)))); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

// STATUS says whether an ADD would succeed.
func TestStatus(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	s := running(t)
	tiny := s.Network("tiny", "10.40.0.0/30")
	status := func(n nodetest.Network) refusal {
		return refusalOf(s.Call(t, nodetest.Call{Command: "STATUS", Network: n}))
	}
	for _, network := range []nodetest.Network{s.pods, tiny} {
		if got := status(network); got != (refusal{}) {
			t.Errorf("STATUS of network %s on a healthy node: %+v", network["name"], got)
		}
	}
	c := s.Attach(t, "c", tiny)
	want := refusal{50, "allocate from network tiny: range set 0 (10.40.0.0/30) is exhausted: leased 1 of 1 addresses", ""}
	if diff := cmp.Diff(want, status(tiny)); diff != "" {
		t.Errorf("STATUS of a network without a free address (-want +got):\n%s", diff)
	}
	if got := status(s.pods); got != (refusal{}) {
		t.Errorf("STATUS of another network: %+v", got)
	}
	s.Kill(t)
	want = refusal{50, fmt.Sprintf("call agent at %s: agent is not available: dial unix %s: connect: connection refused", s.Socket, s.Socket), ""}
	if diff := cmp.Diff(want, status(s.pods)); diff != "" {
		t.Errorf("STATUS without an agent (-want +got):\n%s", diff)
	}
	// DEL works all the same, and the next agent frees the lease.
	s.Delete(t, c)
	s.Start(t)
	if got := status(tiny); got != (refusal{}) {
		t.Errorf("STATUS after the container is gone: %+v", got)
	}
}

// After another plugin of a chain, its part of the result is kept and ours
// works: two interfaces, one container.
func TestChained(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	s := running(t)
	first := s.Attach(t, "c", s.pods)
	network := s.Network("second", "10.50.0.0/24").With("prevResult", json.RawMessage(first.Result))
	second := s.AttachTo(t, first.NS, "c", "eth1", network)
	var before, after struct {
		Interfaces, IPs, Routes []json.RawMessage
	}
	if err := json.Unmarshal([]byte(first.Result), &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(second.Result), &after); err != nil {
		t.Fatal(err)
	}
	type counts struct{ Interfaces, IPs int }
	if diff := cmp.Diff(counts{len(before.Interfaces) + 2, len(before.IPs) + 1}, counts{len(after.Interfaces), len(after.IPs)}); diff != "" {
		t.Errorf("interfaces and addresses of the chain's result (-want +got):\n%s", diff)
	}
	for _, c := range []*nodetest.Container{first, second} {
		if got := refusalOf(s.Call(t, checked(c))); got != (refusal{}) {
			t.Errorf("CHECK of %s: %+v", c.IfName, got)
		}
	}
	for _, c := range []*nodetest.Container{first, second} {
		at := serveUDP(t, c.NS, netip.AddrPortFrom(c.IPv4, 0))
		if got := askUDP(t, dialUDP(t, s.NS, netip.AddrPort{}, at), pattern(100)).Addr(); got != c.Gateway4 {
			t.Errorf("%s saw %s, not %s", c.IPv4, got, c.Gateway4)
		}
	}
	s.Delete(t, second)
	if got := refusalOf(s.Call(t, checked(first))); got != (refusal{}) {
		t.Errorf("CHECK of eth0 after eth1 was deleted: %+v", got)
	}
}
