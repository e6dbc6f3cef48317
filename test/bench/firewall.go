// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
)

const (
	// establishedRules are what established flows must not notice: four for each of a
	// quarter as many CIDRs.
	establishedRules = 100_000
	// cidrRules have a CIDR each.
	cidrRules = 10_000
)

// firewall is the section of policy.
func (b *bench) firewall(ctx context.Context) error {
	for _, part := range []func(context.Context) error{
		b.establishedPackets, b.firstPackets, b.applyRules, b.establishedTraffic, b.compareFilters,
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// closeAll closes what is there of several.
func closeAll[T interface{ close() error }](all []T) error {
	var errs []error
	for _, one := range all {
		errs = append(errs, one.close())
	}
	return errors.Join(errs...)
}
