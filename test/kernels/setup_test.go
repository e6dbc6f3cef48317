// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSetups(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		wire       bool
		want       [][]string
		err        string
	}{
		{name: "all", want: [][]string{{"5.10"}, {"6.1"}, {"6.12"}, {"7"}}},
		{name: "some", text: "7,5.10", want: [][]string{{"7"}, {"5.10"}}},
		{name: "all pairs", wire: true, want: [][]string{{"5.10", "7"}, {"6.1", "6.12"}}},
		{name: "some pairs", text: "7+6.1,5.10+6.1", wire: true, want: [][]string{{"7", "6.1"}, {"5.10", "6.1"}}},
		{name: "unknown", text: "6.1,6.2", err: `-kernel "6.2": want one of 5.10, 6.1, 6.12, 7`},
		{name: "a pair", text: "5.10+7", err: `-kernel "5.10+7": want one of 5.10, 6.1, 6.12, 7`},
		{name: "no pair", text: "7", wire: true, err: `-kernel "7": want two different of 5.10, 6.1, 6.12, 7, with + between them`},
		{name: "half a pair", text: "7+", wire: true, err: `-kernel "7+": want two different of 5.10, 6.1, 6.12, 7, with + between them`},
		{name: "one with itself", text: "7+7", wire: true, err: `-kernel "7+7": want two different of 5.10, 6.1, 6.12, 7, with + between them`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := setups(tt.text, tt.wire)
			message := ""
			if err != nil {
				message = err.Error()
			}
			if message != tt.err {
				t.Errorf("got error %q, want %q", message, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("setups (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSeats(t *testing.T) {
	kernels := map[string]*kernel{"5.10": {name: "5.10"}, "7": {name: "7"}}
	for _, tt := range []struct{ setup, want []string }{
		{[]string{"7"}, []string{"7"}},
		{[]string{"5.10", "7"}, []string{"5.10+7", "7+5.10"}},
	} {
		var got []string
		for _, at := range seats(tt.setup, kernels) {
			got = append(got, at.title())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("titles of %v (-want +got):\n%s", tt.setup, diff)
		}
	}
}
