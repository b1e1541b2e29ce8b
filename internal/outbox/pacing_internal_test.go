package outbox

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A worker's looks follow each other as its pacing says, whatever they find.
func TestLooksAreAsOftenAsTheyMayBe(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const concurrency = 64
		p := pacing{concurrency: concurrency}
		now := time.Unix(1_800_000_000, 0)
		var last struct { // look ahead
			Look
			Assigned
			began time.Time
			took  time.Duration
		}
		// Lanes may be filled on with what they don't need yet ten times as long as
		// it will take after it was begun; where others' events came, forty times,
		// within a second.
		var fill struct {
			began   time.Time
			takes   time.Duration
			between bool
		}
		for range rapid.IntRange(1, 200).Draw(t, "looks") {
			pending := rapid.SampledFrom([]int{0, 3 * concurrency, 4 * concurrency, 5 * concurrency}).Draw(t, "pending")
			full := pending > 3*concurrency
			announced := rapid.Bool().Draw(t, "announced")
			p.news = p.news || announced
			news := p.news
			hungry := rapid.Bool().Draw(t, "hungry")
			plan, early := p.plan(now, pending, hungry)

			filled := fill.began.Add(10 * fill.takes)
			if fill.between {
				filled = fill.began.Add(max(10*fill.takes, min(40*fill.takes, time.Second)))
			}
			due := now
			ahead := full || now.Before(filled)
			if ahead && last.Ahead {
				switch {
				case hungry && last.More:
					due = last.began
				case hungry:
					due = last.began.Add(max(hungryPause, 2*last.took))
				default:
					due = last.began.Add(max(flowWindow/2, passShare*last.took)) // no event ends here
				}
				if soon := last.began.Add(2 * last.took); news && last.AtEnd && soon.Before(due) {
					due = soon
				}
				if !full && filled.Before(due) {
					due = filled
				}
			}
			if want := max(due.Sub(now), 0); early != want {
				t.Fatalf("the next look is due in %s, want %s", early, want)
			}
			if early > 0 {
				if !p.behind {
					t.Fatal("what is waited for would be forgotten")
				}
				now = now.Add(time.Duration(rapid.Int64Range(1, int64(early)).Draw(t, "passed")))
				continue
			}
			if plan.ahead != ahead {
				t.Fatalf("looks ahead: %t, with %d events in memory, %s before it goes on filling lanes", plan.ahead, pending, filled.Sub(now))
			}
			if plan.most < 1 || plan.room < 1 {
				t.Fatalf("a look for nothing: %+v", plan)
			}
			if p.news {
				t.Fatal("what was announced is looked for twice")
			}

			look := Look{Ahead: plan.ahead, Hungry: hungry}
			done := Assigned{More: rapid.Bool().Draw(t, "more"), AtEnd: rapid.Bool().Draw(t, "at the end")}
			began, took := now, time.Duration(rapid.Int64Range(1, int64(time.Second)).Draw(t, "took"))
			idle := 0
			if plan.ahead {
				done.Taken = make([]*Event, rapid.IntRange(0, 1).Draw(t, "taken"))
				last.Look, last.Assigned, last.began, last.took = look, done, began, took
				fill.between = fill.between || len(done.Taken) > 0
			} else {
				done.Written = make([]int64, rapid.IntRange(0, plan.most).Draw(t, "written"))
				fill.began, fill.takes, fill.between = began, 0, false
				if idle = rapid.IntRange(0, len(done.Written)).Draw(t, "idle"); 2*idle > len(done.Written) {
					fill.takes = took
					if n := len(done.Written); n > idleMost { // the next one is shorter
						fill.takes = took * idleMost / time.Duration(n)
					}
				}
			}
			now = now.Add(took)
			p.looked(look, done, idle, began, now)
		}
	})
}

// A look after one that mostly wrote is short, since others wait for it.
func TestALookAfterMuchWritingFindsLess(t *testing.T) {
	t.Parallel()
	p := pacing{concurrency: 1000}
	now := time.Now()
	if plan, _ := p.plan(now, 0, false); plan.most != assignBatch || plan.room != 4000 {
		t.Errorf("at first: %+v", plan)
	}
	p.looked(Look{}, Assigned{Written: make([]int64, 2), Taken: make([]*Event, 1), Left: 50}, 0, now, now)
	if plan, _ := p.plan(now, 0, false); plan.most != writeMost {
		t.Errorf("after writing: %+v", plan)
	}
	p.looked(Look{}, Assigned{Written: make([]int64, 2), Left: 50}, 2, now, now)
	if plan, _ := p.plan(now, 0, false); plan.most != idleMost {
		t.Errorf("after writing what isn't needed: %+v", plan)
	}
	p.looked(Look{}, Assigned{Written: make([]int64, 1), Taken: make([]*Event, 1), Left: 50}, 0, now, now)
	if plan, _ := p.plan(now, 0, false); plan.most != assignBatch+50 {
		t.Errorf("what is left for others hides what isn't: %+v", plan)
	}
}

// What waits for much longer than a tenth of a second is written twice; but where
// slots are free, what waits may wait for each other.
func TestAsMuchWaitsInMemoryAsEndsSoon(t *testing.T) {
	t.Parallel()
	const concurrency = 64
	start := time.Unix(1_800_000_000, 0)
	for _, tc := range []struct {
		ended  int // in a tenth of a second
		hungry bool
		room   int
	}{
		{0, false, 4 * concurrency}, {10, false, concurrency}, {200, false, 200}, {1000, false, 1000},
		{10, true, 4 * concurrency}, {1000, true, 1000},
	} {
		p := pacing{concurrency: concurrency}
		p.flow.recently(start)
		p.flow.n = tc.ended
		if plan, early := p.plan(start.Add(flowWindow), 0, tc.hungry); early > 0 || plan.ahead || plan.room != tc.room {
			t.Errorf("%+v: got %+v, due in %s", tc, plan, early)
		}
	}
}
