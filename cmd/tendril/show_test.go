// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/tendril-net/tendril/pkg/api"
)

func TestHostDevice(t *testing.T) {
	for want, e := range map[string]api.Endpoint{
		"tdl0": {HostIfName: "tdl0"},
		"eth0": {Parent: "eth0"},
		"-":    {Parent: "eth1", InContainer: true},
	} {
		if got := hostDevice(e); got != want {
			t.Errorf("%+v: %s, want %s", e, got, want)
		}
	}
}
