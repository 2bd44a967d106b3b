"""What jobs will take on a cluster, from what their parts took on the machine where they ran."""
