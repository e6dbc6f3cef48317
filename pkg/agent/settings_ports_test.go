// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

func ports(t *testing.T, text string) *portSet {
	t.Helper()
	set, err := parsePorts(text)
	must(t, err)
	return set
}

// mustReserve fails the test unless the node has these ports reserved.
func (s *Settings) mustReserve(t *testing.T, want string) {
	t.Helper()
	if got := readNode(t, s.Root, pathReservedPorts)[pathReservedPorts]; got != want {
		t.Errorf("reserved %q, want %q", got, want)
	}
}

// TestReservePorts is the life of a node: mappings come and go, and others reserve
// ports of their own meanwhile.
func TestReservePorts(t *testing.T) {
	s := newSettings(t, node{pathForward4: "1", pathLocalPorts: "32768\t60999", pathReservedPorts: "80,33000"})
	must(t, s.Apply(nil, 40960, 65535))
	s.mustReserve(t, "80,33000,40960-65535")

	// 1. Of the mapped ports only those that the kernel would choose.
	must(t, s.ReservePorts(ports(t, "8080,32767,32768,33000,33001,50000,61000")))
	s.mustReserve(t, "80,32768,33000-33001,40960-65535")

	// 2. Others reserve a port, one of them ours as well, and free one of ours.
	must(t, s.write(pathReservedPorts, "80,90,33000-33001,40960-65535"))
	must(t, s.ReservePorts(ports(t, "33001,33002")))
	s.mustReserve(t, "80,90,33000-33002,40960-65535")

	// 3. What goes is given back, and nobody else's.
	must(t, s.ReservePorts(ports(t, "33000,33002")))
	s.mustReserve(t, "80,90,33000,33002,40960-65535")

	// 4. The next agent begins with what the state file says of endpoints.
	next := &Settings{DB: s.DB, Root: s.Root, Logger: s.Logger}
	r := stored("c1", 1)
	r.Ports = []api.PortMapping{mapped("", 33002, 80, "tcp")}
	must(t, s.DB.Update(func(tx *bbolt.Tx) error { return putRecord(tx, r) }))
	must(t, next.Apply(nil, 40960, 65535))
	next.mustReserve(t, "80,90,33000,33002,40960-65535")
	must(t, next.ReservePorts(&portSet{}))
	next.mustReserve(t, "80,90,33000,40960-65535")
	must(t, next.ReservePorts(ports(t, "33005")))

	// 5. Undone, the node has what others reserved.
	must(t, next.Undo())
	next.mustReserve(t, "80,90,33000")
}

// Mappings that need no reservation cost no write and no transaction.
func TestReserveNothing(t *testing.T) {
	s := newSettings(t, node{pathForward4: "1", pathLocalPorts: "32768\t60999", pathReservedPorts: ""})
	must(t, s.Apply(nil, 40960, 65535))
	must(t, os.Remove(s.Root+"/"+pathReservedPorts)) // so that any look fails
	must(t, s.ReservePorts(ports(t, "80,8080,41000")))
	must(t, s.ReservePorts(&portSet{}))
}

// TestReserveCrash has the agent die between writing down and writing, either way
// round: the next one knows which ports are ours.
func TestReserveCrash(t *testing.T) {
	for name, crash := range map[string]func(*Settings) error{
		"before a port is reserved": func(s *Settings) error { return s.recordPorts(ports(t, "80"), ports(t, "33000,40960-65535")) },
		"before a port is freed": func(s *Settings) error {
			if err := s.ReservePorts(ports(t, "33000")); err != nil {
				return err
			}
			return s.write(pathReservedPorts, "80,40960-65535")
		},
		"after a port is reserved": func(s *Settings) error { return s.ReservePorts(ports(t, "33000")) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSettings(t, node{pathForward4: "1", pathLocalPorts: "32768\t60999", pathReservedPorts: "80"})
			must(t, s.Apply(nil, 40960, 65535))
			must(t, crash(s))
			next := &Settings{DB: s.DB, Root: s.Root, Logger: s.Logger}
			must(t, next.Apply(nil, 40960, 65535)) // no endpoint was stored
			next.mustReserve(t, "80,40960-65535")
			must(t, next.Undo())
			next.mustReserve(t, "80")
		})
	}
}

