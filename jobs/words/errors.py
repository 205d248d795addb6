"""The two errors of a job, told apart by their exit codes."""


class SpecError(ValueError):
    """Wrong input; the message is one line: field, value got, what is allowed. Exit code 2."""


class JobError(RuntimeError):
    """The job cannot go on; committed shards remain, and the same command resumes. Exit code 1."""
