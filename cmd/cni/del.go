// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// ipamDHCP is the one IPAM plugin that uses the container's link: its DEL
// sends a DHCPRELEASE.
const ipamDHCP = "dhcp"

// del removes an attachment. It goes by the attachment's name alone, does all
// that it can whatever fails, and does not mind what is gone: the namespace,
// the link, the endpoint, or the agent. One that was not there frees the endpoint when it
// is back, by a note beside its socket.
func (p *plugin) del() error {
	failpoint.Hit(failpoint.CNIDelStart)
	var failed []error
	if p.config.ipamType == ipamDHCP {
		failed = append(failed, p.delegateDel())
	}
	failed = append(failed, p.unlink())
	failpoint.Hit(failpoint.CNIDelUnlinked)

	client := api.NewClient(p.config.socket)
	defer client.Close()
	err := client.Delete(p.ctx, p.call.Attachment)
	if errors.Is(err, api.ErrUnavailable) {
		_, _ = fmt.Fprintf(p.stderr, "tendril-cni: DEL goes on without the agent: %v\n", err)
		if err := p.noteEnd(); err != nil {
			_, _ = fmt.Fprintf(p.stderr, "tendril-cni: the agent will not hear of this DEL: %v\n", err)
		}
		err = nil
	}
	if err != nil {
		failed = append(failed, fmt.Errorf("release endpoint: %w", agentFault(err)))
	}
	failpoint.Hit(failpoint.CNIDelReleased)

	// An address that can be given out again must not have a route of ours
	// any more, so this comes last.
	if p.config.delegated() && p.config.ipamType != ipamDHCP {
		failed = append(failed, p.delegateDel())
	}
	failpoint.Hit(failpoint.CNIDelDelegated)
	return errors.Join(failed...)
}

// noteEnd has the agent free the endpoint when it is back.
func (p *plugin) noteEnd() error { return api.EndedBeside(p.config.socket).Note(p.call.Attachment) }

func (p *plugin) unlink() error {
	host, err := wiring.Current()
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	if p.config.network.Driver == api.DriverMacvlan {
		return p.removeChild(host)
	}
	return wiring.RemoveVeth(host, api.HostIfName(p.call.Attachment))
}

func (p *plugin) delegateDel() error {
	delegate, err := p.delegate()
	if err != nil {
		return err
	}
	err = delegate.run(p.ctx, "DEL")
	if err != nil && api.IfNameFault(p.call.IfName) != "" {
		// It refuses the name, as it must, and so has nothing under it.
		_, _ = fmt.Fprintf(p.stderr, "tendril-cni: DEL of a name that no interface can have: %v\n", err)
		return nil
	}
	return err
}
