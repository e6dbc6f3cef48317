// SPDX-License-Identifier: Apache-2.0

// Package api is the agent's interface as others see it: the JSON types, one
// per noun, the client that the CNI plugin and the CLI use, and the handler
// that turns requests into calls of a Service. It is spoken as HTTP over a
// unix socket, so `curl --unix-socket` is a client too.
//
// The package imports no sibling: the agent implements Service.
package api
