// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPortMappings(t *testing.T) {
	want := []object{
		{"hostPort": 10000, "containerPort": 10000, "protocol": "udp"},
		{"hostPort": 10001, "containerPort": 10001, "protocol": "udp"},
	}
	if diff := cmp.Diff(want, portMappings("udp", 10000, 2)); diff != "" {
		t.Errorf("mappings (-want +got):\n%s", diff)
	}
}
