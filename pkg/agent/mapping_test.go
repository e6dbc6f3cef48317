// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// mapped writes a mapping down: the host address may be empty.
func mapped(hostIP string, hostPort, containerPort uint16, protocol string) api.PortMapping {
	m := api.PortMapping{HostPort: hostPort, ContainerPort: containerPort, Protocol: protocol}
	if hostIP != "" {
		m.HostIP = netip.MustParseAddr(hostIP)
	}
	return m
}

// withPorts adds mappings to a request.
func withPorts(req api.PrepareRequest, ports ...api.PortMapping) api.PrepareRequest {
	req.Ports = ports
	return req
}

func TestMappingRefused(t *testing.T) {
	v4 := delegated("c1", "192.0.2.7/24")
	v6 := delegated("c1", "2001:db8::7/64")
	tests := map[string]struct {
		req  api.PrepareRequest
		want api.Error
	}{
		"host port": {withPorts(request("c1"), mapped("", 0, 80, "tcp")), api.Error{
			Key: "ports[0].hostPort", Value: "0", Message: `ports[0].hostPort "0": is not between 1 and 65535`,
		}},
		"container port": {withPorts(request("c1"), mapped("", 80, 80, "tcp"), mapped("", 81, 0, "tcp")), api.Error{
			Key: "ports[1].containerPort", Value: "0", Message: `ports[1].containerPort "0": is not between 1 and 65535`,
		}},
		"protocol": {withPorts(request("c1"), mapped("", 80, 80, "TCP")), api.Error{
			Key: "ports[0].protocol", Value: "TCP", Message: `ports[0].protocol "TCP": is not tcp or udp`,
		}},
		"sctp": {withPorts(request("c1"), mapped("", 80, 80, "sctp")), api.Error{
			Key: "ports[0].protocol", Value: "sctp",
			Message: `ports[0].protocol "sctp": cannot be mapped: its checksum covers the ports, and the kernel does not let a packet's be computed anew`,
		}},
		"IPv6 for an IPv4 endpoint": {withPorts(v4, mapped("2001:db8::1", 80, 80, "tcp")), api.Error{
			Key: "ports[0].hostIP", Value: "2001:db8::1", Message: `ports[0].hostIP "2001:db8::1": is of IPv6, and the endpoint has no IPv6 address`,
		}},
		"all of IPv4 for an IPv6 endpoint": {withPorts(v6, mapped("0.0.0.0", 80, 80, "tcp")), api.Error{
			Key: "ports[0].hostIP", Value: "0.0.0.0", Message: `ports[0].hostIP "0.0.0.0": is of IPv4, and the endpoint has no IPv4 address`,
		}},
		"zone": {withPorts(request("c1"), mapped("fe80::1%eth0", 80, 80, "tcp")), api.Error{
			Key: "ports[0].hostIP", Value: "fe80::1%eth0", Message: `ports[0].hostIP "fe80::1%eth0": has a zone`,
		}},
		"link-local": {withPorts(request("c1"), mapped("fe80::1", 80, 80, "tcp")), api.Error{
			Key: "ports[0].hostIP", Value: "fe80::1",
			Message: `ports[0].hostIP "fe80::1": is a link-local address: it says nothing without its link, and no port can be reached there`,
		}},
		"mapped address": {withPorts(request("c1"), mapped("::ffff:192.0.2.1", 80, 80, "tcp")), api.Error{
			Key: "ports[0].hostIP", Value: "::ffff:192.0.2.1", Message: `ports[0].hostIP "::ffff:192.0.2.1": is an IPv4 address written as IPv6`,
		}},
		"multicast": {withPorts(request("c1"), mapped("224.0.0.1", 80, 80, "tcp")), api.Error{
			Key: "ports[0].hostIP", Value: "224.0.0.1", Message: `ports[0].hostIP "224.0.0.1": is in 224.0.0.0/4: multicast addresses`,
		}},
		"broadcast": {withPorts(request("c1"), mapped("255.255.255.255", 80, 80, "tcp")), api.Error{
			Key: "ports[0].hostIP", Value: "255.255.255.255",
			Message: `ports[0].hostIP "255.255.255.255": is in 240.0.0.0/4: reserved addresses, the limited broadcast address among them`,
		}},
		"one port to two": {withPorts(request("c1"), mapped("", 80, 80, "tcp"), mapped("", 80, 80, "udp"), mapped("", 80, 81, "tcp")), api.Error{
			Key: "ports[2].hostPort", Value: "80",
			Message: `ports[2].hostPort: 0.0.0.0:80/tcp leads to container port 81, and 0.0.0.0:80/tcp of ports[0] to 80`,
		}},
		"all and one of them to two": {withPorts(request("c1"), mapped("::1", 80, 80, "udp"), mapped("::", 80, 81, "udp")), api.Error{
			Key: "ports[1].hostPort", Value: "80",
			Message: `ports[1].hostPort: [::]:80/udp leads to container port 81, and [::1]:80/udp of ports[0] to 80`,
		}},
		"too many": {withPorts(request("c1"), make([]api.PortMapping, 4097)...), api.Error{
			Key: "ports", Value: "4097", Message: `ports "4097": are more than 4096`,
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			before := w.remains(t, s)
			_, err := s.Prepare(ctx, test.req)
			test.want.Code = api.CodeInvalid
			if d := cmp.Diff(test.want, faultOf(t, err, api.CodeInvalid)); d != "" {
				t.Errorf("refusal (-want +got):\n%s", d)
			}
			w.mustRemain(t, s, before)
			if w.dumps != 0 {
				t.Errorf("%d looks at the sockets", w.dumps)
			}
		})
	}
}

