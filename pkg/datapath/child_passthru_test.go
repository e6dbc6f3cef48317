// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestChildPassthru: the child has the parent's MAC, and is given what comes in for anybody.
func TestChildPassthru(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	p := &parent{node: newNode(t, Config{Masquerade: true})}
	p.do(t, func() error {
		inode, err := netnsInode()
		if err != nil {
			return err
		}
		p.loadParents(t, inode)
		p.x = Endpoint{
			ID: 201, IfIndex: ChildIndex(201), IfName: p.uplink.Name, MAC: p.uplink.MAC, HostMAC: p.uplink.MAC, MTU: 1500,
			Child:     &Child{Parent: p.uplink.IfIndex, NetNS: inode, Passthru: true},
			Addresses: []netip.Addr{v4().child(1), v6().child(1)},
		}
		return p.AttachEndpoint(p.x)
	})
	p.preludes = newPreludes(t, p.Datapath)
	group := packet.MAC("33:33:00:00:00:fb")
	eachFamily(t, func(t *testing.T, f family) {
		x := f.child(1)
		of := ip(f.world, x, 64, udp(low, server)...)
		p.forget(t)
		// The child and the host have one namespace here, as no test run has another.
		tagged := p.out(p.x.MAC, routerMAC(), ip(f.host, f.world, 64, udp(server, low)...)...)
		tagged.vlan = 5
		p.story(t,
			step{"of a VLAN device of the host's", tagged, untouched()},
			step{"to it", p.in(routerMAC(), p.x.MAC, of...), intoChild("decided")},
			step{"to another station", p.in(routerMAC(), stationMAC(), of...), intoChild("decided")},
			step{"to a group", p.in(routerMAC(), group, of...), untouched()},
			step{"of it", p.out(p.x.MAC, routerMAC(), ip(x, f.world, 64, udp(server, low)...)...), toWire("decided")},
		)
		// A limit is the container's, not that of what the host has from the parent besides.
		limited, ofVLAN := p.x, p.in(routerMAC(), p.x.MAC, of...)
		limited.Ingress, ofVLAN.vlan = slow, 5
		p.do(t, func() error { return p.SetLimits(p.x, limited) })
		p.creditOf(t, limited, maps.LimitIngress, -time.Hour)
		p.story(t,
			step{"beyond a limit", p.in(routerMAC(), p.x.MAC, of...), shut(toContainer, "decided", "passed", "bandwidth_ingress")},
			step{"of a VLAN, beyond a limit", ofVLAN, intoChild()},
		)
		p.do(t, func() error { return p.SetLimits(limited, p.x) })
		p.enforce(t, p.subjects().restrict(p.x, ingress))
		p.story(t,
			step{"to it, under a policy", p.in(routerMAC(), p.x.MAC, of...), shut(toContainer, "decided", "policy_ingress")},
			step{"to another station, under a policy", p.in(routerMAC(), stationMAC(), of...), shut(toContainer, "policy_ingress")},
			step{"to a group, under a policy", p.in(routerMAC(), group, of...), shut(toContainer, "policy_ingress")},
		)
	})
}
