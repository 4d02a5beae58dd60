"""Where work and bytes live: Ray sessions, the object store, the local cluster. No torch."""
