// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
)

func TestTestdata(t *testing.T) {
	text, err := os.ReadFile("testdata/word")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(text), "here\n"; got != want {
		t.Errorf("testdata/word: got %q, want %q", got, want)
	}
}

func TestPinnedMap(t *testing.T) {
	pin := filepath.Join(nstest.BPFFS(t), "map")
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "selftest", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	if err := m.Put(uint32(1), uint32(2)); err != nil {
		t.Fatal(err)
	}
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	again, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Close() })
	var got uint32
	if err := again.Lookup(uint32(1), &got); err != nil || got != 2 {
		t.Errorf("value of the pinned map: got %d, %v, want 2", got, err)
	}
}

// Enter moves all threads and those to come, and moves them back.
func TestEnter(t *testing.T) {
	namespaces := func(t *testing.T) map[string]bool {
		t.Helper()
		const threads = 8
		found := make(chan string)
		var ready sync.WaitGroup
		ready.Add(threads)
		for range threads {
			go func() {
				runtime.LockOSThread() // ends with its thread
				ready.Done()
				ready.Wait()
				name, err := os.Readlink("/proc/thread-self/ns/net")
				if err != nil {
					t.Error(err)
				}
				found <- name
			}()
		}
		all := make(map[string]bool)
		for range threads {
			all[<-found] = true
		}
		return all
	}
	before := namespaces(t)
	t.Run("entered", func(t *testing.T) {
		n := nstest.New(t, "entered")
		var within string
		n.Do(t, func() { within, _ = os.Readlink("/proc/thread-self/ns/net") })
		if !n.Enter(t) {
			t.Skip("entering with all threads needs a process without cgo: CGO_ENABLED=0, as in the virtual machines")
		}
		if diff := cmp.Diff(map[string]bool{within: true}, namespaces(t)); diff != "" {
			t.Errorf("namespaces of threads (-want +got):\n%s", diff)
		}
	})
	if diff := cmp.Diff(before, namespaces(t)); diff != "" {
		t.Errorf("namespaces of threads, afterwards (-want +got):\n%s", diff)
	}
}

// Two namespaces reach each other through a veth pair, set up with netlink and
// with the tools of the host.
func TestNamespaces(t *testing.T) {
	a, b := nstest.New(t, "a"), nstest.New(t, "b")
	nstest.Veth(t, a, "eth0", b, "eth0")
	for _, end := range []struct {
		ns        *nstest.NS
		addresses []string
	}{
		{a, []string{"192.0.2.1/24", "2001:db8::1/64"}},
		{b, []string{"192.0.2.2/24", "2001:db8::2/64"}},
	} {
		link, err := end.ns.Handle.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range end.addresses {
			p := netip.MustParsePrefix(text)
			addr, err := netlink.ParseAddr(p.String())
			if err != nil {
				t.Fatal(err)
			}
			if p.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := end.ns.Handle.AddrAdd(link, addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.Run(t, "tc", "qdisc", "add", "dev", "eth0", "clsact")
	a.Run(t, "ip", "-d", "link", "show", "eth0")
	a.Run(t, "sh", "-c", "ping -c 1 -w 10 192.0.2.2 && ping -c 1 -w 10 2001:db8::2")
}

// Every kind of link that a driver or a test makes loads its module by itself.
func TestLinkKinds(t *testing.T) {
	for kind, option := range map[string]string{
		"dummy": "CONFIG_DUMMY", "bridge": "CONFIG_BRIDGE", "macvlan": "CONFIG_MACVLAN", "ipvlan": "CONFIG_IPVLAN", "vlan": "CONFIG_VLAN_8021Q",
		"vxlan": "CONFIG_VXLAN", "geneve": "CONFIG_GENEVE", "wireguard": "CONFIG_WIREGUARD", "ifb": "CONFIG_IFB",
	} {
		t.Run(kind, func(t *testing.T) {
			ns := nstest.New(t, kind)
			nstest.Veth(t, ns, "parent", ns, "peer")
			parent, err := ns.Handle.LinkByName("parent")
			if err != nil {
				t.Fatal(err)
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "child"
			links := map[string]netlink.Link{
				"dummy":     &netlink.Dummy{LinkAttrs: attrs},
				"bridge":    &netlink.Bridge{LinkAttrs: attrs},
				"vxlan":     &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1},
				"geneve":    &netlink.Geneve{LinkAttrs: attrs, ID: 1, Remote: []byte{192, 0, 2, 1}},
				"wireguard": &netlink.Wireguard{LinkAttrs: attrs},
				"ifb":       &netlink.Ifb{LinkAttrs: attrs},
			}
			attrs.ParentIndex = parent.Attrs().Index
			links["macvlan"] = &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
			links["ipvlan"] = &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2}
			links["vlan"] = &netlink.Vlan{LinkAttrs: attrs, VlanId: 1, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
			err = ns.Handle.LinkAdd(links[kind])
			if errors.Is(err, unix.EOPNOTSUPP) {
				nstest.NotBuilt(t, "a "+kind+" link", option)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
