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

func TestIfNames(t *testing.T) {
	const (
		letters  = "must not hold / : white space or control characters"
		settings = "is what the kernel calls the settings of all network devices or of new ones"
	)
	for name, want := range map[string]string{
		"eth0": "", "net1.100": "", "a-name-of-15-by": "", "ethé": "", "...": "", "All": "", "lo": "",
		"":                 "is missing",
		"a-name-of-16-byt": "is longer than 15 bytes",
		".":                "is no name of a network device",
		"..":               "is no name of a network device",
		"all":              settings,
		"default":          settings,
		"eth%d":            "must not hold %, with which the kernel would choose a name",
		"%":                "must not hold %, with which the kernel would choose a name",
		"a/b":              letters, "a:b": letters, "a b": letters, "a\tb": letters, "a\nb": letters, "a\vb": letters, "a\x7f": letters,
		"à": letters, // its second byte is the Latin-1 space
	} {
		if got := api.IfNameFault(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
