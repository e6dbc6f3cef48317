// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
)

// caughtFile has what caught each fault the last time. It saves to compile all programs and to
// run all tests: what it says is tried, and where it is wrong all are asked.
const caughtFile = "test/mutations/caught.json"

// catch is how a fault was caught.
type catch struct {
	// Test fails with the fault and passes without, alone.
	Test string
	// Program is the source of the program that has to have the fault for that, "" where one
	// is not enough.
	Program string
}

func readCaught(file string) (map[string]catch, error) {
	caught := make(map[string]catch)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return caught, nil
	} else if err != nil {
		return nil, err
	}
	return caught, json.Unmarshal(text, &caught)
}

func writeCaught(file string, caught map[string]catch) error {
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetIndent("", "\t")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(caught); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text.String()), 0o644)
}

// pattern is for -test.run, and matches one test alone.
func pattern(test string) string {
	names := strings.Split(test, "/")
	for i, name := range names {
		names[i] = "^" + regexp.QuoteMeta(name) + "$"
	}
	return strings.Join(names, "/")
}

// parent returns the test that one is part of, or "".
func parent(test string) string {
	if dir := path.Dir(test); dir != "." {
		return dir
	}
	return ""
}
