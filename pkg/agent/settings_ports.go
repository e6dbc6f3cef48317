// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"

	"go.etcd.io/bbolt"
)

var _ Reservations = (*Settings)(nil)

// ReservePorts implements Reservations for mapped ports. Those outside of
// net.ipv4.ip_local_port_range, of which the kernel chooses none anyway, are left
// alone, and so are those that others have reserved. Before Apply it must not be
// called.
func (s *Settings) ReservePorts(mapped *portSet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reserve(mapped, slog.LevelDebug)
}

// reserve makes the reserved ports that are ours those of masquerade and the mapped
// ones. s.mu is held.
func (s *Settings) reserve(mapped *portSet, level slog.Level) error {
	wanted := s.masquerade
	if *mapped != (portSet{}) {
		chosen, err := s.localPorts()
		if err != nil {
			return err
		}
		wanted = *wanted.union(mapped.both(chosen))
	}
	if s.reserved != nil && *s.reserved == wanted {
		return nil
	}
	if err := s.changeReserved(&wanted, level); err != nil {
		return err
	}
	s.reserved = &wanted
	return nil
}

// changeReserved reserves exactly these ports besides those of others. Until the end
// it is written down that all are ours which may be, so that after a crash at any
// moment no port is taken for somebody else's. What others write in the instant
// between reading and writing is lost: the kernel knows no other way.
func (s *Settings) changeReserved(wanted *portSet, level slog.Level) error {
	current, err := s.read(pathReservedPorts)
	if err != nil {
		return err
	}
	present, err := parsePorts(current)
	if err != nil {
		return fmt.Errorf("read setting %s: %w", pathReservedPorts, err)
	}
	old, err := s.recorded(pathReservedPorts)
	if err != nil {
		return err
	}
	before := &portSet{}
	if old != nil {
		if before, err = old.ports(); err != nil {
			return fmt.Errorf("read record of setting %s: %w", pathReservedPorts, err)
		}
	}
	others := present.minus(before)
	ours := wanted.minus(others)
	if *ours.minus(before) != (portSet{}) {
		if err := s.recordPorts(others, ours.union(before)); err != nil {
			return err
		}
	}
	if after := others.union(ours); *after != *present {
		value := after.String()
		if err := s.write(pathReservedPorts, value); err != nil {
			return err
		}
		s.Logger.Log(context.Background(), level, "setting changed", "setting", pathReservedPorts, "from", current, "to", value)
	}
	if *before.minus(ours) != (portSet{}) {
		return s.recordPorts(others, ours)
	}
	return nil
}

// recordPorts writes down which reserved ports are ours.
func (s *Settings) recordPorts(others, ours *portSet) error {
	if *ours == (portSet{}) {
		return s.record(pathReservedPorts, nil)
	}
	return s.record(pathReservedPorts, &setting{Previous: others.String(), Written: others.union(ours).String()})
}

// mappedPorts are the host ports of the endpoints in a state file.
func mappedPorts(db *bbolt.DB) (*portSet, error) {
	records, _, err := loadState(db)
	if err != nil {
		return nil, err
	}
	ports := &portSet{}
	for _, r := range records {
		for _, m := range r.Ports {
			ports.add(m.HostPort, m.HostPort)
		}
	}
	return ports, nil
}

// localPorts are those that the kernel chooses from.
func (s *Settings) localPorts() (*portSet, error) {
	from, to, err := s.localRange()
	if errors.Is(err, fs.ErrNotExist) {
		return &portSet{}, nil
	}
	if err != nil {
		return nil, err
	}
	ports := &portSet{}
	ports.add(from, to)
	return ports, nil
}

func (s *Settings) localRange() (from, to uint16, err error) {
	text, err := s.read(pathLocalPorts)
	if err != nil {
		return 0, 0, err
	}
	if from, to, err = parseLocalRange(text); err != nil {
		return 0, 0, fmt.Errorf("read setting %s: %w", pathLocalPorts, err)
	}
	return from, to, nil
}

// parseLocalRange reads two ports, the lower first, as the kernel writes them.
func parseLocalRange(text string) (from, to uint16, err error) {
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return 0, 0, fmt.Errorf("%q is no range: it is not two ports", text)
	}
	first, err1 := strconv.ParseUint(fields[0], 10, 16)
	last, err2 := strconv.ParseUint(fields[1], 10, 16)
	if err := cmp.Or(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("%q is no range: %w", text, err)
	}
	if last < first {
		return 0, 0, fmt.Errorf("%q is no range: the first is above the last", text)
	}
	return uint16(first), uint16(last), nil
}

// fewPorts is how many ports for its own sockets a node should have left.
const fewPorts = 1024

// checkPorts refuses to take all ports from the node's own sockets.
func (s *Settings) checkPorts(first, last uint16) error {
	from, to, err := s.localRange()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	left := 0
	for port := int(from); port <= int(to); port++ {
		if port < int(first) || port > int(last) {
			left++
		}
	}
	switch {
	case left == 0:
		return fmt.Errorf("masquerade-ports %d-%d leave the node's own sockets no port of net.ipv4.ip_local_port_range, %d-%d", first, last, from, to)
	case left < fewPorts:
		s.Logger.Warn("masquerade-ports leave the node's own sockets few ports of net.ipv4.ip_local_port_range", "left", left)
	}
	return nil
}

// ports returns those that were added when the setting was written.
func (o *setting) ports() (*portSet, error) {
	before, err := parsePorts(o.Previous)
	if err != nil {
		return nil, err
	}
	after, err := parsePorts(o.Written)
	if err != nil {
		return nil, err
	}
	return after.minus(before), nil
}
