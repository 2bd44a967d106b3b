"""The edge of a job: options, configuration, and one line for an error."""
