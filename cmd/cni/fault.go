// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// codeMismatch is of the range that the specification leaves to plugins: CHECK
// found that something is not as ADD left it.
const codeMismatch = 100

func faultf(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// cniError gives every error one of the specification's codes. Of errors that
// were joined, the first names the code.
func cniError(err error) *types.Error {
	answer := &types.Error{Code: codeOf(err), Msg: err.Error()}
	if exact := (*types.Error)(nil); errors.As(err, &exact) {
		// Error() has the details too, and they have a place of their own.
		answer.Msg, answer.Details = strings.Replace(err.Error(), exact.Error(), exact.Msg, 1), exact.Details
	}
	answer.Msg = strings.ReplaceAll(answer.Msg, "\n", "; ") // errors.Join puts each on a line
	return answer
}

func codeOf(err error) uint {
	var exact *types.Error
	var refused *api.Error
	var mismatch *wiring.MismatchError
	switch {
	case errors.As(err, &exact):
		return exact.Code
	case errors.As(err, &mismatch):
		return codeMismatch
	case errors.Is(err, api.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return types.ErrTryAgainLater
	case errors.As(err, &refused):
		return codeOfAgent(refused)
	case errors.Is(err, wiring.ErrNotBridge), errors.Is(err, wiring.ErrOverlap), errors.Is(err, wiring.ErrBridgeVLAN):
		return types.ErrInvalidNetworkConfig // bridge, vlan or a gateway, which the message names
	case errors.Is(err, wiring.ErrParent), errors.Is(err, wiring.ErrNoBroadcastQueue):
		return types.ErrInvalidNetworkConfig // master, mode or bcqueuelen, which the message names
	case errors.Is(err, wiring.ErrDuplicate):
		return types.ErrTryAgainLater // with another address, maybe
	case errors.Is(err, wiring.ErrTaken):
		return types.ErrInvalidEnvironmentVariables // CNI_IFNAME, which the message names
	}
	return types.ErrInternal
}

func codeOfAgent(err *api.Error) uint {
	switch err.Code {
	case api.CodeInvalid:
		return types.ErrInvalidNetworkConfig
	case api.CodeNotFound:
		return types.ErrUnknownContainer
	case api.CodeConflict:
		return types.ErrInvalidEnvironmentVariables // an attachment or a wanted address that somebody has
	case api.CodeExhausted, api.CodeUnavailable:
		return types.ErrTryAgainLater
	case api.CodeMismatch:
		return codeMismatch
	}
	return types.ErrInternal
}

// agentFault puts the key at fault in front of what the agent said, where the
// agent knows it and has not said it. The agent's "ports" are a capability here.
func agentFault(err error) error {
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Key == "" {
		return err
	}
	if rest, ok := strings.CutPrefix(refused.Key, "namedPorts"); ok {
		written := *refused
		written.Key = keyNamedPorts + rest
		written.Message = strings.Replace(refused.Message, refused.Key, written.Key, 1)
		refused, err = &written, &written
	}
	if strings.HasPrefix(refused.Key, "ports") {
		written := *refused
		written.Key = strings.Replace(refused.Key, "ports", keyPorts, 1)
		written.Message = strings.ReplaceAll(refused.Message, "ports[", keyPorts+"[")
		refused, err = &written, &written
	}
	if !strings.Contains(refused.Message, refused.Key) {
		return fmt.Errorf("%s: %w", refused.Key, err)
	}
	return err
}
