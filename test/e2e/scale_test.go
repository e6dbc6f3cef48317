// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Two nodes side by side, with the same ranges, take many containers at once
// and let them go: nothing fails, and nothing is left of any of them.
func TestManyContainers(t *testing.T) { eachDriver(t, testManyContainers) }

func testManyContainers(t *testing.T, d driver) {
	count, atOnce := 1000, 50
	if d != api.DriverRouted { // macvlan's have neighbours, of whom the kernel keeps 1,024 in all namespaces together
		count = 200
	}
	if small() {
		count, atOnce = 60, 10
	}
	nodes := []*site{drivenBy(t, d), drivenBy(t, d)}
	before := make([]whole, len(nodes))
	for i, s := range nodes {
		// What the first request makes and keeps, such as connections, is
		// there before the count begins.
		s.Delete(t, s.Attach(t, "first", s.pods))
		nodetest.Eventually(t, "numbers that wait for the purge", func() error {
			return nodetest.Unlike(s.Metrics(t)["tendril_endpoint_ids_draining"], 0)
		})
		before[i] = s.whole(t)
	}
	containers := make([]*nodetest.Container, count)
	for i := range containers {
		c := &nodetest.Container{NS: nstest.New(t, fmt.Sprint(i)), Network: nodes[i%2].pods}
		c.ContainerID, c.IfName = fmt.Sprintf("container-%d", i), "eth0"
		containers[i] = c
	}

	took := callAll(t, nodes, containers, "ADD", atOnce)
	t.Logf("%d ADD, %d at once: half took less than %v each", count, atOnce, took)
	for i, s := range nodes {
		addresses := make(map[netip.Addr]bool)
		for j, c := range containers {
			if j%2 != i {
				continue
			}
			if addresses[c.IPv4] || addresses[c.IPv6] {
				t.Errorf("an address of %s and %s is another container's", c.IPv4, c.IPv6)
			}
			addresses[c.IPv4], addresses[c.IPv6] = true, true
		}
		if got := s.Status(t).Endpoints; got != count/2 {
			t.Errorf("the agent knows %d endpoints, not %d", got, count/2)
		}
	}
	// All of them reach the world of their own node, and leave flows and
	// translations behind.
	for i, s := range nodes {
		for _, f := range families() {
			at := serveUDP(t, s.world, netip.AddrPortFrom(f.world, 0))
			for j, c := range containers {
				if j%2 == i {
					conn := dialUDP(t, c.NS, netip.AddrPort{}, at)
					if got := askUDP(t, conn, pattern(10)).Addr(); got != d.shown(f, c) {
						t.Fatalf("the world saw %s as %s", c.ContainerID, got)
					}
					_ = conn.Close()
				}
			}
		}
	}

	took = callAll(t, nodes, containers, "DEL", atOnce)
	t.Logf("%d DEL, %d at once: half took less than %v each", count, atOnce, took)
	for i, s := range nodes {
		s.Becomes(t, before[i].State)
		nodetest.Eventually(t, "what is left on the node", func() error {
			if diff := cmp.Diff(before[i], s.whole(t)); diff != "" {
				return fmt.Errorf("(-before +after):\n%s", diff)
			}
			return nil
		})
	}
	for _, c := range containers {
		if links := must(c.Handle.LinkList())(t); len(links) != 1 {
			t.Errorf("container %s still has %d links", c.ContainerID, len(links))
		}
	}
}

// whole is the state of a node and what its agent has open.
type whole struct {
	nodetest.State
	Files      []string
	Goroutines float64
	// Sockets is the number of those of the node's namespace.
	Sockets string
}

func (s *site) whole(t *testing.T) whole {
	t.Helper()
	// The scrape is a request, too: the same one before and after.
	return whole{
		State:      s.State(t),
		Files:      s.Agent().Files(t),
		Goroutines: s.Metrics(t)["go_goroutines"],
		Sockets:    strings.SplitN(s.Run(t, "cat", "/proc/net/sockstat"), "\n", 2)[0],
	}
}

// callAll runs the plugin for every container, and returns the median of the
// times it took.
func callAll(t *testing.T, nodes []*site, containers []*nodetest.Container, command string, atOnce int) time.Duration {
	t.Helper()
	var mu sync.Mutex
	var times []time.Duration
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, c := range containers {
		group.Go(func() error {
			started := time.Now()
			answer := nodes[i%2].Call(t, c.Call(command))
			mu.Lock()
			times = append(times, time.Since(started))
			mu.Unlock()
			if answer.Error != nil || answer.Killed {
				return fmt.Errorf("%s of %s: %+v", command, c.ContainerID, answer)
			}
			if command == "ADD" {
				return c.Read(answer.Stdout)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(times)
	return times[len(times)/2]
}
