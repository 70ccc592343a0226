package main

import (
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sendDatagram sends one message to a unix datagram socket; a name that begins with "@" is an abstract one. A reload needs
// the time of its beginning beside it (sd_notify, MONOTONIC_USEC).
func sendDatagram(name, msg string) error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if strings.HasPrefix(msg, "RELOADING") {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err == nil {
			msg += "\nMONOTONIC_USEC=" + strconv.FormatInt(time.Duration(ts.Nano()).Microseconds(), 10)
		}
	}
	_, err = c.Write([]byte(msg))
	return err
}
