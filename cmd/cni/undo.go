// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// undoTimeout bounds all steps of an undo together.
const undoTimeout = 30 * time.Second

// undo is how to take back what was done so far, the last step first.
type undo struct{ steps []func(context.Context) error }

func (u *undo) push(step func(context.Context) error) { u.steps = append(u.steps, step) }

// run takes everything back and returns the cause, with what could not be
// taken back among its details. It runs to its end when ctx is cancelled:
// that is when it is needed.
func (u *undo) run(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	answer := cniError(cause)
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i](ctx); err != nil {
			if answer.Details != "" {
				answer.Details += "; "
			}
			answer.Details += "undo: " + cniError(err).Msg
		}
	}
	u.steps = nil
	return types.NewError(answer.Code, answer.Msg, answer.Details)
}
