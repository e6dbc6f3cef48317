// SPDX-License-Identifier: Apache-2.0

// Package e2e tests tendril whole: the real agent and the real plugin on real
// network namespaces, with traffic from sockets of the test itself. It runs as
// root, on the host and in the machines of test/kernels, which find the
// programs in bin/ and those with failpoints in bin/failpoint/.
package e2e
