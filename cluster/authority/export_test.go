package authority

import "time"

// WithMarkerTTL sets how long a deletion can be seen in the store.
func (o JetStreamOptions) WithMarkerTTL(d time.Duration) JetStreamOptions {
	o.markerTTL = d
	return o
}
