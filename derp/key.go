package derp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tailscale.com/types/key"
)

// loadOrMakeKey reads the relay's key, or makes and saves a new one. Two processes that start at once agree on one key.
func loadOrMakeKey(path string) (key.NodePrivate, error) {
	priv, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return priv, err
	}
	priv = key.NewNode()
	text, err := priv.MarshalText()
	if err != nil {
		return key.NodePrivate{}, err
	}
	err = writeSecret(path, append(text, '\n'), false)
	if errors.Is(err, fs.ErrExist) {
		return readKey(path)
	}
	if err != nil {
		return key.NodePrivate{}, fmt.Errorf("cannot save the relay's private key: %w", err)
	}
	return priv, nil
}

func readKey(path string) (key.NodePrivate, error) {
	var priv key.NodePrivate
	text, err := os.ReadFile(path)
	if err != nil {
		return priv, fmt.Errorf("cannot read the relay's private key: %w", err)
	}
	if err := priv.UnmarshalText([]byte(strings.TrimSpace(string(text)))); err != nil {
		// The error of UnmarshalText may quote the secret.
		return priv, fmt.Errorf("%s is not a relay key: want one line, \"privkey:\" and 64 hex digits; move the file away to have a new key made", path)
	}
	return priv, nil
}

// writeSecret saves a file with mode 0600, whole or not at all, and durably. With replace false an existing file is left alone
// and the error is fs.ErrExist.
func writeSecret(path string, data []byte, replace bool) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // after Rename there is nothing to remove
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if replace {
		err = os.Rename(tmp.Name(), path)
	} else {
		err = os.Link(tmp.Name(), path) // unlike Rename, fails if path exists
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
