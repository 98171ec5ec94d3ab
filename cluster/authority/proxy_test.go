package authority_test

import (
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// A filter sees bytes before they are passed on, in one call at a time. False:
// they are lost, and all connections with them.
type filter func(toServer bool, b []byte) bool

// proxy passes bytes between clients and a broker, and cuts the connections
// when told to.
type proxy struct {
	ln      net.Listener
	target  string
	refuse  atomic.Bool // no new connections
	filter  atomic.Pointer[filter]
	filters sync.Mutex // held while a filter runs
	wait    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu
}

func startProxy(t *testing.T, target string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, target: u.Host, conns: map[net.Conn]struct{}{}}
	p.wait.Go(p.serve)
	t.Cleanup(func() {
		ln.Close()
		p.refuse.Store(true)
		p.cut()
		p.wait.Wait()
	})
	return p
}

func (p *proxy) url() string { return "nats://" + p.ln.Addr().String() }

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// set installs f, or removes the filter if it is nil.
func (p *proxy) set(f filter) {
	if f == nil {
		p.filter.Store(nil)
		return
	}
	p.filter.Store(&f)
}

func (p *proxy) serve() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		srv, err := net.Dial("tcp", p.target)
		p.mu.Lock()
		if err != nil || p.refuse.Load() {
			p.mu.Unlock()
			client.Close()
			if err == nil {
				srv.Close()
			}
			continue
		}
		p.conns[client], p.conns[srv] = struct{}{}, struct{}{}
		p.mu.Unlock()
		p.wait.Go(func() { p.pass(client, srv, true) })
		p.wait.Go(func() { p.pass(srv, client, false) })
	}
}

func (p *proxy) pass(from, to net.Conn, toServer bool) {
	defer func() {
		from.Close()
		to.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, from)
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !p.allows(toServer, buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) allows(toServer bool, b []byte) bool {
	p.filters.Lock()
	defer p.filters.Unlock()
	f := p.filter.Load()
	if f == nil || (*f)(toServer, b) {
		return true
	}
	p.cut()
	return false
}