// TestMappingServed compares what was asked with what the datapath is given.
func TestMappingServed(t *testing.T) {
	port := func(host string, hostPort uint16, protocol uint8, container string) datapath.Port {
		to := netip.MustParseAddrPort(container)
		return datapath.Port{
			HostIP: netip.MustParseAddr(host), HostPort: hostPort, Protocol: protocol,
			ContainerIP: to.Addr(), ContainerPort: to.Port(),
		}
	}
	several := delegated("c1", "198.51.100.9/24")
	for _, more := range []string{"198.51.100.10/24", "2001:db8::9/64", "2001:db8::10/64"} {
		several.Addresses = append(several.Addresses, api.Address{Address: netip.MustParsePrefix(more)})
	}
	tests := map[string]struct {
		req    api.PrepareRequest
		stored int // mappings in the record
		want   []datapath.Port
	}{
		"none": {request("c1"), 0, nil},
		"each family": {withPorts(request("c1"), mapped("", 8080, 80, "tcp")), 1, []datapath.Port{
			port("0.0.0.0", 8080, 6, "10.10.0.2:80"), port("::", 8080, 6, "[fd00:10::2]:80"),
		}},
		"one family": {withPorts(request("c1"), mapped("0.0.0.0", 1, 65535, "udp"), mapped("::", 65535, 1, "udp")), 2, []datapath.Port{
			port("0.0.0.0", 1, 17, "10.10.0.2:65535"), port("::", 65535, 17, "[fd00:10::2]:1"),
		}},
		"the family that there is": {withPorts(delegated("c1", "2001:db8::7/64"), mapped("", 8080, 80, "tcp")), 1, []datapath.Port{
			port("::", 8080, 6, "[2001:db8::7]:80"),
		}},
		"addresses": {withPorts(request("c1"), mapped("192.0.2.1", 8080, 80, "tcp"), mapped("127.0.0.1", 8080, 81, "tcp"), mapped("::1", 8080, 82, "tcp")), 3, []datapath.Port{
			port("192.0.2.1", 8080, 6, "10.10.0.2:80"), port("127.0.0.1", 8080, 6, "10.10.0.2:81"), port("::1", 8080, 6, "[fd00:10::2]:82"),
		}},
		"the first address of each": {withPorts(several, mapped("", 8080, 80, "tcp")), 1, []datapath.Port{
			port("0.0.0.0", 8080, 6, "198.51.100.9:80"), port("::", 8080, 6, "[2001:db8::9]:80"),
		}},
		"twice the same": {withPorts(request("c1"), mapped("", 8080, 80, "tcp"), mapped("", 8080, 80, "tcp"), mapped("0.0.0.0", 8080, 80, "tcp")), 2, []datapath.Port{
			port("0.0.0.0", 8080, 6, "10.10.0.2:80"), port("::", 8080, 6, "[fd00:10::2]:80"),
		}},
		"one port of two protocols": {withPorts(request("c1"), mapped("::", 53, 53, "udp"), mapped("::", 53, 53, "tcp")), 2, []datapath.Port{
			port("::", 53, 17, "[fd00:10::2]:53"), port("::", 53, 6, "[fd00:10::2]:53"),
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, stop := w.boot(t)
			e := w.mustAdd(t, s, test.req)
			if len(e.Ports) != test.stored {
				t.Errorf("mappings %v, want %d", e.Ports, test.stored)
			}
			if d := cmp.Diff(test.want, w.attached[e.ID].Ports, equate...); d != "" {
				t.Errorf("attached (-want +got):\n%s", d)
			}
			must(t, s.Check(ctx, e.Attachment))
			stop()
			s, _ = w.boot(t) // and attached again
			if d := cmp.Diff(test.want, w.attached[e.ID].Ports, equate...); d != "" {
				t.Errorf("attached again (-want +got):\n%s", d)
			}
			must(t, s.Check(ctx, e.Attachment))
		})
	}
}

