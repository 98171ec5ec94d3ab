package main

import (
	"context"
)

type faultsCmd struct{}

func (c *faultsCmd) Run(ctx context.Context) error { return nil }

type benchCmd struct{}

func (c *benchCmd) Run(ctx context.Context) error { return nil }
