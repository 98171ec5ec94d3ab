// Package broker runs a NATS server with JetStream inside this process.
//
// It is the zero-configuration broker of a single machine and the broker that
// the tests use. The subjects, the messages and the code above are the same as
// with brokers of their own; only where the server runs differs.
//
// Its limits: one server, so no replication of the store; every message of a
// JetStream stream is synced to disk before it is acknowledged, which suits
// small records and not bulk data; memory and disk of the store are bounded.
package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

var (
	// ErrPortInUse is wrapped by Start when another process listens on the
	// address. Starting again is safe; it helps once that process is gone.
	ErrPortInUse = errors.New("port in use")
	// ErrStoreInUse is wrapped by Start when another broker runs on the store
	// directory. Starting again is safe; it helps once that broker is gone.
	ErrStoreInUse = errors.New("store directory in use")
	// ErrOpenToAll is returned by Start for a host that other machines can
	// reach and no credentials. Retrying does not help.
	ErrOpenToAll = errors.New("refusing to listen beyond this machine without credentials; set a user and password or a token, or listen on 127.0.0.1")
)

const (
	readyTimeout = 5 * time.Second
	// The store holds small records that can be derived again (leases,
	// records, decisions), never tensors, so these bounds are generous.
	maxStoreMemory = 64 << 20
	maxStoreDisk   = 4 << 30
)

// Options says where a broker listens and where it keeps its store. The zero
// value is a broker on a free loopback port with a store that Close removes.
type Options struct {
	Host       string       // address to listen on; default 127.0.0.1
	Port       int          // 1 to 65535; 0 or -1 takes any free port
	StoreDir   string       // JetStream's directory, created if absent; empty: a temporary one, removed by Close
	MaxPayload int32        // largest message in bytes; default 8 MiB, at most 64 MiB
	MaxPending int64        // bytes queued for one slow connection before it is cut off; default 256 MiB
	Name       string       // the server's name, shown to operators; default: a random one
	Logger     *slog.Logger // nil discards

	// Either User and Password or Token; required unless Host is loopback.
	User, Password string
	Token          string
}

// String shows o with its secrets hidden.
func (o Options) String() string {
	hide := func(s string) string {
		if s != "" {
			return "REDACTED"
		}
		return ""
	}
	return fmt.Sprintf("{host %s port %d store %q max_payload %d max_pending %d name %q user %q password %s token %s}",
		o.Host, o.Port, o.StoreDir, o.MaxPayload, o.MaxPending, o.Name, o.User, hide(o.Password), hide(o.Token))
}

