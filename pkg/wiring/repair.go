// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// RepairBridge puts back what others took from a bridge that has endpoints: the bridge
// itself, its flags, and the addresses by which containers reach the node. It returns what
// it mended, in words, also with an error. Another address in the way is ErrOverlap.
func RepairBridge(host *Namespace, b Bridge, gateways []netip.Prefix) (mended []string, err error) {
	before, err := lookUpBridge(host, b.Name)
	switch {
	case errors.Is(err, unix.ENODEV):
		mended = append(mended, "the bridge was missing")
	case err != nil:
		return nil, err
	case before.flags&unix.IFF_UP == 0:
		mended = append(mended, "it was down")
	case b.Promisc && before.flags&unix.IFF_PROMISC == 0:
		mended = append(mended, "promiscuous mode was off")
	}
	var faults []string
	if before.kind != "" {
		if faults, err = b.vlanFaults(host); err != nil {
			return nil, err
		}
	}
	found, err := EnsureBridge(host, b)
	if err != nil && found.Index == 0 {
		return nil, err
	}
	var amiss error
	if b.MAC != nil && !bytes.Equal(found.MAC, b.MAC) {
		amiss = fmt.Errorf("its MAC is %s, and containers know it by %s: they reach no mapped ports until they are attached again, or it has that", found.MAC, b.MAC)
	}
	amiss = errors.Join(err, amiss)
	switch {
	case err == nil:
		mended = append(mended, faults...)
	case b.VLAN != 0: // there is no interface for the gateways; a filter is of no matter to them
		return mended, amiss
	}
	if len(gateways) == 0 {
		return mended, amiss
	}
	missing, err := ensureGateways(host, b, gateways, false)
	if err != nil {
		return mended, errors.Join(err, amiss)
	}
	for _, gateway := range missing {
		mended = append(mended, fmt.Sprintf("address %s was missing", gateway))
	}
	return mended, amiss
}

// RepairPort makes a host's side a port of its bridge again, as ConfigureBridged did, where
// somebody took it out of the bridge. It returns what it mended, in words. One that is a
// port of something else by now stays there, and is an error. A side or a bridge that is
// gone is none: whoever follows the links will say so.
func RepairPort(host *Namespace, links Links, b Bridged) (mended []string, err error) {
	var gone [2]bool
	answers, err := host.exchange([]message{getLinkUnless(&gone[0], b.Bridge), getLinkUnless(&gone[1], links.HostName)})
	if err != nil || slices.Contains(gone[:], true) {
		return nil, err
	}
	bridge, err1 := readLink(answers[0])
	side, err2 := readLink(answers[1])
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("look up links %s and %s: %w", b.Bridge, links.HostName, err)
	}
	var faults []string
	before := membership{joined: side.master == bridge.index}
	if before.joined {
		if faults, before.others, err = b.portFaults(host, bridge, side); err != nil {
			return nil, err
		}
	}
	switch {
	case side.index != links.HostIndex:
		return nil, nil
	case side.master == 0:
		mended = []string{"it was no port of bridge " + b.Bridge}
	case side.master != bridge.index:
		return nil, fmt.Errorf("%s is a port of the device with index %d, not of bridge %s", links.HostName, side.master, b.Bridge)
	case b.Hairpin && !side.port.hairpin:
		mended = []string{"hairpin mode was off"}
	case b.Isolated && !side.port.isolated:
		mended = []string{"it was not isolated"}
	case faults == nil:
		return nil, nil
	}
	for _, fault := range faults {
		mended = append(mended, "it "+fault)
	}
	if err := join(host, links, b, before); err != nil {
		return nil, err
	}
	return mended, nil
}
