// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/socktest"
)

// The sockets of package socktest, by the names they have here; nothing changes
// the variables.
type stream = socktest.Stream

var (
	closeAtEnd   = socktest.CloseAtEnd
	control      = socktest.Control
	listenUDP    = socktest.ListenUDP
	dialUDP      = socktest.DialUDP
	serveUDP     = socktest.ServeUDP
	watchUDP     = socktest.WatchUDP
	askUDP       = socktest.AskUDP
	tryUDP       = socktest.TryUDP
	pattern      = socktest.Pattern
	serveTCP     = socktest.ServeTCP
	dialTCP      = socktest.DialTCP
	tryTCP       = socktest.TryTCP
	tryTCPWithin = socktest.TryTCPWithin
	freeUDP      = socktest.FreeUDP
	openEcho     = socktest.OpenEcho
	discover     = socktest.Discover
)

func must[T any](value T, err error) func(testing.TB) T { return socktest.Must(value, err) }

func in[T any](t *testing.T, ns *nstest.NS, f func() (T, error)) T {
	t.Helper()
	return socktest.In(t, ns, f)
}
