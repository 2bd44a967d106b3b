"""Ray: the cluster, pipelines over units of work, and the records of finished chunks."""
