package db

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// fileLock keeps other processes from opening the same database. SQLite itself would let them in, and two servers that each
// believe to be the only one would lead clients astray. The kernel lets go of it when the process ends, however it ends; the
// file stays, because removing it would race with the next one who opens it.
type fileLock struct{ f *os.File }

// lockFile takes the lock at path; database is named in the error if somebody else has it.
func lockFile(path, database string) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, fmt.Errorf("database %s: its folder cannot be written to: %s: %w", database, path, unwrapPath(err))
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		who := "another skein is running on this database"
		b, _ := io.ReadAll(io.LimitReader(f, 32))
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			who += fmt.Sprintf(" (pid %d)", pid)
		}
		f.Close()
		return nil, fmt.Errorf("database %s: %s", database, who)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("database %s: lock %s: %w", database, path, unwrapPath(err))
	}
	return &fileLock{f}, nil
}

func (l *fileLock) unlock() error {
	if l == nil {
		return nil
	}
	return l.f.Close()
}
