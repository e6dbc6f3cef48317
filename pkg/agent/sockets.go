// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Sockets are those of the node's network namespace. Methods that the kernel was
// built without return errors.ErrUnsupported.
type Sockets interface {
	// Bound returns the sockets of IPPROTO_TCP or IPPROTO_UDP, of both families.
	Bound(protocol uint8) ([]BoundSocket, error)
	// Holder says whose a socket is: "process nginx (pid 5)"; empty when that is not
	// to be seen, as in another pid namespace.
	Holder(BoundSocket) string
	// Disconnect ends the connections to these addresses and returns how many
	// there were. Their processes get an error.
	Disconnect(protocol uint8, remotes map[netip.AddrPort]bool) (int, error)
}

// BoundSocket is a socket that gets what anybody sends to its address: a TCP
// socket that listens, or a UDP socket that is bound and not connected.
type BoundSocket struct {
	// Addr has the unspecified address where the socket has all of the family.
	Addr netip.AddrPort
	// V6Only says of a socket of all IPv6 addresses that it has not all of IPv4
	// as well (IPV6_V6ONLY).
	V6Only bool
	Inode  uint32
	// Cgroup is the number of the control group that it was made in, 0 before
	// Linux 5.8.
	Cgroup uint64
}

// holds tells whether the socket gets what is sent to a, or, if that is
// unspecified, to any address of its family.
func (b BoundSocket) holds(a netip.Addr) bool {
	own := b.Addr.Addr()
	if own.Is4() == a.Is4() {
		return overlaps(own, a)
	}
	return own.Is6() && own.IsUnspecified() && !b.V6Only
}

// checkPorts refuses ports that another endpoint or a socket of the host has.
func (s *Service) checkPorts(claims []portClaim) error {
	if len(claims) == 0 {
		return nil
	}
	s.mu.Lock()
	err := s.index.portTaken(claims)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	for _, name := range []string{"tcp", "udp"} {
		if !slices.ContainsFunc(claims, func(c portClaim) bool { return c.protocol == name }) {
			continue
		}
		sockets, err := s.opts.Sockets.Bound(portProtocols[name])
		if errors.Is(err, errors.ErrUnsupported) {
			s.log.Warn("ports mapped without a look at the host's sockets", "protocol", name, "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("look at the host's %s sockets: %w", name, err)
		}
		if err := s.portHeld(claims, name, sockets); err != nil {
			return err
		}
	}
	return nil
}

// portHeld returns an *api.Error that names the process whose socket has one of
// the ports.
func (s *Service) portHeld(claims []portClaim, protocol string, sockets []BoundSocket) error {
	byPort := make(map[uint16][]BoundSocket)
	for _, one := range sockets {
		byPort[one.Addr.Port()] = append(byPort[one.Addr.Port()], one)
	}
	for _, c := range claims {
		if c.protocol != protocol {
			continue
		}
		for _, one := range byPort[c.host.Port()] {
			if one.holds(c.host.Addr()) {
				whose := "a socket of the host"
				if holder := s.opts.Sockets.Holder(one); holder != "" {
					whose = holder
				}
				return c.taken(whose + " at " + one.Addr.String())
			}
		}
	}
	return nil
}

// disconnect ends what sockets of the host had with the endpoint's mapped ports:
// their process would wait for a container that is gone.
func (s *Service) disconnect(r *record) {
	remotes := make(map[uint8]map[netip.AddrPort]bool)
	for _, p := range r.ports() {
		if remotes[p.Protocol] == nil {
			remotes[p.Protocol] = make(map[netip.AddrPort]bool)
		}
		remotes[p.Protocol][netip.AddrPortFrom(p.ContainerIP, p.ContainerPort)] = true
	}
	for protocol, ends := range remotes {
		ended, err := s.opts.Sockets.Disconnect(protocol, ends)
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			s.cannotDisconnect.Do(func() { s.log.Debug("sockets of the host stay connected to containers that go", "error", err) })
		case err != nil:
			s.log.Warn("sockets of the host stay connected", "container", r.ContainerID, "interface", r.IfName, "error", err)
		case ended > 0:
			s.log.Debug("sockets of the host disconnected", "container", r.ContainerID, "interface", r.IfName, "sockets", ended)
		}
	}
}
