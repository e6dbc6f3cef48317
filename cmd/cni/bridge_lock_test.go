// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Who has made a bridge and fails waits for those who are about to join it, and they for
// who removes it.
func TestBridgeLock(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	share := func() *bridgeLock {
		t.Helper()
		l, err := lockBridges(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.release)
		return l
	}
	maker, other := share(), share()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if alone, err := maker.alone(ctx); alone || err != nil {
		t.Errorf("beside another: %v, %v", alone, err)
	}
	maker.release()
	other.release()
	maker = share()
	if alone, err := maker.alone(t.Context()); !alone || err != nil {
		t.Errorf("after the other: %v, %v", alone, err)
	}
	joined := make(chan *bridgeLock)
	go func() { joined <- share() }()
	select {
	case <-joined:
		t.Error("somebody joins while the bridge is removed")
	default:
	}
	late, giveUp := context.WithCancel(t.Context())
	giveUp()
	if l, err := lockBridges(late, socket); !errors.Is(err, context.Canceled) {
		l.release()
		t.Errorf("beside one that does not go on: %v", err)
	}
	maker.release()
	<-joined
	if _, err := lockBridges(t.Context(), filepath.Join(t.TempDir(), "none", "agent.sock")); !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("without a folder: %v", err)
	}
}

// ADDs that fail and ADDs that do not, all at once on a node without the bridge: whoever
// succeeds is a port of it.
func TestBridgeIsKeptForOthers(t *testing.T) {
	nstest.Root(t)
	s := &story{t: t, node: nstest.New(t, "node"), agent: startAgent(t, t.TempDir())}
	t.Cleanup(s.agent.stop)
	const racers = 6
	var containers [racers]*nstest.NS
	for i := range containers {
		containers[i] = nstest.New(t, "c")
	}
	for round := range 5 {
		call := func(command string, i int) error {
			routes := ""
			if i%2 == 0 {
				routes = `"routes": [{"dst": "192.0.2.0/24", "gw": "10.11.0.1"}],` // refused when all else is done
			}
			_, _, err := s.run(map[string]string{
				"CNI_COMMAND": command, "CNI_CONTAINERID": fmt.Sprintf("c%d-%d", round, i), "CNI_IFNAME": "eth0", "CNI_NETNS": containers[i].Path,
			}, fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "pods", "socket": %q, "driver": "bridge", %s
				"ipam": {"type": "tendril", "ranges": [[{"subnet": "10.10.0.0/16"}]]}}`, s.agent.socket, routes))
			return err
		}
		var all sync.WaitGroup
		start := make(chan struct{})
		for i := range racers {
			all.Go(func() {
				<-start
				if err := call("ADD", i); (err == nil) != (i%2 == 1) {
					t.Errorf("ADD %d: %v", i, err)
				}
			})
		}
		close(start)
		all.Wait()
		bridge, err := s.node.Handle.LinkByName("tendril0")
		if err != nil {
			t.Fatal(err)
		}
		links, err := s.node.Handle.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		ports := slices.DeleteFunc(links, func(l netlink.Link) bool { return l.Attrs().MasterIndex != bridge.Attrs().Index })
		if len(ports) != racers/2 {
			t.Errorf("the bridge has %d ports, not %d", len(ports), racers/2)
		}
		for i := range racers {
			if err := call("DEL", i); err != nil {
				t.Errorf("DEL %d: %v", i, err)
			}
		}
		s.node.Run(t, "ip", "link", "del", "tendril0")
	}
}
