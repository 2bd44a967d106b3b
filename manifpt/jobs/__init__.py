"""One file a job: parse options, call the library, print a summary."""
