// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math/big"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// FuzzSystemd takes any of the variables that systemd sets. A socket is taken over where it is one and for this
// process, and else the error says what LISTEN_FDS is. A watchdog is none or the one that was asked for.
func FuzzSystemd(f *testing.F) {
	const own = "own" // stands for the number of the process
	f.Add(own, "1", "api", own, "100000", "/run/notify")
	f.Add(own, "2", "api:more", "", "1", "@notify")
	f.Add(own, "01", "", "1", "100000", "@")
	f.Add("1", "1", "", "+1", "-1", "")
	f.Add("", "", "", "", "9223372036854775", "") // the longest of a time.Duration
	f.Add("", "", "", "", "9223372036854776", "")
	f.Add("", "", "", "", "18446744073709551615", "")
	f.Fuzz(func(t *testing.T, listenPID, count, names, watchdogPID, usec, socket string) {
		pid := func(text string) string {
			if text == own {
				return strconv.Itoa(os.Getpid())
			}
			return text
		}
		variables := map[string]string{
			"LISTEN_PID": pid(listenPID), "LISTEN_FDS": count, "LISTEN_FDNAMES": names,
			"WATCHDOG_PID": pid(watchdogPID), "WATCHDOG_USEC": usec, "NOTIFY_SOCKET": socket,
		}
		env := environment{getenv: func(name string) string { return variables[name] }}

		ours := pid(listenPID) == pid(own)
		handed, err := handedOver(env)
		if handed != (ours && count == "1") || (err != nil) != (ours && count != "1") {
			t.Errorf("LISTEN_PID=%q LISTEN_FDS=%q: handed over %t, %v", listenPID, count, handed, err)
		}
		if err != nil && !strings.Contains(err.Error(), "LISTEN_FDS is "+strconv.Quote(count)) {
			t.Errorf("LISTEN_FDS=%q: the error does not name it: %v", count, err)
		}

		want := notifier{socket: socket}
		if strings.HasPrefix(socket, "@") {
			want.socket = "\x00" + socket[1:]
		}
		asked, isNumber := new(big.Int).SetString(usec, 10)
		if isNumber && (watchdogPID == "" || pid(watchdogPID) == pid(own)) {
			if asked.Mul(asked, big.NewInt(1000)); asked.Sign() > 0 && asked.IsInt64() {
				want.interval = time.Duration(asked.Int64())
			}
		}
		if got := newNotifier(env); got != want {
			t.Errorf("WATCHDOG_PID=%q WATCHDOG_USEC=%q NOTIFY_SOCKET=%q: %+v, want %+v", watchdogPID, usec, socket, got, want)
		}
	})
}
