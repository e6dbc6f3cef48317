// SPDX-License-Identifier: Apache-2.0

// Package docs tries the documentation: README.md and docs/*.md.
//
// Every fenced block says by its language what it is, and is put to the test:
//
//   - sh: commands that succeed, in the order of the page, in one shell's
//     environment, on a machine with an agent (see the script node).
//   - console: commands behind "$ " and what they print. Each line shown must
//     be printed, in this order, numbers aside; "..." stands for any lines.
//   - sh install: commands for a real machine, tried with DESTDIR.
//   - sh podman: commands that need a Podman with CNI.
//   - json: a CNI configuration, or a part of one, that the plugin accepts.
//   - yaml: a configuration that the agent accepts; yaml prometheus: rules.
//   - text: a drawing.
//
// What the pages list (settings, keys, metrics, reasons, maps, fields) is
// compared with what the programs have, in both directions.
package docs
