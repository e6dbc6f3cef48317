// SPDX-License-Identifier: Apache-2.0

package policy

// Active is that of Tables, without making them.
func (e *Engine) Active() bool { return e.program.policies > 0 || e.isolated > 0 }

// Isolates says in which directions the policy isolates the endpoints that it
// selects.
func (p *Policy) Isolates() (ingress, egress bool) { return isolates(&p.Object.Spec) }
