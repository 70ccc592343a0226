package cluster

import (
	"context"
	"errors"
	"testing"
	"time"
)

// machine is a machine and a database with clocks of their own.
type machine struct {
	elapsed    time.Duration // true time since the start
	wall, base time.Time     // what the machine's and the database's clocks said at the start
	takes      time.Duration // each way of a question to the database
	fails      error
}

func (m *machine) clock() *Clock {
	return NewClock(func() time.Time { return m.wall.Add(m.elapsed) }, func() time.Duration { return m.elapsed })
}

func (m *machine) ask(context.Context) (time.Time, error) {
	m.elapsed += m.takes
	at := m.base.Add(m.elapsed)
	m.elapsed += m.takes
	return at, m.fails
}

func TestClock(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m := &machine{wall: start.Add(2 * time.Hour), base: start, takes: 3 * time.Millisecond}
	c := m.clock()
	near := func(what string, want time.Time, within time.Duration) {
		t.Helper()
		if d := c.Now().Sub(want); d.Abs() > within {
			t.Errorf("%s: the clock is %v off", what, d)
		}
	}
	look := func(wantStep bool) {
		t.Helper()
		step, err := c.Look(t.Context(), m.ask)
		if err != nil || (step != 0) != wantStep {
			t.Errorf("step %v, error %v; wanted a step: %v", step, err, wantStep)
		}
	}
	near("never asked, it is the machine's", m.wall, 0)
	if c.Skew() != 0 {
		t.Errorf("skew %v before the first look", c.Skew())
	}

	if err := c.Start(t.Context(), m.ask); err != nil {
		t.Fatal(err)
	}
	near("asked", m.base.Add(m.elapsed), time.Millisecond)
	if d := c.Skew() - 2*time.Hour; d.Abs() > time.Millisecond {
		t.Errorf("skew %v, of a clock two hours ahead", c.Skew())
	}

	m.elapsed += time.Minute
	m.wall = m.wall.Add(-5 * time.Hour) // somebody sets the machine's clock
	near("the machine's clock was set", m.base.Add(m.elapsed), time.Millisecond)
	if d := c.Skew() + 3*time.Hour; d.Abs() > time.Millisecond {
		t.Errorf("skew %v, of a clock three hours behind", c.Skew())
	}
	look(false)

	m.base = m.base.Add(40 * time.Millisecond) // clocks drift
	m.takes = 100 * time.Millisecond
	look(false) // may as well be the way
	m.takes = time.Millisecond
	look(true)
	near("drifted", m.base.Add(m.elapsed), time.Millisecond)

	before := c.Now()
	m.base, m.takes = m.base.Add(time.Hour), 2*time.Second
	look(false) // a database that hangs tells no time
	if d := c.Now().Sub(before); d > 5*time.Second {
		t.Errorf("the clock went by %v", d)
	}
	m.takes = 0
	look(true) // another database has taken over
	near("another database", m.base.Add(m.elapsed), 0)

	m.fails = errors.New("away")
	if _, err := c.Look(t.Context(), m.ask); !errors.Is(err, m.fails) {
		t.Errorf("error %v", err)
	}
	near("the database is away", m.base.Add(m.elapsed), 0)
}
