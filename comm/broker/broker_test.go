package broker

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func start(t *testing.T, o Options) *Broker {
	t.Helper()
	b, err := Start(o)
	if err != nil {
		t.Fatalf("Start(%v): %v", o, err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func port(t *testing.T, b *Broker) int {
	t.Helper()
	u, err := url.Parse(b.URL())
	if err != nil {
		t.Fatal(err)
	}
	p, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestMessageTravelsInProcessAndByTCP(t *testing.T) {
	b := start(t, Options{})
	in, err := b.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := nats.Connect(b.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if got, want := in.MaxPayload(), int64(8<<20); got != want {
		t.Errorf("MaxPayload() = %d, want %d", got, want)
	}
	sub, err := in.SubscribeSync("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Flush(); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 7<<20)
	if err := out.Publish("x", big); err != nil {
		t.Fatal(err)
	}
	if msg, err := sub.NextMsg(5 * time.Second); err != nil || len(msg.Data) != len(big) {
		t.Fatalf("NextMsg: %v", err)
	}
}

func TestStoreOutlivesTheBroker(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "deep", "store")
	open := func() (*Broker, jetstream.KeyValue) {
		b := start(t, Options{StoreDir: dir})
		nc, err := b.Connect()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b"})
		if err != nil {
			t.Fatal(err)
		}
		return b, kv
	}
	b, kv := open()
	if _, err := kv.Put(ctx, "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	_, kv = open()
	if e, err := kv.Get(ctx, "k"); err != nil || string(e.Value()) != "v" {
		t.Fatalf("Get after restart = %v, %v; want v", e, err)
	}
}

func TestTemporaryStoreIsRemoved(t *testing.T) {
	b := start(t, Options{})
	dir := b.opts.StoreDir
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("store: %v", err)
	}
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Stat(store) after Close = %v, want not exist", err)
	}
}

func TestStartRefuses(t *testing.T) {
	held := start(t, Options{StoreDir: t.TempDir()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    Options
		is   error
		text string
	}{
		{"port held by a listener", Options{Port: l.Addr().(*net.TCPAddr).Port}, ErrPortInUse, "choose another port"},
		{"port held by a broker", Options{Port: port(t, held)}, ErrPortInUse, "choose another port"},
		{"store in use", Options{StoreDir: held.opts.StoreDir}, ErrStoreInUse, held.opts.StoreDir},
		{"store is a file", Options{StoreDir: file}, nil, "store directory"},
		{"open to all", Options{Host: "0.0.0.0"}, ErrOpenToAll, "credentials"},
		{"open to all by name", Options{Host: "example.org"}, ErrOpenToAll, "credentials"},
		{"user without password", Options{User: "u"}, nil, "go together"},
		{"bad port", Options{Port: 70000}, nil, "70000"},
		{"pending below payload", Options{MaxPending: 1}, nil, "not even one message"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := Start(c.o)
			if err == nil {
				b.Close()
				t.Fatalf("Start(%v) succeeded", c.o)
			}
			if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Start(%v) = %v, want %v with %q", c.o, err, c.is, c.text)
			}
			if c.is != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("Start(%v) error has more than one line: %q", c.o, err)
			}
		})
	}
}

func TestStoreNotWritable(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may write everywhere")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if b, err := Start(Options{StoreDir: dir}); err == nil || !strings.Contains(err.Error(), "not writable") {
		if err == nil {
			b.Close()
		}
		t.Errorf("Start = %v, want not writable", err)
	}
}

func TestCredentials(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		opt  nats.Option
	}{
		{"password", Options{Host: "0.0.0.0", User: "u", Password: "secret"}, nats.UserInfo("u", "secret")},
		{"token", Options{Host: "0.0.0.0", Token: "secret"}, nats.Token("secret")},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, c.o)
			if s := b.opts.String(); strings.Contains(s, "secret") {
				t.Errorf("String() = %s shows the secret", s)
			}
			addr := "nats://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port(t, b)))
			if nc, err := nats.Connect(addr); err == nil {
				nc.Close()
				t.Error("connected without credentials")
			}
			nc, err := nats.Connect(addr, c.opt)
			if err != nil {
				t.Fatalf("connect with credentials: %v", err)
			}
			nc.Close()
			in, err := b.Connect()
			if err != nil {
				t.Fatalf("Connect: %v", err)
			}
			in.Close()
		})
	}
}
