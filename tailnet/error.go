package tailnet

import (
	"errors"
	"fmt"
)

// Code says what kind of failure an Error is. One place (api) maps it to HTTP statuses and exit codes.
type Code string

const (
	Invalid  Code = "invalid"   // the request is wrong by itself
	NotFound Code = "not_found" // it names something that does not exist
	Conflict Code = "conflict"  // it contradicts what exists
	Denied   Code = "denied"    // the caller may not do it
	// Unauthenticated: who calls is not known; with a credential that is good it might be allowed.
	Unauthenticated Code = "unauthenticated"
	Exhausted       Code = "exhausted"   // a limit or a pool is used up
	Unavailable     Code = "unavailable" // it cannot be done now, but later perhaps
	Internal        Code = "internal"    // our fault
)

// Error has two faces: a code and a sentence that any caller may see, and a cause for the log.
type Error struct {
	Code    Code
	Message string // a sentence without a full stop, safe to show
	Cause   error  // for the log only; may be nil
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Cause }

// Errorf makes an Error with a sentence; a %w verb makes its operand the cause as well as part of the sentence.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// CodeOf is the code of err: Internal if it carries none, empty if err is nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// ErrConflict is what a store's Commit returns if somebody else has changed the tailnet: nothing was written, load and try again.
var ErrConflict = errors.New("the tailnet has been changed by somebody else")

// ErrGap is what a store's Since returns if it cannot tell row by row what has happened: read everything.
var ErrGap = errors.New("too much has happened to the tailnet, or its history is gone")
