package history_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
)

// cable carries a worker's connections. It can be cut for good, or frozen: what
// is sent then arrives when it thaws.
type cable struct {
	mu    sync.Mutex
	down  bool
	flows chan struct{} // closed unless frozen
	conns map[net.Conn]bool
}

func newCable() *cable {
	c := &cable{flows: make(chan struct{}), conns: make(map[net.Conn]bool)}
	close(c.flows)
	return c
}

func (c *cable) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		_ = conn.Close()
		return nil, errors.New("the cable is cut")
	}
	c.conns[conn] = true
	return conn, nil
}

func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = true
	for conn := range c.conns {
		_ = conn.Close()
	}
}

func (c *cable) freeze() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flows = make(chan struct{})
}

func (c *cable) thaw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.flows)
}

func (c *cable) flowing() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flows
}

// outlet gives PostgreSQL, which listens on a Unix socket, another one at the
// near end of a cable.
type outlet struct {
	*cable
	target    string
	directory string
	listener  net.Listener
	passing   sync.WaitGroup
}

// newOutlet returns the URL of the same database through the cable.
func newOutlet(databaseURL string) (*outlet, string, error) {
	through, err := url.Parse(databaseURL)
	if err != nil {
		return nil, "", err
	}
	directory, err := os.MkdirTemp("", "net") // a socket's path must be short
	if err != nil {
		return nil, "", err
	}
	const socket = ".s.PGSQL.5432"
	query := through.Query()
	o := &outlet{cable: newCable(), directory: directory, target: filepath.Join(query.Get("host"), socket)}
	if o.listener, err = net.Listen("unix", filepath.Join(directory, socket)); err != nil {
		return nil, "", errors.Join(err, os.RemoveAll(directory))
	}
	o.passing.Go(o.accept)
	query.Set("host", directory)
	through.RawQuery = query.Encode()
	return o, through.String(), nil
}

func (o *outlet) accept() {
	for {
		near, err := o.listener.Accept()
		if err != nil {
			return
		}
		far, err := o.dial(context.Background(), "unix", o.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		o.passing.Go(func() { o.pass(far, near) })
		o.passing.Go(func() { o.pass(near, far) })
	}
}

// pass carries one direction until either end closes.
func (o *outlet) pass(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		<-o.flowing()
		if _, failed := to.Write(buffer[:n]); err != nil || failed != nil {
			return
		}
	}
}

func (o *outlet) close() {
	_ = o.listener.Close()
	o.cut()
	o.passing.Wait()
	_ = os.RemoveAll(o.directory)
}
