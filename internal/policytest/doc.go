// SPDX-License-Identifier: Apache-2.0

// Package policytest judges flows by network policies without compiling them,
// and makes up policies, endpoints and flows to judge. The tests of pkg/policy
// and of pkg/datapath call it: what they say of a flow must be what Model says.
//
// Model reads the objects of Kubernetes for each flow as their documentation
// is written. It is slow and shares no code with the engine but the types of
// its input.
//
// What the generators make up is dense on purpose: few labels, nested prefixes
// and few ports, so that most flows meet several rules. The same rng gives the
// same.
package policytest
