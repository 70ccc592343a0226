package db

import (
	"errors"
	"fmt"
	"strings"

	gosqlite "github.com/glebarez/go-sqlite"

	"github.com/skein-vpn/skein/tailnet"
)

// SQLite's result codes that we tell apart (https://www.sqlite.org/rescode.html). The low byte of an extended code is the
// primary code.
const (
	codeBusy      = 5
	codeReadonly  = 8
	codeInterrupt = 9
	codeIOErr     = 10
	codeCorrupt   = 11
	codeFull      = 13
	codeCantOpen  = 14
	codeNotADB    = 26

	codeConstraintForeignKey = 787
	codeConstraintPrimaryKey = 1555
	codeConstraintUnique     = 2067
)

// sqliteCode is the extended result code that err carries; 0 if none.
func sqliteCode(err error) int {
	var se *gosqlite.Error
	if errors.As(err, &se) {
		return se.Code()
	}
	return 0
}

func isUnique(err error) bool {
	if pe := pgError(err); pe != nil {
		return pe.Code == stateUnique
	}
	c := sqliteCode(err)
	return c == codeConstraintUnique || c == codeConstraintPrimaryKey
}

// isFault reports whether the disk or the file is to blame, not what was asked for.
func isFault(err error) bool {
	switch sqliteCode(err) & 0xff {
	case codeReadonly, codeIOErr, codeCorrupt, codeFull, codeCantOpen, codeNotADB:
		return true
	}
	return false
}

// isForeignKey reports whether a row refers to one that does not exist.
func isForeignKey(err error) bool {
	pe := pgError(err)
	return pe != nil && pe.Code == stateForeignKey || sqliteCode(err) == codeConstraintForeignKey
}

// explain adds to a failure of SQLite which file it is about and what an administrator can do. Other errors stay as they are.
func (d *DB) explain(err error) error {
	if d.pg != nil {
		return d.explainPostgres(err)
	}
	var te *tailnet.Error
	if err == nil || sqliteCode(err) == 0 || errors.As(err, &te) {
		return err
	}
	say := func(code tailnet.Code, what string) error {
		return &tailnet.Error{Code: code, Message: fmt.Sprintf("database %s %s (%v)", d.path, what, err), Cause: err}
	}
	switch sqliteCode(err) & 0xff {
	case codeNotADB:
		return say(tailnet.Internal, "is not a SQLite database; move it away or name another path")
	case codeCorrupt:
		return say(tailnet.Internal, "is damaged; stop the server and put a copy in its place")
	case codeBusy:
		return say(tailnet.Unavailable, "is locked by another program")
	case codeInterrupt: // because a context ended
		return say(tailnet.Unavailable, "did not answer while somebody waited")
	case codeReadonly:
		return say(tailnet.Unavailable, "or its folder cannot be written to")
	case codeFull:
		return say(tailnet.Unavailable, "cannot grow: the disk is full")
	case codeIOErr, codeCantOpen:
		return say(tailnet.Unavailable, "cannot be read or written")
	}
	if strings.Contains(err.Error(), d.path) { // whoever wrapped it knew more than there is to add
		return err
	}
	return say(tailnet.Internal, "failed")
}
