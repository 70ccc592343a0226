package h2

import (
	"errors"
	"os"
	"sync/atomic"

	"golang.org/x/net/http2"
)

// Counters count since they were made what clients of all connections that share them have done wrong, and connections
// that were cut for it.
type Counters struct {
	Floods         atomic.Int64 // cut: too many frames without use, or answers that are not read
	Faults         atomic.Int64 // cut: anything else that is not HTTP/2
	Silent         atomic.Int64 // cut: a PING was not answered
	Stuck          atomic.Int64 // cut: the connection took nothing for too long
	RefusedStreams atomic.Int64 // requests over MaxStreams
	StarvedStreams atomic.Int64 // reset: the client gave no credit for too long
}

// ended counts the end of a connection.
func (n *Counters) ended(err error) {
	var fault connError
	switch {
	case errors.As(err, &fault) && fault.code == http2.ErrCodeEnhanceYourCalm, errors.Is(err, errQueue):
		n.Floods.Add(1)
	case fault.reason != "", errors.Is(err, errPreface):
		n.Faults.Add(1)
	case errors.Is(err, errNoAnswer):
		n.Silent.Add(1)
	case errors.Is(err, os.ErrDeadlineExceeded):
		n.Stuck.Add(1)
	}
}
