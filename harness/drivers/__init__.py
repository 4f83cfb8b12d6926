"""Who speaks to servers: one driver per protocol, all writing the same timeline."""
