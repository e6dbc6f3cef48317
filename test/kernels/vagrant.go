// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// vagrantUp boots the machine of the Vagrantfile that has a kernel, where it is not
// up, and copies the module, test binaries included, to its moduleDir. The machine
// must run that kernel. It stays up for the next time; cache gets its ssh settings.
func vagrantUp(ctx context.Context, cache, name string) (*kernel, error) {
	host := vagrantHost(name)
	for _, verb := range []string{"up", "rsync"} {
		command := exec.CommandContext(ctx, "vagrant", verb, host)
		command.Stdout, command.Stderr = os.Stderr, os.Stderr
		if err := command.Run(); err != nil {
			return nil, fmt.Errorf("run vagrant %s %s: %w", verb, host, err)
		}
	}
	config, err := output(ctx, "", "vagrant", "ssh-config", host)
	if err != nil {
		return nil, err
	}
	k := &kernel{name: name, ssh: filepath.Join(cache, host+".ssh")}
	if err := errors.Join(os.MkdirAll(cache, 0o755), os.WriteFile(k.ssh, []byte(config), 0o600)); err != nil {
		return nil, err
	}
	release, err := output(ctx, "", "ssh", "-F", k.ssh, host, "uname -r")
	if err != nil {
		return nil, err
	}
	if k.release = strings.TrimSpace(release); !strings.HasPrefix(k.release, name+".") {
		return nil, fmt.Errorf("%s runs Linux %s: vagrant provision %[1]s gives it its kernel", host, k.release)
	}
	return k, nil
}

// vagrantHost is the machine of the Vagrantfile that has a kernel.
func vagrantHost(kernel string) string { return "linux-" + kernel }

// remote is a machine that vagrantUp has booted, with a job.
type remote struct {
	kernel  *kernel
	program program
	job     job
	timeout time.Duration
}

// run is a boot for the job.
func (r remote) run(ctx context.Context, out io.Writer) error {
	limited, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	r.job.args[0] = path.Join(moduleDir, "bin/kernels", r.program.path, path.Base(r.program.binary))
	command := exec.CommandContext(limited, "ssh", "-F", r.kernel.ssh, vagrantHost(r.kernel.name), "sudo sh")
	command.Stdin = strings.NewReader(r.job.script())
	command.Stdout, command.Stderr = out, out
	err := command.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if limited.Err() != nil {
		return fmt.Errorf("the job was still running after %s", r.timeout)
	}
	exit := (*exec.ExitError)(nil)
	switch {
	case !errors.As(err, &exit):
		return err
	case exit.ExitCode() == 255: // ssh's own
		return errDied
	}
	return exitError(exit.ExitCode())
}
