// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"sync"
)

// Reservations keep ports from the node's own sockets.
type Reservations interface {
	// ReservePorts has the kernel choose none of these for a socket that asks
	// for any port. They take the place of those of the call before.
	ReservePorts(*portSet) error
}

// reservedPorts are the host ports of all mappings. Who sends to one reaches a
// container, so a socket of the host that the kernel gave it would get no answer.
type reservedPorts struct {
	to Reservations

	mu    sync.Mutex
	users map[uint16]int // number of endpoints that have the port
	ports portSet
}

// count adds n to the users of the record's ports and returns whether one of them
// is wanted for the first time, or no longer.
func (p *reservedPorts) count(r *record, n int) (changed bool) {
	seen := make(map[uint16]bool, len(r.Ports))
	for _, m := range r.Ports {
		if seen[m.HostPort] {
			continue
		}
		seen[m.HostPort] = true
		before := p.users[m.HostPort]
		p.users[m.HostPort] = before + n
		if before+n > 0 {
			p.ports.add(m.HostPort, m.HostPort)
		} else {
			p.ports.remove(m.HostPort)
			delete(p.users, m.HostPort)
		}
		changed = changed || (before > 0) != (before+n > 0)
	}
	return changed
}

// add reserves the ports of an endpoint.
func (p *reservedPorts) add(r *record) error {
	if len(r.Ports) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.count(r, 1) {
		return nil
	}
	return p.apply() // whoever gets the error removes the endpoint
}

// remove gives back what only this endpoint had reserved.
func (p *reservedPorts) remove(r *record) error {
	if len(r.Ports) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.count(r, -1) {
		return nil
	}
	return p.apply()
}

// reset reserves the ports of exactly these endpoints.
func (p *reservedPorts) reset(records []*record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users, p.ports = make(map[uint16]int), portSet{}
	for _, r := range records {
		p.count(r, 1)
	}
	return p.apply()
}

// ensure tries again what was refused.
func (p *reservedPorts) ensure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.apply()
}

func (p *reservedPorts) apply() error {
	ports := p.ports
	if err := p.to.ReservePorts(&ports); err != nil {
		return fmt.Errorf("reserve mapped ports: %w", err)
	}
	return nil
}
