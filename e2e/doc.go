// Package e2e tests the whole system from outside: the real commands as
// processes of their own, over a real broker, killed and restarted at seeded
// moments, and the same nodes and workers in one process for what needs many
// runs. It holds tests only.
//
// The measure is always the same: the final parameters and optimizer slots of
// a disturbed run equal those of an undisturbed one bit for bit.
//
// Long variants run with TRIBUTARY_LONG=1.
package e2e
