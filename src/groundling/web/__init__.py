"""Pages and interfaces that a run is used through, over HTTP."""
