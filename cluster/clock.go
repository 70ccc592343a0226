package cluster

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// MaxSkew is how far a machine's clock may be from the database's before somebody is told.
const MaxSkew = 2 * time.Second

const (
	clockSlow  = time.Second          // an answer that took longer says too little
	clockSlack = 5 * time.Millisecond // a difference that is not worth a step
	clockTries = 5                    // at the start: the quickest answer counts
)

// Clock is the time that the servers on one database share: the database's, which this machine's monotonic clock carries on from one
// look to the next. So what one server writes down as a time means the same to another one, and a clock that is set wrong, or set
// right while a server runs, lets no key end too early or too late. Before the first look, and where there is no database to
// ask, it is the machine's. Its methods may be called from any goroutine.
type Clock struct {
	wall func() time.Time
	mono func() time.Duration
	set  atomic.Pointer[reading] // nil: never looked
}

// reading says that it was at by the database when the monotonic clock said mono.
type reading struct {
	at   time.Time
	mono time.Duration
}

// NewClock returns the machine's clock. wall is what people read off it, mono never steps; nil: those of the machine.
func NewClock(wall func() time.Time, mono func() time.Duration) *Clock {
	if wall == nil {
		wall = time.Now
	}
	if mono == nil {
		start := time.Now()
		mono = func() time.Duration { return time.Since(start) }
	}
	return &Clock{wall: wall, mono: mono}
}

// Now is the time.
func (c *Clock) Now() time.Time {
	if r := c.set.Load(); r != nil {
		return r.at.Add(c.mono() - r.mono)
	}
	return c.wall()
}

// Skew is how far the machine's own clock is ahead; negative: behind. 0 before the first look.
func (c *Clock) Skew() time.Duration {
	if c.set.Load() == nil {
		return 0
	}
	return c.wall().Round(0).Sub(c.Now())
}

// Look asks for the database's time and goes by it from then on. An answer that may be explained by the time that it took changes
// nothing. step is by how much the clock was set, 0 at the first look. One call at a time.
func (c *Clock) Look(ctx context.Context, ask func(context.Context) (time.Time, error)) (step time.Duration, err error) {
	begin := c.mono()
	at, err := ask(ctx)
	if err != nil {
		return 0, fmt.Errorf("asking the database for the time: %w", err)
	}
	took := c.mono() - begin
	r := &reading{at: at, mono: begin + took/2}
	old := c.set.Load()
	if old == nil {
		c.set.Store(r)
		return 0, nil
	}
	step = r.at.Sub(old.at.Add(r.mono - old.mono))
	if took > clockSlow || step.Abs() <= took/2+clockSlack {
		return 0, nil
	}
	c.set.Store(r)
	return step, nil
}

// Start looks a few times, since a first answer may have waited for a connection.
func (c *Clock) Start(ctx context.Context, ask func(context.Context) (time.Time, error)) error {
	for range clockTries {
		if _, err := c.Look(ctx, ask); err != nil {
			return err
		}
	}
	return nil
}
