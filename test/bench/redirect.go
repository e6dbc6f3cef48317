// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// wireRedirect makes two containers whose packets meet a program that does
// nothing but bpf_redirect_peer: what any datapath over veth costs at least.
func wireRedirect(_ context.Context, name string) (_ *candidate, err error) {
	c := &candidate{name: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.node, err = c.namespace("node"); err != nil {
		return nil, err
	}
	var (
		containers [2]*namespace
		addresses  = [2]string{"10.10.0.2", "10.10.0.3"}
		hosts      [2]int
	)
	for i := range containers {
		if containers[i], err = c.namespace(fmt.Sprintf("container%d", i)); err != nil {
			return nil, err
		}
		host := fmt.Sprintf("host%d", i)
		if err := connect(end{c.node, host, nil}, end{containers[i], "eth0", []string{addresses[i] + "/24"}}); err != nil {
			return nil, err
		}
		link, err := c.node.handle.LinkByName(host)
		if err != nil {
			return nil, err
		}
		hosts[i] = link.Attrs().Index
		// The kernel drops what is not for the MAC of the device it comes in by.
		err = containers[i].ip("neigh add " + addresses[1-i] + " lladdr " + link.Attrs().HardwareAddr.String() + " dev eth0")
		if err != nil {
			return nil, err
		}
	}
	for i := range hosts {
		if err := c.redirect(hosts[i], hosts[1-i]); err != nil {
			return nil, err
		}
	}
	c.sameNode = path{client: containers[0], server: containers[1], address: netip.MustParseAddr(addresses[1])}
	return c, nil
}

// redirect sends all that comes in by one device to the peer of another.
func (c *candidate) redirect(from, to int) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_redirect", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(to)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirectPeer.Call(),
			asm.Return(),
		},
	})
	if err != nil {
		return fmt.Errorf("load redirecting program: %w", err)
	}
	defer func() { _ = program.Close() }()
	return c.node.do(func() error {
		attached, err := link.AttachTCX(link.TCXOptions{Interface: from, Program: program, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return fmt.Errorf("attach redirecting program: %w", err)
		}
		c.links = append(c.links, attached)
		return nil
	})
}
