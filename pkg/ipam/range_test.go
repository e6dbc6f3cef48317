// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// netips lets go-cmp compare what net/netip keeps private.
var netips = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// parseRanges reads range sets as a configuration writes them, so that tables
// can: sets are separated by ";", ranges by ",", and a range is "subnet start
// end gateway" where "-" or nothing is the default.
func parseRanges(text string) ([]RangeSet, error) {
	var sets []RangeSet
	for set := range strings.SplitSeq(text, ";") {
		var ranges RangeSet
		for r := range strings.SplitSeq(set, ",") {
			fields := append(strings.Fields(r), "-", "-", "-", "-")
			var out Range
			var errs [4]error
			if fields[0] != "-" {
				out.Subnet, errs[0] = netip.ParsePrefix(fields[0])
			}
			for i, at := range []*netip.Addr{&out.Start, &out.End, &out.Gateway} {
				if fields[i+1] != "-" {
					*at, errs[i+1] = netip.ParseAddr(fields[i+1])
				}
			}
			if err := errors.Join(errs[:]...); err != nil {
				return nil, err
			}
			if strings.TrimSpace(r) != "" {
				ranges = append(ranges, out)
			}
		}
		sets = append(sets, ranges)
	}
	return sets, nil
}

func mustParse(tb testing.TB, text string) []RangeSet {
	tb.Helper()
	sets, err := parseRanges(text)
	if err != nil {
		tb.Fatal(err)
	}
	return sets
}

func TestCanonical(t *testing.T) {
	for _, test := range []struct {
		name, in, want string
	}{
		{"defaults", "10.10.0.0/16", "10.10.0.0/16 10.10.0.2 10.10.255.254 10.10.0.1"},
		{"defaults, IPv6", "fd00:10::/64", "fd00:10::/64 fd00:10::2 fd00:10::ffff:ffff:ffff:ffff fd00:10::1"},
		{"gateway at the end", "192.0.2.0/24 - - 192.0.2.254", "192.0.2.0/24 192.0.2.1 192.0.2.253 192.0.2.254"},
		{"gateway inside", "192.0.2.0/24 - - 192.0.2.9", "192.0.2.0/24 192.0.2.1 192.0.2.254 192.0.2.9"},
		{"start only", "192.0.2.0/24 192.0.2.100", "192.0.2.0/24 192.0.2.100 192.0.2.254 192.0.2.1"},
		{"end only", "192.0.2.0/24 - 192.0.2.100", "192.0.2.0/24 192.0.2.2 192.0.2.100 192.0.2.1"},
		{"start on the gateway", "192.0.2.0/24 192.0.2.1", "192.0.2.0/24 192.0.2.1 192.0.2.254 192.0.2.1"},
		{"the whole subnet spelt out", "192.0.2.0/24 192.0.2.0 192.0.2.255", "192.0.2.0/24 192.0.2.0 192.0.2.255 192.0.2.1"},
		{"one address", "192.0.2.0/24 192.0.2.7 192.0.2.7", "192.0.2.0/24 192.0.2.7 192.0.2.7 192.0.2.1"},
		{"smallest with a broadcast address", "192.0.2.0/30", "192.0.2.0/30 192.0.2.2 192.0.2.2 192.0.2.1"},
		{"point to point", "192.0.2.2/31", "192.0.2.2/31 192.0.2.3 192.0.2.3 192.0.2.2"},
		{"point to point, other gateway", "192.0.2.2/31 - - 192.0.2.3", "192.0.2.2/31 192.0.2.2 192.0.2.2 192.0.2.3"},
		{"point to point, IPv6", "2001:db8::/127", "2001:db8::/127 2001:db8::1 2001:db8::1 2001:db8::"},
		{"anycast gateway, IPv6", "2001:db8::/64 - - 2001:db8::", "2001:db8::/64 2001:db8::1 2001:db8::ffff:ffff:ffff:ffff 2001:db8::"},
		{"IPv4-mapped addresses", "192.0.2.0/24 ::ffff:192.0.2.7 ::ffff:192.0.2.9 ::ffff:192.0.2.1", "192.0.2.0/24 192.0.2.7 192.0.2.9 192.0.2.1"},
		{"large", "fd00::/8", "fd00::/8 fd00::2 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fd00::1"},
		{
			"two ranges of a subnet",
			"10.0.0.0/24 - 10.0.0.99, 10.0.0.0/24 10.0.0.200",
			"10.0.0.0/24 10.0.0.2 10.0.0.99 10.0.0.1, 10.0.0.0/24 10.0.0.200 10.0.0.254 10.0.0.1",
		},
		{
			"two families, two sets of one",
			"10.0.0.0/30; fd00::/126; 10.0.0.4/30",
			"10.0.0.0/30 10.0.0.2 10.0.0.2 10.0.0.1; fd00::/126 fd00::2 fd00::3 fd00::1; 10.0.0.4/30 10.0.0.6 10.0.0.6 10.0.0.5",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := mustParse(t, test.want)
			got, err := Canonical(mustParse(t, test.in))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, netips); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			again, err := Canonical(got)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, again, netips); diff != "" {
				t.Errorf("the canonical form is not canonical (-want +got)\n%s", diff)
			}
		})
	}
}

