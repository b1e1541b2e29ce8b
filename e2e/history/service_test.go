package history_test

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ownbucket/ownbucket/internal/awslocal"
	"github.com/ownbucket/ownbucket/internal/bucket"
	"github.com/ownbucket/ownbucket/internal/integration"
	"github.com/ownbucket/ownbucket/internal/stage"
)

// shelf is a part of a service's media, with file names of their own. Its lock
// stands for the row locks by which a CMS keeps the events of a media, and of a
// name, in order: it is held until the transaction has committed.
type shelf struct {
	sync.Mutex
	number int
	stands map[string]*stand // by environment
	fallen []*fallen
	made   int // media and names
}

// life is an environment from its creation to its
// deletion.
type life struct {
	id           string
	birth, death *act // production has neither
	// children are the creations of others from it.
	children []*act
	pinned   bool
	// still tells that no event may change a name for now.
	still atomic.Bool
	// paused environments aren't made again.
	paused atomic.Bool
}

// service publishes events, and knows what must come of them.
type service struct {
	*history
	*stage.Place
	shelves []*shelf
	// environments are those that exist, oldest first, and gone the IDs of those
	// that were. They change only with all shelves locked.
	environments []*life
	gone         []*life
	made         int // environments
	left         atomic.Int64
	// closed tells that no environment may be made for now.
	closed atomic.Bool
	// roles are all that its settings have had.
	roles []string
}

// newService is a service in production. It has one more shelf than
// publishers, so that these rarely wait for each other.
func newService(h *history, number int) *service {
	place := h.stage.Customer(fmt.Sprintf("SERVICE#%d", number), fmt.Sprintf("customer-%d", number),
		[]string{"", "media", "a/写真"}[number%3])
	s := &service{history: h, Place: place, environments: []*life{{}}, roles: []string{place.Role}}
	production := s.environments[0]
	if production.pinned = number == 0; production.pinned {
		place.Set(integration.Change{PinFileNames: &production.pinned})
	}
	s.left.Store(int64(h.events / h.extent.services))
	for n := range 2 + number%3 {
		st := newStand()
		st.pinned = production.pinned
		if number%2 == 1 {
			s.stranger(st, fmt.Sprintf("%d stranger.txt", n))
		}
		s.shelves = append(s.shelves, &shelf{number: n, stands: map[string]*stand{"": st}})
	}
	return s
}

const strangers = "a stranger's"

// stranger puts an object into the bucket that isn't ours.
func (s *service) stranger(at *stand, name string) {
	at.strangers[name] = true
	if _, err := s.AWS.PutDirect(s.Bucket, s.key("", name), []byte(strangers), awslocal.Stranger{}); err != nil {
		s.T.Fatal(err)
	}
}

// key is where a name stands in the bucket.
func (s *service) key(environment, name string) string {
	directory := ""
	if environment != "" {
		directory = bucket.Directory(serviceID(s.Service, environment))
	}
	return bucket.KeyPrefix(s.Prefix, directory) + name
}

// lock locks all shelves, as for an event of a whole environment.
func (s *service) lock() {
	for _, sh := range s.shelves {
		sh.Lock()
	}
}

func (s *service) unlock() {
	for _, sh := range s.shelves {
		sh.Unlock()
	}
}

// copyOf is for what is made up and never committed.
func (sh *shelf) copyOf() *shelf {
	c := &shelf{number: sh.number, stands: map[string]*stand{}, made: sh.made}
	for id, s := range sh.stands {
		c.stands[id] = s.clone()
	}
	return c
}

// create makes an environment in the model.
func (s *service) create(a *act) {
	source := s.find(a.source)
	made := &life{id: a.environment, birth: a, pinned: source.pinned}
	source.children = append(source.children, a)
	s.environments = append(s.environments, made)
	for _, sh := range s.shelves {
		sh.stands[a.environment] = sh.stands[a.source].copied(a)
	}
	a.ends = []string{done}
}

// remove deletes an environment from the model. The deletion supersedes all
// events that still wait in it, and is skipped where the creation is among them.
func (s *service) remove(a *act) {
	e := s.find(a.environment)
	e.death = a
	a.ends = []string{done, skipped}
	e.birth.mayEnd(superseded)
	for _, sh := range s.shelves {
		for _, b := range sh.stands[a.environment].acts {
			b.mayEnd(superseded)
		}
		delete(sh.stands, a.environment)
	}
	for i, other := range s.environments {
		if other == e {
			s.environments = append(s.environments[:i], s.environments[i+1:]...)
			break
		}
	}
	s.gone = append(s.gone, e)
}

// find returns an environment that exists.
func (s *service) find(id string) *life {
	for _, e := range s.environments {
		if e.id == id {
			return e
		}
	}
	return nil
}
