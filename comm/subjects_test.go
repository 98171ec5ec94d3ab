package comm

import (
	"strings"
	"testing"
)

func TestSubjects(t *testing.T) {
	for got, want := range map[string]string{
		ShardSubject("job", 3, "worker-1"): "tb.job.shard.3.worker-1",
		ShardAll("job", 3):                 "tb.job.shard.3.*",
		PeerSubject("job"):                 "tb.job.peers",
		WorkerSubject("job", "worker-1"):   "tb.job.worker.worker-1",
		ParamsSubject("job"):               "tb.job.params",
		CoordSubject("job", "shard-2"):     "tb.job.coord.shard-2",
		CoordAll("job"):                    "tb.job.coord.*",
		NewsSubject("job"):                 "tb.job.news",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if err := checkSubject(got, true); err != nil {
			t.Error(err)
		}
	}
}

func TestValidToken(t *testing.T) {
	for _, s := range []string{"a", "A-z_09", strings.Repeat("x", 64)} {
		if err := ValidToken(s); err != nil {
			t.Errorf("ValidToken(%q) = %v", s, err)
		}
	}
	for _, s := range []string{"", ".", "a.b", "*", ">", "a b", "ä", "a\n", "a\x00", strings.Repeat("x", 65)} {
		if err := ValidToken(s); err == nil {
			t.Errorf("ValidToken(%q) = nil", s)
		}
	}
}

// TestMatches compares with a second, slower definition.
func TestMatches(t *testing.T) {
	twin := func(pattern, subject []string) bool {
		for i, p := range pattern {
			if p == ">" {
				return i < len(subject)
			}
			if i >= len(subject) || p != "*" && p != subject[i] {
				return false
			}
		}
		return len(pattern) == len(subject)
	}
	var all func(tokens []string, depth int) []string
	all = func(tokens []string, depth int) []string {
		if depth == 0 {
			return nil
		}
		out := append([]string(nil), tokens...)
		for _, rest := range all(tokens, depth-1) {
			for _, tok := range tokens {
				if tok != ">" {
					out = append(out, tok+"."+rest)
				}
			}
		}
		return out
	}
	for _, p := range all([]string{"a", "b", "*", ">"}, 3) {
		for _, s := range all([]string{"a", "b"}, 4) {
			if got, want := matches(p, s), twin(strings.Split(p, "."), strings.Split(s, ".")); got != want {
				t.Errorf("matches(%s, %s) = %v, want %v", p, s, got, want)
			}
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"nats://127.0.0.1:4222":                   "nats://127.0.0.1:4222",
		"nats://me:secret@host:4222":              "nats://REDACTED@host:4222",
		"nats://token@host:4222":                  "nats://REDACTED@host:4222",
		"me:se@cret@host:4222":                    "REDACTED@host:4222",
		"nats://a:4222, nats://u:secret@b:4222":   "nats://a:4222,nats://REDACTED@b:4222",
		"nats://u:%zzsecret@host:4222":            "REDACTED@host:4222",
		"":                                        "",
		"tls://host:4222,wss://u:secret@host:443": "tls://host:4222,wss://REDACTED@host:443",
	} {
		if got := redact(in); got != want {
			t.Errorf("redact(%q) = %q, want %q", in, got, want)
		}
	}
}

func BenchmarkShardSubject(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		ShardSubject("digits", 12, "worker-5")
	}
}