func (o Options) withDefaults() Options {
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	if o.MaxPayload == 0 {
		o.MaxPayload = 8 << 20
	}
	if o.MaxPending == 0 {
		o.MaxPending = 256 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// validate reports all problems of o, whose defaults are filled in.
func (o Options) validate() error {
	var errs []error
	if o.Port < -1 || o.Port > 65535 {
		errs = append(errs, fmt.Errorf("port %d is not between 1 and 65535", o.Port))
	}
	if o.MaxPayload < 1024 || o.MaxPayload > 64<<20 {
		errs = append(errs, fmt.Errorf("max payload of %d bytes is not between 1 KiB and 64 MiB", o.MaxPayload))
	}
	if o.MaxPending < int64(o.MaxPayload) {
		errs = append(errs, fmt.Errorf("max pending of %d bytes holds not even one message of %d bytes", o.MaxPending, o.MaxPayload))
	}
	if (o.User == "") != (o.Password == "") {
		errs = append(errs, errors.New("user and password go together"))
	}
	if o.User != "" && o.Token != "" {
		errs = append(errs, errors.New("give a user and password or a token, not both"))
	}
	if o.User == "" && o.Token == "" && !loopback(o.Host) {
		errs = append(errs, ErrOpenToAll)
	}
	return errors.Join(errs...)
}

// loopback reports whether only this machine reaches host. A name other than
// localhost counts as reachable: what it resolves to may change.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

// Broker is a running server. Its methods may be called concurrently.
type Broker struct {
	opts   Options
	srv    *server.Server
	lock   *os.File
	remove string // temporary store to remove at Close; empty: none
	once   sync.Once
	err    error // of Close
}

// Start runs a broker and returns once it accepts connections and JetStream is
// ready, within 5 seconds. On an error nothing is left running and the store
// is unlocked. The server installs no signal handlers.
func Start(o Options) (*Broker, error) {
	o = o.withDefaults()
	addr := net.JoinHostPort(o.Host, fmt.Sprint(max(o.Port, 0)))
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("broker on %s: %w", addr, err)
	}
	b := &Broker{opts: o}
	if err := b.openStore(); err != nil {
		b.closeStore()
		return nil, fmt.Errorf("broker on %s: %w", addr, err)
	}
	log := &natsLogger{log: o.Logger, fatal: make(chan string, 1)}
	srv, err := server.NewServer(&server.Options{
		ServerName: o.Name, Host: o.Host, Port: o.Port, NoSigs: true,
		MaxPayload: o.MaxPayload, MaxPending: o.MaxPending,
		Username: o.User, Password: o.Password, Authorization: o.Token,
		JetStream: true, StoreDir: b.opts.StoreDir, SyncAlways: true,
		JetStreamMaxMemory: maxStoreMemory, JetStreamMaxStore: maxStoreDisk,
	})
	if err != nil {
		b.closeStore()
		return nil, fmt.Errorf("broker on %s: %w", addr, err)
	}
	srv.SetLogger(log, false, false)
	b.srv = srv
	if err := b.waitReady(log); err != nil {
		b.Close()
		return nil, fmt.Errorf("broker on %s: %w", addr, err)
	}
	o.Logger.Info("broker is up", "url", b.URL(), "store", b.opts.StoreDir)
	return b, nil
}

// waitReady starts the server and waits until it is ready or said why not.
func (b *Broker) waitReady(log *natsLogger) error {
	// Start reads the store and then listens; a damaged or huge store may take
	// long, so the deadline covers it. Close ends it in every case.
	started := make(chan struct{})
	go func() {
		defer close(started)
		b.srv.Start()
	}()
	deadline := time.NewTimer(readyTimeout)
	defer deadline.Stop()
	select {
	case <-started:
	case msg := <-log.fatal:
		return b.explain(msg)
	case <-deadline.C:
		return fmt.Errorf("not ready after %v; is the store %s very large or its disk slow?", readyTimeout, b.opts.StoreDir)
	}
	select {
	case msg := <-log.fatal:
		return b.explain(msg)
	default:
	}
	if !b.srv.ReadyForConnections(readyTimeout) {
		return fmt.Errorf("not ready after %v", readyTimeout)
	}
	if !b.srv.JetStreamEnabled() {
		return fmt.Errorf("JetStream did not start on %s", b.opts.StoreDir)
	}
	return nil
}

// explain turns the server's last words into an error. They are text: the
// server hands out nothing better.
func (b *Broker) explain(msg string) error {
	if strings.Contains(msg, "address already in use") {
		return fmt.Errorf("%w; choose another port, or 0 for any free one", ErrPortInUse)
	}
	return errors.New(msg)
}

// openStore makes and locks the store directory.
func (b *Broker) openStore() error {
	if b.opts.StoreDir == "" {
		dir, err := os.MkdirTemp("", "tributary-broker-")
		if err != nil {
			return fmt.Errorf("temporary store: %w", err)
		}
		b.opts.StoreDir, b.remove = dir, dir
	}
	if err := os.MkdirAll(b.opts.StoreDir, 0o700); err != nil {
		return fmt.Errorf("store directory: %w", err)
	}
	path := filepath.Join(b.opts.StoreDir, "broker.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("store directory %s is not writable: %w", b.opts.StoreDir, err)
	}
	if err != nil {
		return fmt.Errorf("store directory %s: %w", b.opts.StoreDir, err)
	}
	b.lock = f
	// Two servers on one store would silently corrupt it; the server itself
	// takes no lock.
	if err := lockFile(f); err != nil {
		return fmt.Errorf("%w: %s; stop the other broker or choose another directory", ErrStoreInUse, b.opts.StoreDir)
	}
	return nil
}

func (b *Broker) closeStore() error {
	var errs []error
	if b.lock != nil {
		errs = append(errs, b.lock.Close()) // closing unlocks
	}
	if b.remove != "" {
		errs = append(errs, os.RemoveAll(b.remove))
	}
	return errors.Join(errs...)
}

// URL returns the address that clients connect to, with the port that was
// taken and without credentials.
func (b *Broker) URL() string { return b.srv.ClientURL() }

// Connect returns a connection that bypasses the network, with the broker's
// own credentials; opts come after them. It does not outlive the broker: after
// Close it never reconnects, so close it first. To survive a restart of the
// broker on the same port, connect to [Broker.URL] instead.
func (b *Broker) Connect(opts ...nats.Option) (*nats.Conn, error) {
	all := []nats.Option{nats.InProcessServer(b.srv)}
	switch {
	case b.opts.Token != "":
		all = append(all, nats.Token(b.opts.Token))
	case b.opts.User != "":
		all = append(all, nats.UserInfo(b.opts.User, b.opts.Password))
	}
	nc, err := nats.Connect(b.URL(), append(all, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to the broker in this process: %w", err)
	}
	return nc, nil
}

// Close stops the server, cuts its connections and waits until the store is
// closed. What was acknowledged is on disk; messages on their way are dropped.
// It may be called again, which returns the same error.
func (b *Broker) Close() error {
	b.once.Do(func() {
		b.srv.Shutdown()
		b.srv.WaitForShutdown()
		if err := b.closeStore(); err != nil {
			b.err = fmt.Errorf("close broker store: %w", err)
		}
	})
	return b.err
}

// natsLogger hands the server's lines to slog. The server is chatty about its
// own life, so its notices are debug here.
type natsLogger struct {
	log   *slog.Logger
	fatal chan string // the first fatal line; room for one
}

func (l *natsLogger) Noticef(f string, a ...any) { l.log.Debug("broker", "text", fmt.Sprintf(f, a...)) }
func (l *natsLogger) Warnf(f string, a ...any)   { l.log.Warn("broker", "text", fmt.Sprintf(f, a...)) }
func (l *natsLogger) Errorf(f string, a ...any)  { l.log.Error("broker", "text", fmt.Sprintf(f, a...)) }
func (l *natsLogger) Debugf(string, ...any)      {}
func (l *natsLogger) Tracef(string, ...any)      {}

// Fatalf must not exit: the server then returns from Start by itself.
func (l *natsLogger) Fatalf(f string, a ...any) {
	select {
	case l.fatal <- fmt.Sprintf(f, a...):
	default:
	}
}
