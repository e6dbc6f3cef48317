// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/ipam"
	"github.com/tendril-net/tendril/pkg/uplink"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// world is a node in memory, all but the state file. It outlives the agents
// that run on it, as the kernel does.
type world struct {
	dir   string
	clock time.Time

	mu          sync.Mutex
	links       map[string]HostLink
	bridges     map[string]HostLink // they stay when endpoints go
	devices     map[string]HostLink // of the node, parents of children among them
	children    map[string]wiring.ChildLink
	netns       map[string]namespace // by path
	ended       map[api.Attachment]time.Time
	users       map[int][]string
	nextIndex   int
	unreachable map[netip.Prefix]bool
	attached    map[uint16]datapath.Endpoint
	occupied    []Occupied
	own         []netip.Addr // addresses of the node
	counted     int          // how often somebody asked for them
	told        []netip.Addr // what the datapath was told of them
	sockets     map[uint8][]BoundSocket
	dumps       int                 // how often somebody asked for sockets
	processes   map[uint32]string   // by inode
	cut         map[string][]string // remotes that sockets were disconnected from
	reserved    string
	reservings  int // how often ports were reserved
	looks       int // how often somebody asked what is occupied
	excludes    []netip.Prefix
	uplinks     []datapath.Uplink
	purged      []uint16
	invalidated int
	unpinned    bool
	policy      datapath.Policy
	policies    int // how often a policy was written
	mended      int // how often it was repaired
	hits        datapath.PolicyHits
	flows       []datapath.Flow
	repaired    []uint16
	repairs     []bridgeRepair
	ports       map[string]wiring.Bridged // by RepairPort
	fail        map[string]error          // what the named call returns
	during      func(string)              // called in the middle of the named call
}

// bridgeRepair is a call of RepairBridge.
type bridgeRepair struct {
	bridge   wiring.Bridge
	gateways []netip.Prefix
}

func newWorld(t *testing.T) *world {
	return &world{
		dir:         t.TempDir(),
		clock:       time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		links:       make(map[string]HostLink),
		bridges:     make(map[string]HostLink),
		devices:     make(map[string]HostLink),
		children:    make(map[string]wiring.ChildLink),
		ports:       make(map[string]wiring.Bridged),
		netns:       make(map[string]namespace),
		ended:       make(map[api.Attachment]time.Time),
		nextIndex:   100,
		unreachable: make(map[netip.Prefix]bool),
		attached:    make(map[uint16]datapath.Endpoint),
		sockets:     make(map[uint8][]BoundSocket),
		processes:   make(map[uint32]string),
		cut:         make(map[string][]string),
		fail:        make(map[string]error),
		during:      func(string) {},
	}
}

