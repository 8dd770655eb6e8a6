"""One file an engine: how it is reached, and how our SQL is said in it."""
