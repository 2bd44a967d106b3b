"""Images -> projections -> artifacts, a(x) = phi(x) - x*; their readers and their check."""
