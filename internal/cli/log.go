package cli

import (
	"fmt"
	"log/slog"
	"os"
)

// Log is a group of flags about logging.
type Log struct {
	Level  string `name:"log-level" help:"Least important lines shown: debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
	Format string `name:"log-format" help:"text or json." default:"text" enum:"text,json"`
}

// New returns a logger that writes to stderr.
func (l Log) New() *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		level = slog.LevelInfo // kong lets nothing else through
	}
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}

// LogFile returns a logger that writes JSON lines to a file, and its close.
func LogFile(name string) (*slog.Logger, func() error, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("log: %w", err)
	}
	return slog.New(slog.NewJSONHandler(f, nil)), f.Close, nil
}