// boot starts an agent on the node; it is closed when the test ends, or by the
// function that is returned.
func (w *world) boot(t *testing.T, uplinks ...uplink.Uplink) (*Service, func()) {
	t.Helper()
	db, err := OpenState(filepath.Join(w.dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	stop := func() { once.Do(func() { must(t, db.Close()) }) }
	t.Cleanup(stop)
	s := w.service(t, db)
	if err := s.Start(uplink.Found{Uplinks: uplinks}); err != nil {
		t.Fatal(err)
	}
	return s, stop
}

func (w *world) service(t *testing.T, db *bbolt.DB) *Service {
	t.Helper()
	leases, err := ipam.Open(db)
	must(t, err)
	return New(Options{
		DB:           db,
		Leases:       leases,
		Datapath:     Datapath{Endpoints: w, Node: w, Host: w, Repairs: w, Flows: w, Stats: w, Policy: w, Walk: w},
		PolicyDir:    w.policyDir(),
		Links:        w,
		Parents:      w,
		Children:     w,
		Ended:        w,
		Bridges:      w,
		Routes:       w,
		Surroundings: w,
		Sockets:      w,
		Reservations: w,
		Excludes:     []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")},
		BPFRoot:      "/sys/fs/bpf/tendril",
		Version:      "v0.0.0-test",
		Now:          func() time.Time { return w.clock },
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// call is the beginning of every call of the node.
func (w *world) call(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fail[name]
}

func (w *world) AttachEndpoint(e datapath.Endpoint) error {
	if err := w.call("AttachEndpoint"); err != nil {
		return err
	}
	w.during("AttachEndpoint")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attached[e.ID] = e
	return w.fail["AttachEndpoint, half done"]
}

func (w *world) HooksInContainer() ([]datapath.HookInContainer, error) {
	if err := w.call("HooksInContainer"); err != nil {
		return nil, err
	}
	return []datapath.HookInContainer{{Name: "in", ID: 7}, {Name: "out", ID: 8, OnParent: true, Egress: true}}, nil
}

func (w *world) SetLimits(before, after datapath.Endpoint) error {
	if err := w.call("SetLimits"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if diff := cmp.Diff(before, w.attached[after.ID], equate...); diff != "" {
		return fmt.Errorf("the endpoint before is another (-told +attached):\n%s", diff)
	}
	w.attached[after.ID] = after
	return nil
}

func (w *world) BandwidthKind() string { return "token-bucket" }

func (w *world) DetachEndpoint(e datapath.Endpoint) error {
	if err := w.call("DetachEndpoint"); err != nil {
		return err
	}
	w.mu.Lock()
	delete(w.attached, e.ID)
	w.mu.Unlock()
	w.during("DetachEndpoint")
	return nil
}

func (w *world) CheckEndpoint(e datapath.Endpoint) error {
	if err := w.call("CheckEndpoint"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := cmp.Diff(e, w.attached[e.ID], cmpopts.EquateComparable(netip.Addr{})); d != "" {
		return &datapath.MismatchError{What: fmt.Sprintf("not what was asked about (-want +got):\n%s", d)}
	}
	return nil
}

func (w *world) RepairPins() error {
	if err := w.call("RepairPins"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unpinned = false
	return nil
}

func (w *world) RepairPacer() error { return w.call("RepairPacer") }

func (w *world) RepairEndpoint(e datapath.Endpoint) ([]string, error) {
	if err := w.call("RepairEndpoint"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attached[e.ID] = e
	w.repaired = append(w.repaired, e.ID)
	return []string{"something was missing"}, nil
}

// RepairBridge knows which bridges there are, and not what addresses they have.
func (w *world) RepairBridge(b wiring.Bridge, gateways []netip.Prefix) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.repairs = append(w.repairs, bridgeRepair{b, gateways})
	if err := w.fail["RepairBridge"]; err != nil {
		return nil, err
	}
	if _, there := w.bridges[b.Name]; there {
		return nil, nil
	}
	w.nextIndex++
	w.bridges[b.Name] = HostLink{Name: b.Name, Index: w.nextIndex, MAC: b.MAC, Bridge: true}
	return []string{"the bridge was missing"}, nil
}

func (w *world) RepairPort(links wiring.Links, b wiring.Bridged) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	link, bridge := w.links[links.HostName], w.bridges[b.Bridge]
	if err := w.fail["RepairPort"]; err != nil || link.Master != 0 || bridge.Index == 0 {
		return nil, err
	}
	link.Master = bridge.Index
	w.links[links.HostName] = link
	w.ports[links.HostName] = b
	return []string{"it was no port"}, nil
}

func (w *world) PruneEndpoints(endpoints []datapath.Endpoint) error {
	if err := w.call("PruneEndpoints"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.attached, func(id uint16, _ datapath.Endpoint) bool {
		return !slices.ContainsFunc(endpoints, func(e datapath.Endpoint) bool { return e.ID == id })
	})
	return nil
}

func (w *world) AttachEndpoints(endpoints []datapath.Endpoint) error {
	if err := w.call("AttachEndpoints"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range endpoints {
		w.attached[e.ID] = e
	}
	return nil
}

func (w *world) ReconcileUplinks(uplinks []datapath.Uplink) error {
	if err := w.call("ReconcileUplinks"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.uplinks = uplinks
	return nil
}

func (w *world) ReconcileExcludes(excludes []netip.Prefix) error {
	if err := w.call("ReconcileExcludes"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.excludes = excludes
	return nil
}

func (w *world) Flows(limit int) ([]datapath.Flow, error) {
	flows := []datapath.Flow{
		{Protocol: 17, Action: "forward", TranslatesSource: true, To: netip.MustParseAddrPort("192.0.2.1:40960")},
		{Protocol: 1, Action: "deliver", Current: true},
	}
	return flows[:min(limit, len(flows))], w.call("Flows")
}

func (w *world) Invalidate() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.invalidated++
	return w.fail["Invalidate"]
}

func (w *world) Purge(ids []uint16) error {
	if err := w.call("Purge"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.purged = append(w.purged, ids...)
	return nil
}

func (w *world) Counters() ([]datapath.Counter, error) {
	if err := w.call("Counters"); err != nil {
		return nil, err
	}
	return []datapath.Counter{
		{Journey: "from_container", Reason: "forwarded", Packets: 7, Bytes: 700},
		{Journey: "from_container", Reason: "source_address", Dropped: true, Packets: 2, Bytes: 84},
	}, nil
}

func (w *world) Maps() ([]datapath.MapUsage, error) {
	return []datapath.MapUsage{
		{Name: "epochs", Capacity: 65536, Array: true, Memory: 4096},
		{Name: "flows", Entries: 3, Capacity: 1024, Memory: 4096},
	}, w.call("Maps")
}

func (w *world) policyDir() string { return filepath.Join(w.dir, "policy.d") }

func (w *world) ReconcilePolicy(p datapath.Policy) error {
	if err := w.call("ReconcilePolicy"); err != nil {
		return err
	}
	w.during("ReconcilePolicy")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policy = p
	w.policies++
	return nil
}

func (w *world) RepairPolicy() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mended++
	return w.fail["RepairPolicy"]
}

func (w *world) PolicyDenied() (datapath.PolicyHits, error) { return w.PolicyHits() }

func (w *world) PolicyHits() (datapath.PolicyHits, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hits, w.fail["PolicyHits"]
}

func (w *world) EachFlow(f func(datapath.Flow) bool) error {
	for _, flow := range w.flows {
		if !f(flow) {
			break
		}
	}
	return w.call("EachFlow")
}

func (w *world) AttachKind() string { return "tcx" }

func (w *world) Link(name string) (HostLink, error) {
	if err := w.call("Link"); err != nil {
		return HostLink{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if link, ok := w.links[name]; ok {
		return link, nil
	}
	if link, ok := w.bridges[name]; ok { // or the node's interface in a VLAN of one
		return link, nil
	}
	if link, ok := w.devices[name]; ok {
		return link, nil
	}
	return HostLink{}, ErrNoLink
}

func (w *world) HostLinks() ([]string, error) {
	if err := w.call("HostLinks"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.links)), nil
}

func (w *world) RemoveLink(name string) error {
	if err := w.call("RemoveLink"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.links, name)
	return nil
}

func (w *world) AddUnreachable(p netip.Prefix) error {
	if err := w.call("AddUnreachable"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unreachable[p] = true
	return nil
}

func (w *world) RemoveUnreachable(p netip.Prefix) error {
	if err := w.call("RemoveUnreachable"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.unreachable, p)
	return nil
}

func (w *world) ReconcileUnreachable(wanted []netip.Prefix) error {
	if err := w.call("ReconcileUnreachable"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unreachable = make(map[netip.Prefix]bool)
	for _, p := range wanted {
		w.unreachable[p] = true
	}
	return nil
}

func (w *world) Within(subnets []netip.Prefix) ([]Occupied, error) {
	if err := w.call("Within"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	var found []Occupied
	for _, o := range w.occupied {
		if slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(o.Addr) }) {
			found = append(found, o)
		}
	}
	return found, nil
}

func (w *world) At(a netip.Addr) (Occupied, bool, error) {
	if err := w.call("At"); err != nil {
		return Occupied{}, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.occupied {
		if o.Addr == a {
			return o, true, nil
		}
	}
	return Occupied{}, false, nil
}

func (w *world) Addresses() ([]netip.Addr, error) {
	if err := w.call("Addresses"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counted++
	return slices.Clone(w.own), nil
}

func (w *world) ReconcileHostAddresses(addresses []netip.Addr) error {
	if err := w.call("ReconcileHostAddresses"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = addresses
	return nil
}

func (w *world) Bound(protocol uint8) ([]BoundSocket, error) {
	if err := w.call("Bound"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dumps++
	return w.sockets[protocol], nil
}

func (w *world) Holder(b BoundSocket) string { return w.processes[b.Inode] }

func (w *world) Disconnect(protocol uint8, remotes map[netip.AddrPort]bool) (int, error) {
	if err := w.call("Disconnect"); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	name := datapath.ProtocolName(protocol)
	for remote := range remotes {
		w.cut[name] = append(w.cut[name], remote.String())
	}
	slices.Sort(w.cut[name])
	return 0, nil
}

func (w *world) ReservePorts(ports *portSet) error {
	if err := w.call("ReservePorts"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reserved = ports.String()
	w.reservings++
	return nil
}

// wire does what the plugin does between Prepare and Attach.
func (w *world) wire(e api.Endpoint) HostLink {
	mac, _ := net.ParseMAC(e.HostMAC)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nextIndex++
	link := HostLink{Name: e.HostIfName, Index: w.nextIndex, MAC: mac, Master: w.bridges[e.Bridge].Index}
	w.links[e.HostIfName] = link
	return link
}

// unwire does what the plugin's DEL does before Delete.
func (w *world) unwire(a api.Attachment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.links, api.HostIfName(a))
	delete(w.children, place("/run/netns/"+a.ContainerID, a.IfName))
}

var ctx = context.Background()

// podNetwork is the network of most tests.
func podNetwork() api.Network {
	return api.Network{
		Name: "pods", Driver: "routed", IPMasq: true,
		Ranges: []api.RangeSet{{{Subnet: netip.MustParsePrefix("10.10.0.0/24")}}, {{Subnet: netip.MustParsePrefix("fd00:10::/64")}}},
	}
}

func request(container string) api.PrepareRequest {
	return api.PrepareRequest{
		Attachment: api.Attachment{ContainerID: container, IfName: "eth0"},
		Network:    podNetwork(),
		NetNS:      "/run/netns/" + container,
	}
}

// bridgeMAC is that of every bridge.
const bridgeMAC = "02:00:00:00:0b:01"

// addBridge makes a bridge, which takes the place of one that has the name.
func (w *world) addBridge(name string) HostLink {
	mac, _ := net.ParseMAC(bridgeMAC)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nextIndex++
	w.bridges[name] = HostLink{Name: name, Index: w.nextIndex, MAC: mac, Bridge: true}
	return w.bridges[name]
}

// bridged is a request of the driver bridge.
func bridged(container string) api.PrepareRequest {
	req := request(container)
	req.Network.Name, req.Network.Driver, req.Network.Bridge = "lan", "bridge", "br0"
	req.Network.Ranges = []api.RangeSet{{{Subnet: netip.MustParsePrefix("10.30.0.0/24")}}, {{Subnet: netip.MustParsePrefix("fd00:30::/64")}}}
	req.HostMAC = bridgeMAC
	return req
}

// delegated is a request whose addresses another IPAM plugin has chosen.
func delegated(container, address string) api.PrepareRequest {
	req := request(container)
	req.Network.Name = "static"
	req.Network.Ranges = nil
	req.Addresses = []api.Address{{Address: netip.MustParsePrefix(address)}}
	return req
}

// add is a whole ADD.
func (w *world) add(s *Service, req api.PrepareRequest) (api.Endpoint, error) {
	e, err := s.Prepare(ctx, req)
	if err != nil {
		return e, err
	}
	if e.Driver == api.DriverMacvlan {
		w.bear(e)
		return s.Attach(ctx, e.Attachment, api.AttachRequest{})
	}
	link := w.wire(e)
	return s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index})
}

func (w *world) mustAdd(t *testing.T, s *Service, req api.PrepareRequest) api.Endpoint {
	t.Helper()
	e, err := w.add(s, req)
	must(t, err)
	return e
}

// remains is what a node holds that somebody must give back some day.
type remains struct {
	Links       []string
	Attached    []uint16
	Unreachable []netip.Prefix
	Excludes    []netip.Prefix
	Endpoints   []api.Attachment
	Leases      int
	Draining    []uint16
	Reserved    string
	Claimed     int      // ports that the index knows a holder of
	Subjects    []uint16 // of the policy that the datapath asks
	Children    []string // places of macvlan devices
	VLANs       []string // that the node has, and the state file
}

// nothing is what an idle node holds.
func nothing() remains {
	return remains{Excludes: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}}
}

// remains looks at kernel, memory and state file. They must agree.
func (w *world) remains(t *testing.T, s *Service) remains {
	t.Helper()
	w.mu.Lock()
	r := remains{
		Links:       slices.Sorted(maps.Keys(w.links)),
		Attached:    slices.Sorted(maps.Keys(w.attached)),
		Unreachable: sorted(maps.Keys(w.unreachable)),
		Excludes:    w.excludes,
		Reserved:    w.reserved,
		Subjects:    slices.Sorted(maps.Keys(w.policy.Subjects)),
		Children:    slices.Sorted(maps.Keys(w.children)),
	}
	for name, device := range w.devices {
		if device.VLAN != 0 {
			r.VLANs = append(r.VLANs, name)
		}
	}
	w.mu.Unlock()
	for _, pool := range s.opts.Leases.Pools() {
		r.Leases += int(pool.Leased)
	}
	records, draining, err := loadState(s.opts.DB)
	must(t, err)
	var stored []api.Endpoint
	for _, one := range records {
		r.Endpoints = append(r.Endpoints, one.Attachment)
		if s.isDetached(one.Attachment) && one.State == api.Ready {
			one.State = api.Detached // the file does not know
		}
		stored = append(stored, one.Endpoint)
	}
	r.Draining = draining
	made, err := madeVLANs(s.opts.DB)
	must(t, err)
	slices.Sort(r.VLANs)
	if d := cmp.Diff(r.VLANs, slices.Sorted(maps.Keys(made)), equate...); d != "" {
		t.Errorf("VLANs (-node +state file):\n%s", d)
	}
	s.mu.Lock()
	r.Claimed = len(s.index.ports)
	s.mu.Unlock()
	known, err := s.Endpoints(ctx)
	must(t, err)
	sortBy(stored, func(e api.Endpoint) uint16 { return e.ID })
	if d := cmp.Diff(stored, known, equate...); d != "" {
		t.Errorf("state file and memory differ (-file +memory):\n%s", d)
	}
	return r
}

var equate = []cmp.Option{cmpopts.EquateEmpty(), cmp.AllowUnexported(record{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})}

func (w *world) mustRemain(t *testing.T, s *Service, want remains) {
	t.Helper()
	if d := cmp.Diff(want, w.remains(t, s), equate...); d != "" {
		t.Errorf("remains (-want +got):\n%s", d)
	}
}

// wantCode fails the test unless the error is an *api.Error with this code.
func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	faultOf(t, err, code)
}

// faultOf returns an error that must be an *api.Error with this code.
func faultOf(t *testing.T, err error, code string) api.Error {
	t.Helper()
	var fault *api.Error
	if !errors.As(err, &fault) || fault.Code != code {
		t.Fatalf("error %v (%T), want code %q", err, err, code)
	}
	return *fault
}

// crash is the panic that stands for SIGKILL.
type crash struct{}

// crashAt has the service die when it reaches the point.
func (s *Service) crashAt(p failpoint.Point) {
	s.hit = func(reached failpoint.Point) {
		if reached == p {
			panic(crash{})
		}
	}
}

// survive calls f and returns whether it crashed.
func survive(f func()) (crashed bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(crash); !ok {
				panic(r)
			}
			crashed = true
		}
	}()
	f()
	return false
}
