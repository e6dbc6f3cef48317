// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Source ports for masquerade: so few that a flood takes most of those that it may.
const portFirst, portLast = 50000, 50999

// soak is a run.
type soak struct {
	*settings
	out     io.Writer
	started time.Time
	ledger  *ledger
	// root is the scope of what lives to the end.
	root *scope
	node *nodetest.Node
	// worlds are their namespaces, host is the node as a party.
	worlds  [2]*nstest.NS
	host    *party
	flooder *party
	// guarded has a policy that lets in judged alone, and not the stranger.
	guarded, judged, stranger *party
	// pods are hidden by masquerade, open is not; lan is as pods, of the driver bridge. street is of the driver
	// macvlan, and reaches its link alone.
	pods, open, lan, street nodetest.Network
	parties                 parties
	ways                    ways
	agent                   agent
	// fresh limits new flows of UDP to the world.
	fresh budget
	// claims are questions of UDP and TCP under way, by nonce.
	claims sync.Map
	// pings are echoes.
	pings sync.Map
	// alive are the streams that live, streamed the bytes that came back.
	alive    atomic.Int64
	streamed atomic.Uint64
	// guests counts those that were ever asked for.
	guests atomic.Int64
	before remains
	// inherited are the numbers of mounts that are not ours.
	inherited map[string]bool
}

// Addresses of the site. Each world is the other end of one of the node's uplinks.
var (
	uplinkOf = [2][2]string{{"192.0.2.1", "2001:db8::1"}, {"203.0.113.1", "2001:db8:2::1"}}
	worldOf  = [2][2]string{{"192.0.2.2", "2001:db8::2"}, {"203.0.113.2", "2001:db8:2::2"}}
	// spareOf are second addresses of the second uplink.
	spareOf = [2]string{"203.0.113.3", "2001:db8:2::3"}
	// anywhereOf both worlds have, plainOf the first.
	anywhereOf = [2]string{"198.18.0.1", "2001:db8:ffff::1"}
	plainOf    = [2]string{"198.18.9.1", "2001:db8:9::1"}
	podsOf     = [2]string{"10.10.0.0/16", "fd00:10::/64"}
	openOf     = [2]string{"10.20.0.0/16", "fd00:20::/64"}
	lanOf      = [2]string{"10.30.0.0/16", "fd00:30::/64"}
	streetOf   = [2]string{"10.40.0.0/16", "fd00:40::/64"}
	// neighbourOf is the station at the other end of the street.
	neighbourOf = [2]string{"10.40.255.254", "fd00:40::ffff:1"}
)

// streetName is the device of the node whose link the street is.
const streetName = "street0"

// lanName is the bridge.
const lanName = "lan0"

// build makes node, worlds and residents, and starts the agent.
func (s *soak) build(tb testing.TB) {
	s.fresh.rate = freshFlows
	// Half of the translations are the flood's. Of the others some 450 are fresh flows to the world, and echoes of a minute
	// are as many; what the judged begins and is asked while it has a policy comes to 800 more.
	const translationsMax = 8192
	programs := nodetest.Programs{
		Agent: filepath.Join(s.bin, "tendril-agent"), CNI: filepath.Join(s.bin, "tendril-cni"), CLI: filepath.Join(s.bin, "tendril"),
	}
	s.node = nodetest.New(tb, nodetest.Options{Programs: programs, Flags: []string{
		"--flows-max", "1024", "--translations-max", strconv.Itoa(translationsMax),
		"--masquerade-ports", fmt.Sprintf("%d-%d", portFirst, portLast),
		"--masquerade-exclude", plainOf[0] + "/32," + plainOf[1] + "/128",
	}})
	s.pods = s.node.Network("pods", podsOf[:]...)
	s.open = s.node.Network("open", openOf[:]...).With("ipMasq", false)
	s.lan = s.node.Network("lan", lanOf[:]...).With("driver", api.DriverBridge).With("bridge", lanName).With("isDefaultGateway", true)
	s.street = s.node.Network("street", streetOf[:]...).With("driver", api.DriverMacvlan).With("master", streetName).With("ipMasq", false)
	settle(tb, s.node.NS)
	for i := range s.worlds {
		s.worlds[i] = nstest.New(tb, fmt.Sprintf("world%d", i))
		s.connect(tb, i)
	}
	// The specific routes are for what must not follow the default one.
	nodetest.Route(tb, s.node.NS, []string{plainOf[0], "via", worldOf[0][0]}, []string{plainOf[1], "via", worldOf[0][1]})
	nodetest.Address(tb, s.worlds[0], "lo", plainOf[0]+"/32", plainOf[1]+"/128")
	nodetest.Address(tb, s.node.NS, "up1", spareOf[0]+"/24", spareOf[1]+"/64")
	neighbour := nstest.New(tb, "neighbour")
	settle(tb, neighbour)
	nstest.Veth(tb, s.node.NS, streetName, neighbour, "eth0")
	nodetest.Address(tb, neighbour, "eth0", neighbourOf[0]+"/16", neighbourOf[1]+"/64")

	s.before.bare = s.bare(tb)
	s.startAgent(tb)
	nodetest.Eventually(tb, "uplinks", func() error { return s.followed(tb) })
	// What the first request makes and keeps is there before the count begins.
	for _, network := range []nodetest.Network{s.pods, s.lan, s.street} {
		first, err := s.attach("first", network)
		if err != nil {
			tb.Fatal(err)
		}
		s.remove(first, false, false)
	}
	nodetest.Eventually(tb, "numbers that wait for the purge", func() error {
		return nodetest.Unlike(s.node.Metrics(tb)["tendril_endpoint_ids_draining"], 0)
	})
	s.before.look(tb, s)

	for i, world := range s.worlds {
		p := &party{name: fmt.Sprintf("world%d", i), ns: world, world: i, lasts: true, scope: &scope{}}
		for family := range 2 {
			p.places = append(p.places,
				&place{addr: netip.MustParseAddr(worldOf[i][family]), ports: 4},
				&place{addr: netip.MustParseAddr(anywhereOf[family]), ports: 4, anywhere: true})
			if i == 0 {
				p.places = append(p.places, &place{addr: netip.MustParseAddr(plainOf[family]), ports: 4, plain: true})
			}
		}
		s.join(tb, p)
	}
	s.host = &party{name: "host", ns: s.node.NS, world: -1, lasts: true, scope: &scope{}}
	for family := range 2 {
		s.host.places = append(s.host.places, &place{addr: netip.MustParseAddr(uplinkOf[0][family]), ports: 2})
	}
	s.join(tb, s.host)
	at := &party{name: "neighbour", ns: neighbour, world: -1, street: true, lasts: true, scope: &scope{}}
	for family := range 2 {
		at.places = append(at.places, &place{addr: netip.MustParseAddr(neighbourOf[family]), ports: 4})
	}
	s.join(tb, at)
	for i, network := range []nodetest.Network{withRole(s.pods, judgedRole), s.pods, s.pods, s.open, s.pods, s.lan, s.lan, s.street} {
		p, err := s.attach(fmt.Sprintf("resident%d", i), network)
		if err != nil {
			tb.Fatal(err)
		}
		p.lasts = true
		switch i {
		case 0:
			s.judged = p
		case 1:
			s.stranger = p
		case 4:
			p.floods, s.flooder = true, p
		}
		s.join(tb, p)
	}
	if err := s.apply(guardPolicy); err != nil {
		tb.Fatal(err)
	}
	// Nobody else is to ask the guarded, so it does not join.
	var err error
	if s.guarded, err = s.attach("guarded", withRole(s.pods, guardedRole)); err != nil {
		tb.Fatal(err)
	}
	s.parties.identify(s.guarded)
	if err := s.serve(s.guarded); err != nil {
		tb.Fatal(err)
	}
}

