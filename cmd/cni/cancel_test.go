// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// A runtime that gives up sends SIGTERM, which cancels the call's context:
// whatever is under way then is undone, with calls that are not cancelled.
func TestCancelledAddIsUndone(t *testing.T) {
	for _, verb := range []string{"POST endpoints", "PUT attach"} {
		t.Run(strings.ReplaceAll(verb, " ", "-"), func(t *testing.T) {
			node, container := nstest.New(t, "node"), nstest.New(t, "c1")
			agent := startAgent(t, t.TempDir())
			t.Cleanup(agent.stop)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			agent.onCall = func(called string, r *http.Request) {
				if called == verb {
					cancel()
					<-r.Context().Done() // the plugin hung up
				}
			}
			variables := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": container.Path}
			config := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"pods","socket":%q,"ipam":{"type":"tendril","ranges":[[{"subnet":"10.10.0.0/16"}]]}}`, agent.socket)
			var out, diagnostics strings.Builder
			env := environment{
				ctx: ctx, stdin: strings.NewReader(config), stdout: &out, stderr: &diagnostics,
				getenv: func(key string) string { return variables[key] },
			}
			var err error
			node.Do(t, func() { err = run(env, nil) })
			if err == nil {
				t.Fatalf("ADD succeeded: %s", out.String())
			}
			var answer types.Error
			if err := json.Unmarshal([]byte(out.String()), &answer); err != nil {
				t.Fatal(err)
			}
			if answer.Code != types.ErrTryAgainLater || answer.Details != "" {
				t.Errorf("want code 11 without details, got %+v", answer)
			}
			agent.mu.Lock()
			defer agent.mu.Unlock()
			if diff := cmp.Diff(map[api.Attachment]api.Endpoint{}, agent.endpoints); diff != "" {
				t.Errorf("endpoints left (-want +got):\n%s", diff)
			}
			for _, ns := range []*nstest.NS{node, container} {
				links, err := ns.Handle.LinkList()
				if err != nil {
					t.Fatal(err)
				}
				if len(links) != 1 {
					t.Errorf("%s has %d links, want only lo", ns.Name, len(links))
				}
			}
		})
	}
}
