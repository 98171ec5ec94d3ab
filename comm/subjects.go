package comm

import (
	"fmt"
	"strconv"
	"strings"

	"tributary/comm/wire"
)

// ValidToken says why s cannot be the name of a job, worker or node: names
// become tokens of NATS subjects.
func ValidToken(s string) error {
	if s == "" || len(s) > wire.MaxTokenBytes {
		return fmt.Errorf("%q must have 1 to %d characters", s, wire.MaxTokenBytes)
	}
	for _, c := range s {
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return fmt.Errorf("%q may hold only letters, digits, - and _", s)
		}
	}
	return nil
}

// The subjects of a job. All tokens are names that ValidToken accepts. The
// sender's name is a token, so that a broker can bind it to the sender's key.

// ShardSubject carries everything from a worker (or the coordinator) to the
// owner of a shard.
func ShardSubject(job string, shard int, from string) string {
	return "tb." + job + ".shard." + strconv.Itoa(shard) + "." + from
}

// ShardAll matches ShardSubject of all senders.
func ShardAll(job string, shard int) string { return ShardSubject(job, shard, "*") }

// PeerSubject carries partial sums between shards.
func PeerSubject(job string) string { return "tb." + job + ".peers" }

// WorkerSubject is a worker's inbox.
func WorkerSubject(job, worker string) string { return "tb." + job + ".worker." + worker }

// ParamsSubject carries parameters that are broadcast to all workers.
func ParamsSubject(job string) string { return "tb." + job + ".params" }

// CoordSubject carries everything to the job's coordinator.
func CoordSubject(job, from string) string { return "tb." + job + ".coord." + from }

// CoordAll matches CoordSubject of all senders.
func CoordAll(job string) string { return CoordSubject(job, "*") }

// Sender is the last token of a ShardSubject or CoordSubject: who sent the
// message, as far as the broker vouches for it.
func Sender(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }

// The senders that are no workers. Workers cannot take these names.
const Coordinator = "coordinator"

// ShardSender is the sender of a shard's owner.
func ShardSender(shard int) string { return "shard-" + strconv.Itoa(shard) }

// ReservedWorker says whether a name is that of another sender.
func ReservedWorker(name string) bool {
	return name == Coordinator || strings.HasPrefix(name, "shard-")
}

// NewsSubject carries decisions.
func NewsSubject(job string) string { return "tb." + job + ".news" }

// checkSubject refuses what no broker would route. Only patterns may hold
// wildcards.
func checkSubject(subject string, pattern bool) error {
	for rest, more := subject, true; more; {
		var token string
		token, rest, more = strings.Cut(rest, ".")
		wild := token == "*" || token == ">"
		if token == "" || strings.ContainsAny(token, " \t\r\n") || wild && !pattern || token == ">" && more {
			return fmt.Errorf("invalid subject %q", subject)
		}
	}
	return nil
}

// matches says whether a subject matches a pattern with * and >.
func matches(pattern, subject string) bool {
	for {
		p, patternRest, morePattern := strings.Cut(pattern, ".")
		s, subjectRest, moreSubject := strings.Cut(subject, ".")
		switch {
		case p == ">":
			return true
		case p != "*" && p != s || morePattern != moreSubject:
			return false
		case !morePattern:
			return true
		}
		pattern, subject = patternRest, subjectRest
	}
}