// TestReserveManyPorts reserves more ports than the kernel takes or gives in one page:
// none of them, ours or another's, is lost.
func TestReserveManyPorts(t *testing.T) {
	ns := nstest.New(t, "reserved")
	s := newSettings(t, nil)
	s.Root = ProcSys
	var others, mapped portSet
	for port := uint16(32769); port < 60000; port += 4 {
		others.add(port, port)
		mapped.add(port+2, port+2)
	}
	both := others.union(&mapped)
	both.add(60000, 65535)
	others.add(1, 1)
	both.add(1, 1)
	var reserved, freed, undone string
	ns.Do(t, func() {
		must(t, s.write(pathReservedPorts, others.String()))
		must(t, s.Apply(nil, 60000, 65535))
		must(t, s.ReservePorts(&mapped))
		reserved = readOnce(t, s)
		must(t, s.ReservePorts(&portSet{}))
		freed = readOnce(t, s)
		must(t, s.Undo())
		undone = readOnce(t, s)
	})
	if d := cmp.Diff(both.String(), reserved); d != "" {
		t.Errorf("reserved (-want +got):\n%s", d)
	}
	want := others.String()
	if undone != want {
		t.Errorf("undone:\n%s", cmp.Diff(want, undone))
	}
	others.add(60000, 65535)
	if d := cmp.Diff(others.String(), freed); d != "" {
		t.Errorf("freed (-want +got):\n%s", d)
	}
}

func readOnce(t *testing.T, s *Settings) string {
	t.Helper()
	text, err := s.read(pathReservedPorts)
	must(t, err)
	return text
}

func TestParseLocalRange(t *testing.T) {
	for text, want := range map[string][2]uint16{
		"32768\t60999": {32768, 60999}, "1\t1\n": {1, 1}, "0 65535": {0, 65535},
	} {
		from, to, err := parseLocalRange(text)
		must(t, err)
		if got := [2]uint16{from, to}; got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	for _, bad := range []string{"", "32768", "60999\t32768", "1\t65536", "-1\t2", "1-2", "0x10\t0x20", "1\t2\t3"} {
		if from, to, err := parseLocalRange(bad); err == nil || !strings.Contains(err.Error(), strconv.Quote(bad)) {
			t.Errorf("%q: %d-%d, %v", bad, from, to, err)
		}
	}
}

// FuzzLocalRange holds ip_local_port_range against a second reading of it. What is refused is named.
func FuzzLocalRange(f *testing.F) {
	for _, text := range []string{"32768\t60999\n", "60999\t32768", "1 1", "0\t65535", "1\t65536", "0x10 0x20", "1_0 2_0", "+1 2", "1 2 3", "1", ""} {
		f.Add(text)
	}
	written := regexp.MustCompile(`^[\t-\r\x85\pZ]*([0-9]+)[\t-\r\x85\pZ]+([0-9]+)[\t-\r\x85\pZ]*$`)
	f.Fuzz(func(t *testing.T, text string) {
		var want string
		if parts := written.FindStringSubmatch(text); parts != nil {
			if set, err := parsePorts(parts[1] + "-" + parts[2]); err == nil {
				want = set.String()
			}
		}
		from, to, err := parseLocalRange(text)
		if err != nil {
			if want != "" || !strings.Contains(err.Error(), strconv.Quote(text)) {
				t.Errorf("%q, which is %q: %v", text, want, err)
			}
			return
		}
		var got portSet
		got.add(from, to)
		if want == "" || got.String() != want {
			t.Errorf("%q: %d-%d, want %q", text, from, to, want)
		}
	})
}
