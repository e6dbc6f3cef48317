// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/internal/policytest"
	"github.com/tendril-net/tendril/pkg/maps"
	"github.com/tendril-net/tendril/pkg/policy"
)

// How many random policies TestPolicyModel compiles, fewer where all is emulated, and how
// many flows each judges.
const (
	modelPolicies         = 300
	modelPoliciesEmulated = 20
	modelFlows            = 400
)

// TestPolicyModel has the programs judge flows by random policies, and compares them with
// a reading of the objects that compiles nothing: the verdict, and who gave it for which
// reason.
func TestPolicyModel(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	n := newNode(t, Config{})
	m := &modelNode{node: n, engine: policy.New(policy.Limits{})}
	policies := uint64(modelPolicies)
	if nstest.Emulated() {
		policies = modelPoliciesEmulated
	}
	for seed := range policies {
		rng := rand.New(rand.NewPCG(seed, 17))
		if err := m.settle(rng); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		n.forget(t)
		for i := range uint16(modelFlows) {
			f := m.model.RandomFlow(rng)
			if f.Client == f.Server || !carries(f) {
				continue
			}
			var got, want string
			n.do(t, func() (err error) {
				got, err = m.judge(f, 1024+i)
				return err
			})
			want = outcomeOf(m.model.Verdict(f))
			if got != want {
				t.Errorf("seed %d, flow %d, %+v: got %q, want %q", seed, i, f, got, want)
			}
			m.asked[want]++
		}
		if t.Failed() {
			return
		}
	}
	for _, outcome := range []string{"", "policy_egress", "policy_ingress", "network_isolation"} {
		if m.asked[outcome] < int(policies) {
			t.Errorf("only %d flows became %q: the cases are not random enough", m.asked[outcome], outcome)
		}
	}
	t.Logf("flows by what became of them: %v", m.asked)
}

// modelNode is a node with the endpoints of a model, which have no devices.
type modelNode struct {
	*node
	engine *policy.Engine
	model  *policytest.Model
	asked  map[string]int
}

// settle makes a random policy and random endpoints count.
func (m *modelNode) settle(rng *rand.Rand) error {
	if m.model != nil {
		for _, e := range m.model.Endpoints {
			m.remove(e)
		}
	} else {
		m.asked = make(map[string]int)
	}
	m.model = &policytest.Model{Objects: policytest.RandomObjects(rng), Endpoints: policytest.RandomEndpoints(rng)}
	for _, e := range m.model.Endpoints {
		if err := m.engine.Add(e); err != nil {
			return err
		}
		if e.ID == 0 {
			continue
		}
		device := maps.Interface{Role: maps.RoleEndpoint, Endpoint: e.ID, Mtu: 1500, Mac: maps.NewMAC(m.mac(e.ID))}
		if err := m.maps.Interfaces.Put(5000+uint32(e.ID), device); err != nil {
			return err
		}
		for _, a := range e.Addresses {
			if err := m.maps.Endpoints.Put(maps.NewAddress(a), m.value(e.ID, 5000+uint32(e.ID))); err != nil {
				return err
			}
		}
	}
	engine, err := m.engine.With(m.model.Objects)
	if err != nil {
		return err
	}
	m.engine = engine
	if err := m.ReconcilePolicy(compiled(engine.Tables())); err != nil {
		return err
	}
	return m.comparePolicy()
}

func (m *modelNode) remove(e policy.Endpoint) {
	if e.ID == 0 {
		m.engine.RemoveRemote(e.Key)
		return
	}
	m.engine.Remove(e.ID)
	for _, a := range e.Addresses {
		_ = m.maps.Endpoints.Delete(maps.NewAddress(a))
	}
	_ = m.maps.Held.Put(uint32(e.ID), uint32(0)) // the next policy begins with none
}

// value is an entry of map endpoints, for a device of any number.
func (m *modelNode) value(id uint16, ifindex uint32) maps.Endpoint {
	return maps.Endpoint{Ifindex: ifindex, Id: id, Mtu: 1500, Mac: maps.NewMAC(m.mac(id)), HostMac: maps.NewMAC(m.a.HostMAC)}
}

func (*modelNode) mac(id uint16) net.HardwareAddr {
	return net.HardwareAddr{2, 0, 0, 0, 0xd0, byte(id)}
}

