// SPDX-License-Identifier: Apache-2.0

// Package vlan names VLANs of network devices: eth0.50 is number 50 of eth0.
package vlan

import (
	"strconv"
	"strings"
)

// Max is the highest number of a VLAN (IEEE 802.1Q, 9.6); the lowest is 1.
const Max = 4094

// Name is the name of a VLAN of a device. Number 0 is none: the name is the device's.
func Name(lower string, id int) string {
	if id == 0 {
		return lower
	}
	return lower + "." + strconv.Itoa(id)
}

// Of reads the name of a VLAN. False where the name is none of a VLAN.
func Of(name string) (lower string, id int, ok bool) {
	dot := strings.LastIndexByte(name, '.')
	if dot < 1 {
		return "", 0, false
	}
	id, err := strconv.Atoi(name[dot+1:])
	if err != nil || id < 1 || id > Max || Name(name[:dot], id) != name {
		return "", 0, false
	}
	return name[:dot], id, true
}
