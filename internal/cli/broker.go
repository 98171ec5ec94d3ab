package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"tributary/cluster/authority"
	"tributary/comm"
)

// Broker says where the NATS broker is. It is a group of flags.
type Broker struct {
	NATS  string        `name:"nats" help:"Address of the NATS broker, or several with commas; may carry user:password@." default:"nats://127.0.0.1:4222" placeholder:"URL"`
	Creds string        `help:"File with NATS credentials." type:"existingfile" placeholder:"FILE"`
	CA    string        `name:"ca" help:"File with the certificate authority of the broker." type:"existingfile" placeholder:"FILE"`
	Wait  time.Duration `help:"How long to wait for a broker that does not answer." default:"${wait=30s}"`
}

// Dial connects under a name. It says on stderr, at once and then now and
// again, that it waits.
func (b Broker) Dial(ctx context.Context, name string, log *slog.Logger) (comm.Conn, error) {
	var extra []nats.Option
	if b.Creds != "" {
		extra = append(extra, nats.UserCredentials(b.Creds))
	}
	if b.CA != "" {
		extra = append(extra, nats.RootCAs(b.CA))
	}
	conn, err := comm.DialNATS(ctx, comm.Options{URL: b.NATS, Name: name, Logger: log, Extra: extra, Wait: b.Wait, OnWait: Waiting})
	if errors.Is(err, nats.ErrNoServers) {
		err = fmt.Errorf("%w: start one with ps broker, or say with --nats where it is", err)
	}
	return conn, err
}

// Waiting tells people what is being waited for.
func Waiting(text string) { fmt.Fprintln(os.Stderr, text) }

// Link is the connections of one process: Data for tensors, Control for
// everything small.
type Link struct {
	Data, Control comm.Conn
	auth          *authority.JetStream // nil until asked for
}

// Connect opens both connections.
func (b Broker) Connect(ctx context.Context, name string, log *slog.Logger) (*Link, error) {
	data, err := b.Dial(ctx, name+" data", log)
	if err != nil {
		return nil, err
	}
	control, err := b.Dial(ctx, name+" control", log)
	if err != nil {
		data.Close() // the dial's error counts
		return nil, err
	}
	return &Link{Data: data, Control: control}, nil
}

// NATS is the control connection itself.
func (l *Link) NATS() *nats.Conn { return comm.Raw(l.Control) }

// Authority opens the compare-and-set store on the control connection.
func (l *Link) Authority(ctx context.Context) (authority.Authority, error) {
	if l.auth == nil {
		a, err := authority.OpenJetStream(ctx, l.NATS(), authority.JetStreamOptions{})
		if err != nil {
			return nil, err
		}
		l.auth = a
	}
	return l.auth, nil
}

// Close closes the store and both connections.
func (l *Link) Close() error {
	var err error
	if l.auth != nil {
		err = l.auth.Close()
	}
	return errors.Join(err, l.Data.Close(), l.Control.Close())
}
