// SPDX-License-Identifier: Apache-2.0

package api

// Error codes of the agent. The plugin maps them to codes of the CNI
// specification.
const (
	// CodeInvalid: a value in the request is wrong; Key and Value name it.
	CodeInvalid = "invalid"
	// CodeNotFound: the endpoint is not known.
	CodeNotFound = "not_found"
	// CodeMethod: the path is known, but not with this method.
	CodeMethod = "method_not_allowed"
	// CodeConflict: an address, name or attachment is taken.
	CodeConflict = "conflict"
	// CodeExhausted: no address is left in a range set.
	CodeExhausted = "exhausted"
	// CodeMismatch: a check found that something is not as ADD left it.
	CodeMismatch = "mismatch"
	// CodeUnavailable: the agent cannot serve now.
	CodeUnavailable = "unavailable"
	// CodeInternal: anything else.
	CodeInternal = "internal"
)

// Error is the body of every answer that is not a success.
type Error struct {
	Code string `json:"code"`
	// Message names the thing at fault, in lower case.
	Message string `json:"message"`
	// Key is the configuration key at fault, such as "ipam.ranges[0][0].subnet".
	Key string `json:"key,omitempty"`
	// Value is the value at fault.
	Value string `json:"value,omitempty"`
}

func (e *Error) Error() string { return e.Message }
