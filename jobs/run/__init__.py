"""Making it: the driver, its workers, and choosing the method."""
