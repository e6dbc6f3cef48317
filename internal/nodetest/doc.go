// SPDX-License-Identifier: Apache-2.0

// Package nodetest makes nodes for tests: a node is a network namespace with a
// real tendril-agent that has a socket, a state directory and a bpf-root of its
// own, and containers are namespaces that the real tendril-cni attaches to it.
// Tests of test/e2e call it. Whatever a Node makes is removed when its test
// ends; a test that ends badly finds the agent's log in its output.
package nodetest
