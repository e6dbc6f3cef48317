// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/tendril-net/tendril/internal/nstest"
)

// Programs are the paths of the binaries under test.
type Programs struct {
	Agent, CNI, CLI string
	// CrashAgent and CrashCNI were built with the tag "failpoint".
	CrashAgent, CrashCNI string
}

// Find returns the programs of the module at root: built now, into dir, where
// there is a Go toolchain, and else those that bin/ holds.
func Find(root, dir string) (Programs, error) {
	if nstest.Emulated() {
		return prebuilt(filepath.Join(root, "bin"))
	}
	crash := filepath.Join(dir, "failpoint")
	for _, one := range []struct {
		dir  string
		args []string
	}{
		{dir, []string{"./cmd/agent", "./cmd/cni", "./cmd/tendril"}},
		{crash, []string{"-tags=failpoint", "./cmd/agent", "./cmd/cni"}},
	} {
		if err := os.MkdirAll(one.dir, 0o755); err != nil {
			return Programs{}, err
		}
		build := exec.Command("go", append([]string{"build", "-buildvcs=false", "-o", one.dir + "/"}, one.args...)...)
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			return Programs{}, fmt.Errorf("build programs: %w\n%s", err, text)
		}
	}
	return Programs{
		Agent: filepath.Join(dir, "agent"), CNI: filepath.Join(dir, "cni"), CLI: filepath.Join(dir, "tendril"),
		CrashAgent: filepath.Join(crash, "agent"), CrashCNI: filepath.Join(crash, "cni"),
	}, nil
}

func prebuilt(bin string) (Programs, error) {
	p := Programs{
		Agent: filepath.Join(bin, "tendril-agent"), CNI: filepath.Join(bin, "tendril-cni"), CLI: filepath.Join(bin, "tendril"),
		CrashAgent: filepath.Join(bin, "failpoint/tendril-agent"), CrashCNI: filepath.Join(bin, "failpoint/tendril-cni"),
	}
	var missing []error
	for _, path := range []string{p.Agent, p.CNI, p.CLI, p.CrashAgent, p.CrashCNI} {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, err)
		}
	}
	if missing != nil {
		return p, fmt.Errorf("find programs, there being no Go to build them: %w", errors.Join(missing...))
	}
	return p, nil
}

// environment is what agent and plugin are started with, of all that this process has: where all is emulated, that they
// collect garbage as seldom as it does.
func environment() []string {
	env := []string{"PATH=" + os.Getenv("PATH")}
	if percent, ok := os.LookupEnv("GOGC"); ok {
		env = append(env, "GOGC="+percent)
	}
	return env
}
