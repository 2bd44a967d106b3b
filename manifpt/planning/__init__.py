"""The resources that jobs will take on a cluster, from measurements of their parts."""
