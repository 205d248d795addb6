"""One worker of a job: decodes shards, encodes images, writes and commits files."""