func TestCanonicalRefuses(t *testing.T) {
	for _, test := range []struct {
		in   string
		want RangeError
	}{
		{"-", RangeError{0, 0, "subnet", "", "is missing or no prefix"}},
		{"10.0.0.0/24;", RangeError{1, -1, "", "", "the range set is empty"}},
		{"10.0.0.1/24", RangeError{0, 0, "subnet", "10.0.0.1/24", "has host bits set; the network address of its /24 is 10.0.0.0"}},
		{"2001:db8:24:19ff::/63", RangeError{0, 0, "subnet", "2001:db8:24:19ff::/63", "has host bits set; the network address of its /63 is 2001:db8:24:19fe::"}},
		{"10.0.0.1/32", RangeError{0, 0, "subnet", "10.0.0.1/32", "is too small to allocate from: a container and its gateway need two addresses"}},
		{"fd00::1/128", RangeError{0, 0, "subnet", "fd00::1/128", "is too small to allocate from: a container and its gateway need two addresses"}},
		{"::ffff:10.0.0.0/120", RangeError{0, 0, "subnet", "::ffff:10.0.0.0/120", "is an IPv4-mapped IPv6 prefix; write it as IPv4"}},
		{"10.0.0.0/24 10.0.1.5", RangeError{0, 0, "rangeStart", "10.0.1.5", "is not in subnet 10.0.0.0/24"}},
		{"10.0.0.0/24 - 10.0.1.5", RangeError{0, 0, "rangeEnd", "10.0.1.5", "is not in subnet 10.0.0.0/24"}},
		{"10.0.0.0/24 - - 10.0.1.5", RangeError{0, 0, "gateway", "10.0.1.5", "is not in subnet 10.0.0.0/24"}},
		{"10.0.0.0/24 fd00::5", RangeError{0, 0, "rangeStart", "fd00::5", "is not in subnet 10.0.0.0/24"}},
		{"fd00::/64 fd00::5%eth0", RangeError{0, 0, "rangeStart", "fd00::5%eth0", "has a zone"}},
		{"10.0.0.0/24 - - 10.0.0.0", RangeError{0, 0, "gateway", "10.0.0.0", "is the network or broadcast address of 10.0.0.0/24"}},
		{"10.0.0.0/24 - - 10.0.0.255", RangeError{0, 0, "gateway", "10.0.0.255", "is the network or broadcast address of 10.0.0.0/24"}},
		{"10.0.0.0/24 10.0.0.9 10.0.0.8", RangeError{0, 0, "rangeEnd", "10.0.0.8", "comes before 10.0.0.9, the start of the range"}},
		{"10.0.0.0/24 10.0.0.255", RangeError{0, 0, "rangeStart", "10.0.0.255", "comes after 10.0.0.254, the end of the range"}},
		{"10.0.0.0/24 10.0.0.1 10.0.0.1", RangeError{0, 0, "rangeStart", "10.0.0.1", "no address from there to 10.0.0.1 can be handed out: all are network, broadcast or gateway addresses"}},
		{"10.0.0.0/24 10.0.0.0 10.0.0.0", RangeError{0, 0, "rangeStart", "10.0.0.0", "no address from there to 10.0.0.0 can be handed out: all are network, broadcast or gateway addresses"}},
		{"fd00::/64 fd00:: fd00::", RangeError{0, 0, "rangeStart", "fd00::", "no address from there to fd00:: can be handed out: all are network, broadcast or gateway addresses"}},
		{"10.0.0.0/24 10.0.0.9 10.0.0.9, 10.0.0.0/24 10.0.0.20 - 10.0.0.9", RangeError{0, 0, "rangeStart", "10.0.0.9", "no address from there to 10.0.0.9 can be handed out: all are network, broadcast or gateway addresses"}},
		{"10.0.0.0/24, fd00::/64", RangeError{0, 1, "subnet", "fd00::/64", "is not of the family of 10.0.0.0/24, the first subnet of its range set"}},
		{"10.0.0.0/24, 10.0.0.0/25", RangeError{0, 1, "subnet", "10.0.0.0/25", "its range 10.0.0.2-10.0.0.126 overlaps 10.0.0.2-10.0.0.254 of ranges[0][0]"}},
		{"10.9.0.0/24; fd00::/64, fd01::/64; 10.8.0.0/24, 10.8.0.0/15", RangeError{2, 1, "subnet", "10.8.0.0/15", "its range 10.8.0.2-10.9.255.254 overlaps 10.8.0.2-10.8.0.254 of ranges[2][0]"}},
		{"10.0.0.0/24 10.0.0.50; 10.0.0.0/24 - 10.0.0.50", RangeError{1, 0, "subnet", "10.0.0.0/24", "its range 10.0.0.2-10.0.0.50 overlaps 10.0.0.50-10.0.0.254 of ranges[0][0]"}},
		{"0.0.0.0/24", RangeError{0, 0, "subnet", "0.0.0.0/24", "is in 0.0.0.0/8: addresses of this host on this network (RFC 791)"}},
		{"127.0.0.0/24", RangeError{0, 0, "subnet", "127.0.0.0/24", "is in 127.0.0.0/8: loopback addresses"}},
		{"127.0.0.0/8", RangeError{0, 0, "subnet", "127.0.0.0/8", "is in 127.0.0.0/8: loopback addresses"}},
		{"169.254.0.0/16", RangeError{0, 0, "subnet", "169.254.0.0/16", "is in 169.254.0.0/16: link-local addresses"}},
		{"169.254.7.0/24", RangeError{0, 0, "subnet", "169.254.7.0/24", "is in 169.254.0.0/16: link-local addresses"}},
		{"169.0.0.0/8", RangeError{0, 0, "subnet", "169.0.0.0/8", "holds 169.254.0.0/16: link-local addresses"}},
		{"169.0.0.0/8 169.1.0.0 169.1.0.9", RangeError{0, 0, "subnet", "169.0.0.0/8", "holds 169.254.0.0/16: link-local addresses"}},
		{"224.0.0.0/24", RangeError{0, 0, "subnet", "224.0.0.0/24", "is in 224.0.0.0/4: multicast addresses"}},
		{"240.0.0.0/24", RangeError{0, 0, "subnet", "240.0.0.0/24", "is in 240.0.0.0/4: reserved addresses, the limited broadcast address among them"}},
		{"255.255.255.252/30", RangeError{0, 0, "subnet", "255.255.255.252/30", "is in 240.0.0.0/4: reserved addresses, the limited broadcast address among them"}},
		{"fd00::/64; 0.0.0.0/0", RangeError{1, 0, "subnet", "0.0.0.0/0", "holds 0.0.0.0/8: addresses of this host on this network (RFC 791)"}},
		{"0.0.0.0/1", RangeError{0, 0, "subnet", "0.0.0.0/1", "holds 0.0.0.0/8: addresses of this host on this network (RFC 791)"}},
		{"128.0.0.0/1", RangeError{0, 0, "subnet", "128.0.0.0/1", "holds 169.254.0.0/16: link-local addresses"}},
		{"::/0", RangeError{0, 0, "subnet", "::/0", "holds ::/127: the unspecified and the loopback address"}},
		{"::/127", RangeError{0, 0, "subnet", "::/127", "is in ::/127: the unspecified and the loopback address"}},
		{"::/64 ::5", RangeError{0, 0, "subnet", "::/64", "holds ::/127: the unspecified and the loopback address"}},
		{"::fffe:0:0/95", RangeError{0, 0, "subnet", "::fffe:0:0/95", "holds ::ffff:0.0.0.0/96: IPv4-mapped addresses"}},
		{"fe80::/64", RangeError{0, 0, "subnet", "fe80::/64", "is in fe80::/10: link-local addresses"}},
		{"fe00::/8", RangeError{0, 0, "subnet", "fe00::/8", "holds fe80::/10: link-local addresses"}},
		{"ff02::/64", RangeError{0, 0, "subnet", "ff02::/64", "is in ff00::/8: multicast addresses"}},
	} {
		t.Run(test.in, func(t *testing.T) {
			_, err := Canonical(mustParse(t, test.in))
			var got *RangeError
			if !errors.As(err, &got) {
				t.Fatalf("got error %v, want a *RangeError", err)
			}
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestRangeErrorNamesKeyAndValue(t *testing.T) {
	for _, test := range []struct {
		err  RangeError
		want string
	}{
		{RangeError{1, 2, "rangeEnd", "10.0.0.9", "is odd"}, `check ranges[1][2].rangeEnd "10.0.0.9": is odd`},
		{RangeError{1, -1, "", "", "is empty"}, "check ranges[1]: is empty"},
		{RangeError{-1, -1, "", "", "are missing"}, "check ranges: are missing"},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestRangeString(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/24":                        "10.0.0.0/24",
		"10.0.0.0/24 - - 10.0.0.254":         "10.0.0.0/24",
		"10.0.0.0/24 - 10.0.0.9":             "10.0.0.2-10.0.0.9",
		"fd00::/64 fd00::5":                  "fd00::5-fd00::ffff:ffff:ffff:ffff",
		"10.0.0.0/25,10.0.0.128/25":          "10.0.0.0/25, 10.0.0.128/25",
		"10.0.0.0/24 10.0.0.2 10.0.0.254 - ": "10.0.0.0/24",
	} {
		sets, err := Canonical(mustParse(t, in))
		if err != nil {
			t.Fatal(err)
		}
		if got := sets[0].String(); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}

// What Canonical accepts it accepts again unchanged, and a pool made of it hands
// out nothing but addresses of the ranges that a host may have.
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{
		"10.0.0.0/24", "10.0.0.0/30;fd00::/64", "10.0.0.0/24 10.0.0.5 10.0.0.9 10.0.0.7", "192.0.2.2/31",
		"10.0.0.0/24 10.0.0.0 10.0.0.255,10.0.1.0/24 - - 10.0.1.254", "fd00::/16 - - fd00::9;2001:db8::/127",
		"10.0.0.0/8 - 10.0.0.3;10.1.0.0/16 - - 10.1.0.9", "255.255.255.252/30", "0.0.0.0/0", "::/0",
		"10.0.0.0/24 - 10.0.0.2, 10.0.0.0/24 10.0.0.4 10.0.0.4 10.0.0.3",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sets, err := parseRanges(text)
		if err != nil {
			return
		}
		canonical, err := Canonical(sets)
		if err != nil {
			var wrong *RangeError
			if !errors.As(err, &wrong) || wrong.Reason == "" {
				t.Fatalf("got error %v, want a *RangeError with a reason", err)
			}
			return
		}
		again, err := Canonical(canonical)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(canonical, again, netips); diff != "" {
			t.Fatalf("the canonical form is not canonical (-want +got)\n%s", diff)
		}
		encoded, err := json.Marshal(canonical)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := decodeRanges(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(canonical, decoded, netips); diff != "" {
			t.Fatalf("the record differs (-want +got)\n%s", diff)
		}
		n := newNetwork("n", canonical)
		for i, pool := range n.pools {
			for range 300 {
				c, ok := pool.choose()
				if !ok {
					break
				}
				pool.take(c)
				r, from := n.find(c.number)
				if from != pool {
					t.Fatalf("set %d hands out %s, which it does not find", i, c.number.addr())
				}
				checkAddress(t, canonical, *r, c.number.addr())
			}
		}
	})
}

// checkAddress fails if the address must not be handed out from the range.
func checkAddress(tb testing.TB, sets []RangeSet, r Range, a netip.Addr) {
	tb.Helper()
	if a.Less(r.Start) || r.End.Less(a) || !r.Subnet.Contains(a) {
		tb.Fatalf("%s is not in range %s-%s of %s", a, r.Start, r.End, r.Subnet)
	}
	for _, set := range sets {
		for _, other := range set {
			if a == other.Gateway {
				tb.Fatalf("%s is the gateway of %s", a, other.Subnet)
			}
		}
	}
	if r.Subnet.Bits() >= a.BitLen()-1 {
		return
	}
	if a == r.Subnet.Addr() {
		tb.Fatalf("%s is the network address of %s", a, r.Subnet)
	}
	if a.Is4() && !r.Subnet.Contains(a.Next()) {
		tb.Fatalf("%s is the broadcast address of %s", a, r.Subnet)
	}
}

// A list of ranges as long as a request may be takes no noticeable time.
func TestCanonicalManyRanges(t *testing.T) {
	set := make(RangeSet, 0, 1<<15)
	for i := range cap(set) {
		set = append(set, Range{Subnet: netip.MustParsePrefix("10." + strconv.Itoa(i>>8) + "." + strconv.Itoa(i&255) + ".0/24")})
	}
	set = set[:1<<15-1]
	set = append(set, Range{Subnet: netip.MustParsePrefix("10.0.0.0/24")})
	_, err := Canonical([]RangeSet{set})
	want := &RangeError{0, 1<<15 - 1, "subnet", "10.0.0.0/24", "its range 10.0.0.2-10.0.0.254 overlaps 10.0.0.2-10.0.0.254 of ranges[0][0]"}
	if diff := cmp.Diff(error(want), err); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A subnet that an older version accepted is read, and not accepted again.
func TestRangesOfOlderVersionsAreRead(t *testing.T) {
	const record = `[[{"subnet":"169.254.0.0/24","rangeStart":"169.254.0.2","rangeEnd":"169.254.0.254","gateway":"169.254.0.1"}]]`
	got, err := decodeRanges([]byte(record))
	if err != nil {
		t.Fatal(err)
	}
	want := mustParse(t, "169.254.0.0/24 169.254.0.2 169.254.0.254 169.254.0.1")
	if diff := cmp.Diff(want, got, netips); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, err := Canonical(got); err == nil {
		t.Error("accepted again")
	}
}