// connect makes an uplink and what lies behind it. The default route by the first
// uplink is the better one.
func (s *soak) connect(tb testing.TB, i int) {
	world, up := s.worlds[i], fmt.Sprintf("up%d", i)
	settle(tb, world)
	nstest.Veth(tb, s.node.NS, up, world, "eth0")
	nodetest.Address(tb, s.node.NS, up, uplinkOf[i][0]+"/24", uplinkOf[i][1]+"/64")
	nodetest.Address(tb, world, "eth0", worldOf[i][0]+"/24", worldOf[i][1]+"/64")
	nodetest.Address(tb, world, "lo", anywhereOf[0]+"/32", anywhereOf[1]+"/128")
	for family := range 2 {
		gateway := uplinkOf[i][family]
		for _, subnet := range []string{podsOf[family], openOf[family], lanOf[family]} {
			nodetest.Route(tb, world, []string{subnet, "via", gateway})
		}
		nodetest.Route(tb, s.node.NS, defaultRoute(i, family, metricOf(i), uplinkOf[i][family]))
		address := netip.MustParseAddr(gateway)
		s.ways.now.source[i][family] = address
		s.ways.known[i][family] = []netip.Addr{address}
		if i == 1 {
			s.ways.known[i][family] = append(s.ways.known[i][family], netip.MustParseAddr(spareOf[family]))
		}
	}
}

// defaultRoute is what ip takes.
func defaultRoute(i, family, metric int, source string) []string {
	return []string{
		[2]string{"0.0.0.0/0", "::/0"}[family], "via", worldOf[i][family], "dev", fmt.Sprintf("up%d", i),
		"metric", fmt.Sprint(metric), "src", source,
	}
}

// metricOf a world's default route; the first world's is the better one.
func metricOf(world int) int { return 100 + 400*world }

// settle has links made later in a namespace use their addresses at once.
func settle(tb testing.TB, ns *nstest.NS) {
	ns.Run(tb, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
}

// join has a party that is wired take part.
func (s *soak) join(tb testing.TB, p *party) {
	tb.Helper()
	s.parties.identify(p)
	if err := s.serve(p); err != nil {
		tb.Fatal(err)
	}
	s.parties.join(p)
}

// followed waits for the agent to serve the uplinks as they should be.
func (s *soak) followed(tb testing.TB) error {
	var got []string
	for _, u := range s.node.Status(tb).Uplinks {
		got = append(got, fmt.Sprint(u.Name, " ", u.State, " ", u.IPv4, " ", u.IPv6))
	}
	source := s.ways.look().source
	want := make([]string, 0, 2)
	for i := range 2 {
		want = append(want, fmt.Sprint("up", i, " used ", source[i][0], " ", source[i][1]))
	}
	return nodetest.Unlike(strings.Join(got, ", "), strings.Join(want, ", "))
}

// agentLog is the end of the agent's log, for a report of what went wrong.
func (s *soak) agentLog() string {
	if s.node == nil {
		return ""
	}
	text, _ := os.ReadFile(filepath.Join(s.node.Dir, "log"))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\nthe agent's log ends with:\n" + strings.Join(lines[max(0, len(lines)-30):], "\n")
}