// judge shows the first packet of a flow, which has the client's port, to the program that
// it meets, and returns the reason for which it was dropped; "" when it was not.
func (m *modelNode) judge(f policy.Flow, port uint16) (string, error) {
	layers := append([]packet.Layer{packet.IP(f.Client, f.Server, packet.TTL(64))}, first(f, port)...)
	r := run{program: fromUplink, device: m.uplink.IfIndex, in: m.arrived(layers...)}
	key := maps.FlowKey{
		Source: maps.NewAddress(f.Client), Destination: maps.NewAddress(f.Server), Protocol: f.Protocol,
		SourcePort: maps.Port(port), DestinationPort: maps.Port(f.ServerPort),
	}
	if f.Protocol != unix.IPPROTO_TCP && f.Protocol != unix.IPPROTO_UDP && f.Protocol != unix.IPPROTO_SCTP {
		key.DestinationPort = 0
	}
	if f.ClientID != 0 {
		// The client has a's device for as long as it sends.
		if err := m.maps.Endpoints.Put(maps.NewAddress(f.Client), m.value(f.ClientID, uint32(m.a.IfIndex))); err != nil {
			return "", err
		}
		device := maps.Interface{Mtu: 1500, Endpoint: f.ClientID, Mac: maps.NewMAC(m.mac(f.ClientID)), Role: maps.RoleEndpoint}
		if err := m.maps.Interfaces.Put(uint32(m.a.IfIndex), device); err != nil {
			return "", err
		}
		r = run{program: fromContainer, device: m.a.IfIndex, in: packet.New(append([]packet.Layer{packet.Eth(m.mac(f.ClientID), m.a.HostMAC)}, layers...)...)}
		key.Ifindex = uint32(m.a.IfIndex)
	}
	w, err := m.execute(r)
	if err != nil {
		return "", err
	}
	if f.ClientID != 0 {
		if err := m.maps.Endpoints.Put(maps.NewAddress(f.Client), m.value(f.ClientID, 5000+uint32(f.ClientID))); err != nil {
			return "", err
		}
	}
	if w.verdict == redirect {
		return "", nil
	}
	var flow maps.Flow
	if err := m.maps.Flows.Lookup(key, &flow); err != nil {
		return "", fmt.Errorf("verdict %d, and nothing known of %s: %w", w.verdict, packet.Summary(r.in), err)
	}
	if w.verdict != dropped || flow.Action != maps.ActionDeny {
		return "", fmt.Errorf("verdict %d, action %d", w.verdict, flow.Action)
	}
	return m.maps.CounterNames[flow.Reason], nil
}

// carries tells whether these tests have packets for the flow.
func carries(f policy.Flow) bool {
	switch f.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		return true
	case unix.IPPROTO_ICMP:
		return f.Client.Is4()
	case unix.IPPROTO_ICMPV6:
		return f.Client.Is6()
	}
	return false
}

// first is what begins a flow.
func first(f policy.Flow, port uint16) []packet.Layer {
	switch f.Protocol {
	case unix.IPPROTO_TCP:
		return tcp(port, f.ServerPort, packet.SYN)
	case unix.IPPROTO_UDP:
		return udp(port, f.ServerPort)
	case unix.IPPROTO_SCTP:
		return []packet.Layer{packet.SCTP(port, f.ServerPort, 5), packet.SCTPData(1, 20)}
	}
	return []packet.Layer{packet.Echo(port, 1), packet.Payload(8)}
}

func outcomeOf(v policytest.Verdict) string {
	switch {
	case v.Allowed:
		return ""
	case v.Isolation:
		return "network_isolation"
	case v.Direction == policy.Egress:
		return "policy_egress"
	}
	return "policy_ingress"
}

// compiled are tables as the datapath takes them.
func compiled(tables *policy.Tables) Policy {
	p := Policy{
		Active: tables.Active, Subjects: make(map[uint16]Subject), Identities: make(map[netip.Prefix]uint32),
		Entries: make(map[PolicyPair][]PolicyRange),
	}
	for id, s := range tables.Subjects {
		p.Subjects[id] = Subject{
			Ingress: s.Ingress, Egress: s.Egress, Identity: s.Identity, ByAddress: s.ByAddress,
			Network: s.Network, NoOthers: s.FromOtherNetworks, NoOwn: s.FromOwnNetwork,
		}
	}
	for prefix, identity := range tables.Prefixes {
		p.Identities[prefix] = identity
	}
	for pair, ranges := range tables.Entries {
		for _, r := range ranges {
			p.Entries[PolicyPair(pair)] = append(p.Entries[PolicyPair(pair)], PolicyRange(r))
		}
	}
	return p
}
