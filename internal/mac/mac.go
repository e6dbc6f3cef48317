// SPDX-License-Identifier: Apache-2.0

// Package mac makes MAC addresses.
package mac

import (
	"crypto/rand"
	"net"
)

// Random is a MAC address of a single station, locally administered (IEEE 802, 8.4).
func Random() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}
