// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// decode reads one JSON value with known keys only and nothing behind it. Every
// error is an *Error of CodeInvalid.
func decode(r *http.Request, into any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one JSON value")
			if tooLong := (*http.MaxBytesError)(nil); errors.As(more, &tooLong) {
				err = more
			}
		}
	}
	if err == nil {
		return nil
	}
	fault := explain(err)
	fault.Code, fault.Message = CodeInvalid, "read request: "+fault.Message
	return fault
}

// explain says what is wrong with a body in the words of who wrote it: keys and
// values instead of the types that they are read into.
func explain(err error) *Error {
	var (
		tooLong *http.MaxBytesError
		kind    *json.UnmarshalTypeError
		syntax  *json.SyntaxError
	)
	switch {
	case errors.As(err, &tooLong):
		return &Error{Message: fmt.Sprintf("body is longer than %d bytes", tooLong.Limit)}
	case errors.Is(err, io.EOF):
		return &Error{Message: "body is empty"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &Error{Message: "body ends in the middle of a JSON value"}
	case errors.As(err, &syntax):
		return &Error{Message: fmt.Sprintf("body is no JSON: byte %d: %s", syntax.Offset, syntax)}
	case errors.As(err, &kind):
		return wrongKind(kind)
	}
	if quoted, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		key, _ := strconv.Unquote(quoted)
		return &Error{Message: "unknown key " + quoted, Key: key}
	}
	if match := parseError.FindStringSubmatch(err.Error()); match != nil {
		value, _ := strconv.Unquote(match[2])
		what := map[string]string{"Addr": "address", "Prefix": "prefix"}[match[1]]
		return &Error{Message: fmt.Sprintf("%s is no %s: %s", match[2], what, match[3]), Value: value}
	}
	return &Error{Message: err.Error()}
}

// parseError matches the errors of netip.ParseAddr and netip.ParsePrefix.
var parseError = regexp.MustCompile(`^(?:netip\.)?Parse(Addr|Prefix)\(("(?:[^"\\]|\\.)*")\): (.*)$`)

// wrongKind names the key and the kinds of the value that is there and of the one
// that is wanted.
func wrongKind(err *json.UnmarshalTypeError) *Error {
	// Keys of an embedded struct come with its name, which no JSON has.
	var keys []string
	for _, key := range strings.Split(err.Field, ".") {
		if key != reflect.TypeFor[Attachment]().Name() {
			keys = append(keys, key)
		}
	}
	key := strings.Join(keys, ".")
	where := "body"
	if key != "" {
		where = "key " + strconv.Quote(key)
	}
	return &Error{Message: fmt.Sprintf("%s: %s is wanted, not %s", where, kindOf(err.Type), err.Value), Key: key}
}

// kindOf is what a value of the type is in JSON.
func kindOf(t reflect.Type) string {
	if t == nil {
		return "another value"
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return "a string"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number"
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list"
	}
	return "an object"
}
