package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"tributary/cluster"
	"tributary/comm/broker"
	"tributary/internal/cli"
)

// serveCmd is one parameter server.
type serveCmd struct {
	Name     string        `help:"Name of this node, unique in the cluster (default: the host's name and a number)." placeholder:"NAME"`
	Dir      string        `help:"Where checkpoints are kept; a node that comes back needs its own again." default:"data" type:"path"`
	Report   string        `help:"Where metrics of the jobs coordinated here are written (default: DIR/JOB)." type:"path"`
	Embed    bool          `help:"Run a broker in this process, too."`
	LeaseTTL time.Duration `help:"Silence after which the cluster takes this node for gone." default:"3s"`
	EOF      bool          `name:"until-eof" help:"Stop when standard input ends." hidden:""`
	listenFlags
	cli.Broker
	cli.Log
}

// Run serves until ctx ends.
func (c *serveCmd) Run(ctx context.Context) error {
	ctx, cancel := cli.UntilEOF(ctx, c.EOF)
	defer cancel()
	log := c.New()
	if c.Name == "" {
		c.Name = cli.DefaultName("ps")
	}
	if c.Embed {
		b, err := broker.Start(c.options(filepath.Join(c.Dir, "broker"), log))
		if err != nil {
			return err
		}
		defer b.Close()
		c.NATS = b.URL()
		fmt.Fprintf(os.Stderr, "broker at %s\n", b.URL())
	}
	link, err := c.Connect(ctx, c.Name, log)
	if err != nil {
		return err
	}
	err = serveNode(ctx, link, cluster.Options{Name: c.Name, Dir: c.Dir, Report: c.Report, Logger: log, LeaseTTL: c.LeaseTTL}, func() {
		fmt.Fprintf(os.Stderr, "parameter server %s is up at %s\n", c.Name, c.NATS)
	})
	if cerr := link.Close(); err == nil {
		err = cerr
	}
	return err
}

// serveNode runs a node on a link until ctx ends. up is called when it takes
// part.
func serveNode(ctx context.Context, link *cli.Link, o cluster.Options, up func()) error {
	auth, err := link.Authority(ctx)
	if err != nil {
		return err
	}
	o.Data, o.Control, o.Auth = link.Data, link.Control, auth
	n, err := cluster.NewNode(o)
	if err != nil {
		return err
	}
	svc, err := n.Serve(link.NATS())
	if err != nil {
		return err
	}
	defer svc.Stop() // fails only when the connection has ended
	up()
	return n.Run(ctx)
}

// listenFlags say where a broker listens.
type listenFlags struct {
	Host     string `help:"Address the broker listens on." default:"127.0.0.1"`
	Port     int    `help:"Port the broker listens on; 0 takes a free one." default:"4222"`
	User     string `help:"User that clients of the broker must name."`
	Password string `help:"The user's password."`
	Token    string `help:"Token that clients must show, instead of a user and password."`
}

func (l listenFlags) options(dir string, log *slog.Logger) broker.Options {
	return broker.Options{Host: l.Host, Port: l.Port, User: l.User, Password: l.Password, Token: l.Token, StoreDir: dir, Logger: log}
}

// brokerCmd is a broker by itself.
type brokerCmd struct {
	Dir string `help:"Where the broker keeps its store." default:"data/broker" type:"path"`
	listenFlags
	cli.Log
}

// Run serves until ctx ends.
func (c *brokerCmd) Run(ctx context.Context) error {
	b, err := broker.Start(c.options(c.Dir, c.New()))
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "broker at %s\n", b.URL())
	<-ctx.Done()
	return b.Close()
}
