// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// errNoAgent is of a request that met no agent, or one that ended.
var errNoAgent = errors.New("the agent was away")

// pluginNotAvailable is the code by which STATUS says so (CNI specification 1.1.0).
const pluginNotAvailable = 50

// call runs the plugin. Its error is errNoAgent where that is the reason.
func (s *soak) call(c nodetest.Call) (stdout string, err error) {
	before := s.agent.look()
	var said nodetest.Answer
	failed := try(func(tb testing.TB) { said = s.node.Call(tb, c) })
	s.ledger.count(c.Command)
	switch {
	case failed != nil:
		return "", failed
	case said.Error == nil && !said.Killed:
		return said.Stdout, nil
	case said.Error != nil && !s.agent.served(before) && (said.Error.Code == types.ErrTryAgainLater || c.Command == "STATUS" && said.Error.Code == pluginNotAvailable):
		s.ledger.count("permitted: " + c.Command + " without an agent")
		return "", errNoAgent
	}
	return "", fmt.Errorf("%s of %s: %+v %s", c.Command, c.ContainerID, said, said.Stderr)
}

// attach makes a container and has the plugin attach it. Where it cannot, it
// does as runtimes do: DEL.
func (s *soak) attach(name string, network nodetest.Network) (p *party, err error) {
	p = &party{name: name, world: -1, street: network["name"] == s.street["name"], scope: &scope{}, hidden: network["ipMasq"] == true}
	c := &nodetest.Container{Attachment: api.Attachment{ContainerID: name, IfName: "eth0"}, Network: network}
	p.container = c
	if err := p.scope.try(func(tb testing.TB) { c.NS = nstest.New(tb, "guest") }); err != nil {
		return nil, err
	}
	p.ns = c.NS
	text, err := s.call(c.Call("ADD"))
	if err == nil {
		err = c.Read(text)
	}
	if err != nil {
		if _, undo := s.call(c.Call("DEL")); undo != nil {
			err = errors.Join(fmt.Errorf("after an ADD that failed: %w", undo), err)
		}
		p.scope.close()
		return nil, errors.Join(err, p.scope.err())
	}
	p.places = []*place{{addr: c.IPv4, ports: 1}, {addr: c.IPv6, ports: 1}}
	return p, nil
}

// guest is a container that may be deleted.
func guest(p *party) bool { return p.container != nil && !p.lasts }

// addGuests adds up to four at once.
func (s *soak) addGuests(ctx context.Context, random *rand.Rand) {
	room := s.endpoints - len(s.parties.list(guest))
	var group sync.WaitGroup
	for range min(room, 1+random.IntN(4)) {
		own := rand.New(rand.NewPCG(random.Uint64(), 0))
		network := []nodetest.Network{s.pods, s.pods, s.open, s.lan, s.lan, s.street}[random.IntN(6)]
		name := fmt.Sprintf("guest%d", s.guests.Add(1))
		group.Go(func() {
			p, err := s.attach(name, network)
			if err == nil {
				s.parties.identify(p)
				err = s.serve(p)
			}
			if err != nil {
				if !errors.Is(err, errNoAgent) {
					s.ledger.wrong("ADD", "%v", err)
				}
				return
			}
			s.parties.join(p)
			s.startGuestStream(ctx, p, own)
		})
	}
	group.Wait()
}

// startGuestStream has a guest hold a stream to anybody.
func (s *soak) startGuestStream(ctx context.Context, p *party, random *rand.Rand) {
	for range 10 {
		target := s.parties.pick(random, func(t *party) bool { return t != p && t.street == p.street })
		at := target.places[random.IntN(len(target.places))]
		if at.anywhere { // it could begin by the wrong way
			continue
		}
		s.launchStream(ctx, p, at, lively, random)
		return
	}
}

// launchStream starts a stream unless one of the parties has gone.
func (s *soak) launchStream(ctx context.Context, p *party, at *place, rest pause, random *rand.Rand) {
	if !p.enter() {
		return
	}
	if !at.party.enter() {
		p.leave()
		return
	}
	go s.holdStream(ctx, p, at, rest, random)
}

// deleteGuests deletes up to four at once, in the middle of what they do.
func (s *soak) deleteGuests(_ context.Context, random *rand.Rand) {
	var group sync.WaitGroup
	for range 1 + random.IntN(4) {
		p := s.parties.pick(random, func(p *party) bool { return guest(p) && !p.leaving.Load() })
		if p == nil {
			break
		}
		p.leaving.Store(true)
		twice, without := random.IntN(5) == 0, random.IntN(5) == 0
		group.Go(func() { s.remove(p, twice, without) })
	}
	group.Wait()
}

// remove deletes a party's container, perhaps twice, perhaps without telling the
// namespace, as some runtimes do.
func (s *soak) remove(p *party, twice, without bool) {
	p.leaving.Store(true)
	call := p.container.Call("DEL")
	if without {
		call.NetNS = ""
	}
	_, err := s.call(call)
	if twice && err == nil {
		_, err = s.call(call)
	}
	s.parties.part(p)
	if err = errors.Join(err, p.close()); err != nil {
		s.ledger.wrong("DEL", "%v", err)
	}
}

// loseGuest has a guest vanish with its namespace, and GC find out.
func (s *soak) loseGuest(_ context.Context, random *rand.Rand) {
	p := s.parties.pick(random, guest)
	if p == nil {
		return
	}
	p.leaving.Store(true)
	s.parties.part(p)
	if err := p.close(); err != nil {
		s.ledger.wrong("a namespace's end", "%v", err)
	}
	valid := []any{}
	for _, one := range append(s.parties.list(func(o *party) bool { return o.container != nil }), s.guarded) {
		if one.container.Network["name"] == p.container.Network["name"] {
			valid = append(valid, map[string]any{"containerID": one.container.ContainerID, "ifname": one.container.IfName})
		}
	}
	before := s.agent.look()
	_, err := s.call(nodetest.Call{Command: "GC", Network: p.container.Network.With("cni.dev/valid-attachments", valid)})
	if errors.Is(err, errNoAgent) {
		_, err = s.call(p.container.Call("DEL"))
	} else if err == nil {
		_, left := s.node.API.Endpoint(context.Background(), p.container.Attachment)
		if answer := (*api.Error)(nil); (!errors.As(left, &answer) || answer.Code != api.CodeNotFound) && s.agent.served(before) {
			err = fmt.Errorf("the agent still knows %s: %w", p.name, left)
		}
	}
	if err != nil {
		s.ledger.wrong("GC", "%v", err)
	}
}

// checkGuest has the plugin compare a container with what ADD made.
func (s *soak) checkGuest(_ context.Context, random *rand.Rand) {
	p := s.parties.pick(random, func(p *party) bool { return p.container != nil })
	call := p.container.Call("CHECK")
	call.Network = p.container.Network.With("prevResult", json.RawMessage(p.container.Result))
	if _, err := s.call(call); err != nil && !errors.Is(err, errNoAgent) {
		s.ledger.wrong("CHECK", "%v", err)
	}
	if _, err := s.call(nodetest.Call{Command: "STATUS", Network: p.container.Network}); err != nil && !errors.Is(err, errNoAgent) {
		s.ledger.wrong("STATUS", "%v", err)
	}
}
