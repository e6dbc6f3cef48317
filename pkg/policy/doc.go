// SPDX-License-Identifier: Apache-2.0

// Package policy reads network policies and compiles them to the tables that
// the programs ask.
package policy
