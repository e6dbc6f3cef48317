// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// setups reads the value of -kernel. Without one each kernel is booted once: alone
// or, with wire, the oldest with the newest and so on inwards.
func setups(text string, wire bool) ([][]string, error) {
	var list [][]string
	size, want := 1, "one of "+strings.Join(matrix(), ", ")
	if wire {
		size, want = 2, "two different of "+strings.Join(matrix(), ", ")+", with + between them"
	}
	if text == "" {
		names := matrix()
		for i, name := range names[:len(names)/size] {
			setup := []string{name}
			if wire {
				setup = append(setup, names[len(names)-1-i])
			}
			list = append(list, setup)
		}
		return list, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		setup := strings.Split(item, "+")
		unknown := func(name string) bool { return !slices.Contains(matrix(), name) }
		if len(setup) != size || slices.ContainsFunc(setup, unknown) || wire && setup[0] == setup[1] {
			return nil, fmt.Errorf("-kernel %q: want %s", item, want)
		}
		list = append(list, setup)
	}
	return list, nil
}

// seat is where a program runs: on a kernel and, with a peer, at one end of a wire.
type seat struct {
	*kernel
	peer string // name of the kernel at the other end
	port *port
}

// seats are those of a setup.
func seats(setup []string, kernels map[string]*kernel) []seat {
	var list []seat
	for i, name := range setup {
		at := seat{kernel: kernels[name]}
		if len(setup) == 2 {
			at.peer = setup[1-i]
		}
		list = append(list, at)
	}
	return list
}

// title tells the seat from others in reports.
func (s seat) title() string {
	if s.peer == "" {
		return s.name
	}
	return s.name + "+" + s.peer
}

// testSetup runs programs at all seats of a setup at once.
func testSetup(ctx context.Context, out io.Writer, s *settings, setup []seat, programs []program) ([]*result, error) {
	if len(setup) == 1 {
		return test(ctx, out, s, setup[0], programs)
	}
	wire, err := os.MkdirTemp("", "tendril-wire-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(wire) }()
	said, results := make([]bytes.Buffer, len(setup)), make([][]*result, len(setup))
	group, ctx := errgroup.WithContext(ctx)
	for i, port := range newWire(wire) {
		at := setup[i]
		at.port = port
		group.Go(func() (err error) {
			results[i], err = test(ctx, &said[i], s, at, programs)
			return err
		})
	}
	err = group.Wait()
	for i := range said {
		_, e := said[i].WriteTo(out)
		err = errors.Join(err, e)
	}
	return slices.Concat(results...), err
}
