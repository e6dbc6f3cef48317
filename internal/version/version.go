// SPDX-License-Identifier: Apache-2.0

// Package version names the build that runs, for all programs alike.
package version

import (
	"runtime/debug"
	"strings"
)

// String is the module's version, with the commit where the build knows it.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision := ""
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = " (" + s.Value[:min(len(s.Value), 12)] + ")"
		}
	}
	return strings.TrimSpace(info.Main.Version + revision)
}
