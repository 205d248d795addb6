"""What a job is: its spec, its requests, and the plan that fixes both."""
