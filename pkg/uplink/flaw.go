// SPDX-License-Identifier: Apache-2.0

package uplink

import "fmt"

// Kind is what is wrong with a device.
type Kind string

// The kinds of flaws. A device that is Down or has NoAddress is an uplink all the
// same; the others are none.
const (
	// Absent: no device has the name that the configuration gives. It is waited for.
	Absent Kind = "absent"
	// Own: the device is the host's side of an endpoint.
	Own Kind = "endpoint"
	// NotEthernet: the datapath knows frames of Ethernet only.
	NotEthernet Kind = "not ethernet"
	// Down: the device is set down.
	Down Kind = "down"
	// NoAddress: there is none, of either family, to masquerade with.
	NoAddress Kind = "no address"
)

// Flaw is why a device that was named, or that has a default route, is of no use.
type Flaw struct {
	Device string
	Kind   Kind
}

// String is a sentence for a log.
func (f Flaw) String() string {
	switch f.Kind {
	case Absent:
		return fmt.Sprintf("there is no device %s", f.Device)
	case Own:
		return fmt.Sprintf("device %s is a container's", f.Device)
	case NotEthernet:
		return fmt.Sprintf("device %s is not an ethernet device", f.Device)
	case Down:
		return fmt.Sprintf("device %s is down", f.Device)
	case NoAddress:
		return fmt.Sprintf("device %s has no address to masquerade with", f.Device)
	}
	return fmt.Sprintf("device %s: %s", f.Device, f.Kind)
}
