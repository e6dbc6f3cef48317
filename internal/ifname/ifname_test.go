// SPDX-License-Identifier: Apache-2.0

package ifname

import (
	"regexp"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNames(t *testing.T) {
	type meaning struct {
		Host  bool
		Lower string
		ID    int
		VLAN  bool
	}
	for name, want := range map[string]meaning{
		"":                 {},
		"eth0":             {},
		"tdl5d1e2cb7f6e3":  {Host: true},
		"tdl5D1E2CB7F6E3":  {}, // somebody else's
		"tdl5d1e2cb7f6eg":  {},
		"tdl5d1e2cb7f6e":   {},
		"tdl5d1e2cb7f6e30": {},
		"tdx5d1e2cb7f6e3":  {},
		"eth0.1":           {Lower: "eth0", ID: 1, VLAN: true},
		"eth0.4094":        {Lower: "eth0", ID: 4094, VLAN: true},
		"eth0.5.6":         {Lower: "eth0.5", ID: 6, VLAN: true},
		"..5":              {Lower: ".", ID: 5, VLAN: true},
		".5":               {},
		"eth0.":            {},
		"eth0.0":           {},
		"eth0.4095":        {},
		"eth0.05":          {},
		"eth0.+5":          {},
		"eth0.-5":          {},
		"eth0.5 ":          {},
	} {
		got := meaning{Host: IsHost(name)}
		got.Lower, got.ID, got.VLAN = VLANOf(name)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", name, diff)
		}
	}
}

func TestVLAN(t *testing.T) {
	for id, want := range map[int]string{0: "eth0", 50: "eth0.50", 4094: "eth0.4094"} {
		if got := VLAN("eth0", id); got != want {
			t.Errorf("VLAN %d of eth0 is %s, want %s", id, got, want)
		}
	}
}

// FuzzNames holds what a name means against a second reading of it. What VLAN writes means what it was made of.
func FuzzNames(f *testing.F) {
	host := regexp.MustCompile(`^tdl[0-9a-f]{12}$`)
	numbered := regexp.MustCompile(`(?s)^(.+)\.([1-9][0-9]{0,3})$`)
	for _, name := range []string{"", "eth0", "tdl5d1e2cb7f6e3", "tdl5D1E2CB7F6E3", "eth0.50", "eth0.05", ".5", "eth0.5.6", "eth0.4095", "eth0.99999999999999999999"} {
		f.Add(name, uint16(50))
	}
	f.Fuzz(func(t *testing.T, name string, number uint16) {
		if got, want := IsHost(name), host.MatchString(name); got != want {
			t.Errorf("%q is named as a host side: %t, want %t", name, got, want)
		}
		check := func(name, wantLower string, wantID int) {
			t.Helper()
			if lower, id, ok := VLANOf(name); lower != wantLower || id != wantID || ok != (wantID != 0) {
				t.Errorf("%q is VLAN %d of %q, %t; want %d of %q", name, id, lower, ok, wantID, wantLower)
			}
		}
		lower, id := "", 0
		if parts := numbered.FindStringSubmatch(name); parts != nil {
			if n, err := strconv.Atoi(parts[2]); err == nil && n <= 4094 {
				lower, id = parts[1], n
			}
		}
		check(name, lower, id)
		if id := int(number); name != "" && id >= 1 && id <= 4094 {
			check(VLAN(name, id), name, id)
		}
	})
}
