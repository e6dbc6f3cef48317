// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// What an IPAM plugin prints is refused where it is no result, and an item of it that is null is named.
func TestResultOfDelegate(t *testing.T) {
	d := &delegate{name: "theirs", version: "0.4.0"}
	for out, want := range map[string]string{
		``:                                       `ipam theirs: decode result "": unexpected end of JSON input`,
		`null`:                                   `ipam theirs: decode result "null": null`,
		`{"cniVersion": "1.0.0", "ips": [null]}`: `ipam theirs: decode result "{\"cniVersion\": \"1.0.0\", \"ips\": [null]}": ips[0] is null`,
		`{"ips": [{"version": "4", "address": "10.0.0.1/8"}, null]}`:                    `ipam theirs: decode result "{\"ips\": [{\"version\": \"4\", \"address\": \"10.0.0.1/8\"}, null]}": ips[1] is null`,
		`{"ips": [{"version": "4", "address": "10.0.0.1/8"}], "routes": [null]}`:        `ipam theirs: decode result "{\"ips\": [{\"version\": \"4\", \"address\": \"10.0.0.1/8\"}], \"routes\": [null]}": routes[0] is null`,
		`{"ips": [{"version": "4", "address": "10.0.0.1/8"}], "interfaces": [null]}`:    `ipam theirs: decode result "{\"ips\": [{\"version\": \"4\", \"address\": \"10.0.0.1/8\"}], \"interfaces\": [null]}": interfaces[0] is null`,
		`{"cniVersion": "0.2.0", "ip4": null}`:                                          ``,
		`{"ips": [{"version": "4", "address": "10.0.0.1/8", "gateway": "10.0.0.254"}]}`: ``,
	} {
		result, err := d.result([]byte(out))
		got := ""
		if err != nil {
			got = err.Error()
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", out, diff)
		}
		if (err == nil) == (result == nil) {
			t.Errorf("%s: result %v with error %v", out, result, err)
		}
	}
}

// FuzzResultOfDelegate holds for all that an IPAM plugin may print: no panic, neither there nor in what reads
// the result; a refusal has a message and is of the code that the specification has for it.
func FuzzResultOfDelegate(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/8","gateway":"::1","interface":7}],"routes":[{"dst":"::/0","gw":"10.0.0.1","mtu":-1,"table":1}]}`,
		`{"ips":[{"version":"6","address":"fd00::1/64"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":[""]}}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1/8","routes":[{"dst":"0.0.0.0/0"}]},"ip6":null}`,
		`{"ips":[null],"routes":[null],"interfaces":[null]}`, `{"cniVersion":7}`, `{"ips":{}}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(seed), "0.4.0")
		f.Add([]byte(seed), "1.1.0")
	}
	f.Fuzz(func(t *testing.T, out []byte, version string) {
		d := &delegate{name: "theirs", version: version}
		result, err := d.result(out)
		if err != nil {
			if answer := cniError(err); answer.Msg == "" || answer.Code != types.ErrDecodingFailure {
				t.Errorf("an error without message or of another code: %+v", answer)
			}
			return
		}
		for _, ip := range result.IPs {
			_ = prefixOf(ip.Address)
		}
		_ = ipamRoutes(result)
		for _, version := range supported() {
			if _, err := result.GetAsVersion(version); err != nil {
				t.Errorf("convert to %s: %v", version, err)
			}
		}
		if _, err := json.Marshal(result); err != nil {
			t.Errorf("print: %v", err)
		}
	})
}
