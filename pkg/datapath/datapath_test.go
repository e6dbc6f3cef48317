// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// smoke: a temporary first look.
func TestSmoke(t *testing.T) {
	node := nstest.New(t, "node")
	a := nstest.New(t, "a")
	b := nstest.New(t, "b")
	world := nstest.New(t, "world")
	nstest.Veth(t, node, "tdla", a, "eth0")
	nstest.Veth(t, node, "tdlb", b, "eth0")
	nstest.Veth(t, node, "up0", world, "eth0")
	root := nstest.BPFFS(t)
	node.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	node.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	node.Run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
	node.Run(t, "ip", "route", "add", "default", "via", "192.0.2.2")
	node.Run(t, "ip", "route", "add", "default", "via", "2001:db8::2")
	world.Run(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	world.Run(t, "ip", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	mac := func(n *nstest.NS, name string) net.HardwareAddr {
		l, err := n.Handle.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().HardwareAddr
	}
	index := func(n *nstest.NS, name string) int {
		l, err := n.Handle.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().Index
	}
	for i, c := range []struct {
		ns   *nstest.NS
		host string
	}{{a, "tdla"}, {b, "tdlb"}} {
		v4 := []string{"10.10.0.2", "10.10.0.3"}[i]
		v6 := []string{"fd00::2", "fd00::3"}[i]
		c.ns.Run(t, "ip", "addr", "add", v4+"/32", "dev", "eth0")
		c.ns.Run(t, "ip", "addr", "add", v6+"/128", "dev", "eth0", "nodad")
		c.ns.Run(t, "ip", "route", "add", "10.10.0.1", "dev", "eth0", "scope", "link")
		c.ns.Run(t, "ip", "route", "add", "default", "via", "10.10.0.1")
		c.ns.Run(t, "ip", "route", "add", "fd00::1", "dev", "eth0")
		c.ns.Run(t, "ip", "route", "add", "default", "via", "fd00::1")
		node.Run(t, "ip", "addr", "add", "10.10.0.1/32", "dev", c.host)
		node.Run(t, "ip", "addr", "add", "fd00::1/128", "dev", c.host, "nodad")
		node.Run(t, "ip", "route", "add", v4, "dev", c.host)
		node.Run(t, "ip", "route", "add", v6, "dev", c.host)
	}
	_ = netlink.FAMILY_ALL
	node.Do(t, func() {
		d, err := datapath.Open(datapath.Config{Root: root, Masquerade: true})
		if err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		t.Log(d.AttachKind())
		if err := d.ReconcileUplinks([]datapath.Uplink{{Name: "up0", IfIndex: index(node, "up0"), MTU: 1500, MAC: mac(node, "up0"), IPv4: netip.MustParseAddr("192.0.2.1"), IPv6: netip.MustParseAddr("2001:db8::1")}}); err != nil {
			t.Error(err)
		}
		for i, c := range []struct {
			ns   *nstest.NS
			host string
		}{{a, "tdla"}, {b, "tdlb"}} {
			v4 := []string{"10.10.0.2", "10.10.0.3"}[i]
			v6 := []string{"fd00::2", "fd00::3"}[i]
			if err := d.AttachEndpoint(datapath.Endpoint{ID: uint16(i + 1), IfIndex: index(node, c.host), IfName: c.host, MAC: mac(c.ns, "eth0"), HostMAC: mac(node, c.host), Addresses: []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}, MTU: 1500, Masquerade: true}); err != nil {
				t.Error(err)
			}
		}
	})
	var out bytes.Buffer
	for _, target := range []string{"10.10.0.3", "fd00::3", "10.10.0.1", "fd00::1", "192.0.2.1", "192.0.2.2", "2001:db8::2"} {
		cmd := a.Command("ping", "-c3", "-i0.1", "-W1", target)
		got, err := cmd.CombinedOutput()
		t.Log(target, err, lastLines(string(got)))
		_ = out
	}
	node.Do(t, func() {
		d, err := datapath.Open(datapath.Config{Root: root, Masquerade: true})
		if err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		cs, err := d.Counters()
		for _, c := range cs {
			if c.Packets > 0 {
				t.Log(c)
			}
		}
		fs, err := d.Flows(100)
		for _, f := range fs {
			t.Logf("%+v %v", f, err)
		}
		us, err := d.Maps()
		t.Log(us, err)
		t.Log(d.Purge([]uint16{1}))
	})
	if os.Getenv("HOLD") != "" {
		t.Log(node.Name)
		select {}
	}
	if t.Failed() {
		t.Log(node.Run(t, "ip", "-s", "link"))
	}
}

func lastLines(s string) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(l[max(0, len(l)-2):], " | ")
}
