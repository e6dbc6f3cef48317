// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// notifier tells systemd how the service is (sd_notify(3)). The zero value, and
// one that systemd does not listen to, tells nobody.
type notifier struct {
	socket   string
	interval time.Duration // of the watchdog; 0 when there is none
}

func newNotifier(env environment) notifier {
	n := notifier{socket: env.getenv("NOTIFY_SOCKET")}
	if name, abstract := strings.CutPrefix(n.socket, "@"); abstract {
		n.socket = "\x00" + name
	}
	if pid := env.getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return n
	}
	// One that is longer than a Duration can be, 292 years, is none.
	const longest = int64(math.MaxInt64 / time.Microsecond)
	if usec, err := strconv.ParseInt(env.getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 && usec <= longest {
		n.interval = time.Duration(usec) * time.Microsecond
	}
	return n
}

// notify sends lines such as "READY=1".
func (n notifier) notify(lines ...string) error {
	if n.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// watch tells the watchdog, twice as often as it asks for, that alive has
// returned. It returns when the context ends.
func (n notifier) watch(ctx context.Context, alive func()) {
	if n.socket == "" || n.interval == 0 {
		return
	}
	ticker := time.NewTicker(max(n.interval/2, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			alive()
			_ = n.notify("WATCHDOG=1") // systemd acts on what does not come
		}
	}
}
