"""Ray: the cluster, pipelines over units of work, and the records of what is done."""
