// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tendril-net/tendril/pkg/api"
)

// gc frees what the runtime's list does not have. No list is not an empty one:
// the agent then frees only what is provably gone. A delegated plugin is told
// in any case.
func (p *plugin) gc() error {
	client := api.NewClient(p.config.socket)
	defer client.Close()
	var failed []error
	if _, err := client.GC(p.ctx, api.GCRequest{Network: p.config.network.Name, Valid: p.config.valid}); err != nil {
		failed = append(failed, fmt.Errorf("collect garbage: %w", agentFault(err)))
	}
	if p.config.delegated() {
		delegate, err := p.delegate()
		if err == nil {
			err = delegate.run(p.ctx, "GC")
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// status says whether an ADD would succeed. What would not is code 50, never
// 51: containers that are attached do not need the agent.
func (p *plugin) status() error {
	if err := p.resolveMaster(); err != nil {
		return err
	}
	client := api.NewClient(p.config.socket)
	defer client.Close()
	health, err := client.NetworkStatus(p.ctx, p.config.network)
	switch {
	case errors.Is(err, api.ErrUnavailable):
		return faultf(types.ErrPluginNotAvailable, "%v", err)
	case err != nil:
		return agentFault(err)
	case !health.OK:
		return faultf(types.ErrPluginNotAvailable, "%s", strings.Join(health.Reasons, "; "))
	}
	if !p.config.delegated() {
		return nil
	}
	delegate, err := p.delegate()
	if err != nil {
		return faultf(types.ErrPluginNotAvailable, "%v", err)
	}
	return delegate.run(p.ctx, "STATUS")
}