func TestPortsListed(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	listed := func() []api.Port {
		ports, err := s.Ports(ctx)
		must(t, err)
		return ports
	}
	if got := listed(); got == nil || len(got) != 0 {
		t.Errorf("ports %#v, want an empty list", got)
	}
	one := w.mustAdd(t, s, withPorts(request("c1"), mapped("", 8080, 80, "tcp")))
	two := w.mustAdd(t, s, withPorts(delegated("c2", "198.51.100.9/24"), mapped("127.0.0.1", 53, 5353, "udp")))
	_, err := s.Prepare(ctx, withPorts(request("pending"), mapped("", 9090, 80, "tcp")))
	must(t, err)
	want := []api.Port{
		{Protocol: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:8080"), Container: netip.MustParseAddrPort("10.10.0.2:80"), Attachment: one.Attachment, Network: "pods"},
		{Protocol: "tcp", Host: netip.MustParseAddrPort("[::]:8080"), Container: netip.MustParseAddrPort("[fd00:10::2]:80"), Attachment: one.Attachment, Network: "pods"},
		{Protocol: "udp", Host: netip.MustParseAddrPort("127.0.0.1:53"), Container: netip.MustParseAddrPort("198.51.100.9:5353"), Attachment: two.Attachment, Network: "static"},
	}
	if d := cmp.Diff(want, listed(), equate...); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
	s.LinkGone(one.HostIfIndex)
	if d := cmp.Diff(want[2:], listed(), equate...); d != "" {
		t.Errorf("ports without those of a device that is gone (-want +got):\n%s", d)
	}
}

// FuzzParseMappings holds for any mappings: what is accepted claims no port of the
// host twice, comes to as many ports of the datapath as it claims, and is the same
// when it is asked for again.
func FuzzParseMappings(f *testing.F) {
	for _, text := range []string{
		`[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostIP":"127.0.0.1","hostPort":8080,"containerPort":80,"protocol":"tcp"}]`,
		`[{"hostPort":53,"containerPort":53,"protocol":"udp"},{"hostIP":"0.0.0.0","hostPort":53,"containerPort":54,"protocol":"udp"}]`,
		`[{"hostIP":"::1","hostPort":1,"containerPort":1,"protocol":"tcp"},{"hostIP":"::2","hostPort":1,"containerPort":2,"protocol":"tcp"}]`,
		`[{"hostIP":"fe80::1%1","hostPort":1,"containerPort":1,"protocol":"sctp"},{}]`,
	} {
		f.Add([]byte(text), true, true)
		f.Add([]byte(text), true, false)
	}
	f.Fuzz(func(t *testing.T, text []byte, v4, v6 bool) {
		var given []api.PortMapping
		if json.Unmarshal(text, &given) != nil || !v4 && !v6 {
			return
		}
		mappings, claims, err := parseMappings(given, families{v4, v6})
		if err != nil {
			if fault := faultOf(t, err, api.CodeInvalid); fault.Key == "" || fault.Message == "" {
				t.Errorf("an error without key or message: %+v", fault)
			}
			return
		}
		r := &record{Endpoint: api.Endpoint{Ports: mappings}}
		if v4 {
			r.Addresses = append(r.Addresses, api.Address{Address: netip.MustParsePrefix("10.0.0.2/24")})
		}
		if v6 {
			r.Addresses = append(r.Addresses, api.Address{Address: netip.MustParsePrefix("fd00::2/64")})
		}
		claimed := make(map[string]bool)
		for _, c := range claims {
			if claimed[c.String()] {
				t.Errorf("%s is claimed twice", c)
			}
			claimed[c.String()] = true
		}
		ports := r.ports()
		for _, p := range ports {
			if !claimed[netip.AddrPortFrom(p.HostIP, p.HostPort).String()+"/"+datapath.ProtocolName(p.Protocol)] {
				t.Errorf("%+v is not claimed", p)
			}
			if p.HostIP.Is4() != p.ContainerIP.Is4() || !p.ContainerIP.IsValid() || p.HostPort == 0 || p.ContainerPort == 0 {
				t.Errorf("%+v is no port", p)
			}
		}
		if len(ports) != len(claims) {
			t.Errorf("%d ports, %d claims", len(ports), len(claims))
		}
		again, _, err := parseMappings(mappings, families{v4, v6})
		if d := cmp.Diff(mappings, again, equate...); d != "" || err != nil {
			t.Errorf("asked for again: %v\n%s", err, d)
		}
	})
}
