// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"testing"

	"github.com/tendril-net/tendril/pkg/api"
)

func TestHostIfNames(t *testing.T) {
	const want = "tdl5d1e2cb7f6e3"
	name := api.HostIfName(api.Attachment{ContainerID: "id-c1", IfName: "eth0"})
	if name != want {
		t.Errorf("host side of id-c1's eth0 is %s, want %s", name, want)
	}
	for name, want := range map[string]bool{
		want: true, "tdl0": false, "tdl5d1e2cb7f6eg": false, "tdx5d1e2cb7f6e3": false, "tdl5d1e2cb7f6e300": false, "": false,
	} {
		if got := api.IsHostIfName(name); got != want {
			t.Errorf("%q is named as a host side: %t, want %t", name, got, want)
		}
	}
}
