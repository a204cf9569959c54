"""Events: relay, delivery to sinks, and the live feed."""
