"""Jobs: the spec, the plan, the driver, and what is reported of a dataset."""
